"""What the results were made with."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("mergekit-collapse", "mergekit", "torch", "transformers", "peft", "numpy")


def made_with() -> Iterator[dict[str, object]]:
    """Versions of the code, and of what it computes with."""
    yield {"what": "commit", "version": _commit()}
    yield {"what": "python", "version": platform.python_version()}
    yield from ({"what": name, "version": _version(name)} for name in PACKAGES)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of the checkout; empty where it is none. ``-dirty`` where files differ from it."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip()
