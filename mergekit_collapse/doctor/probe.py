"""What a fresh interpreter says about itself: whether MergeKit is hooked there, and why not."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Runs in the interpreter of the stock commands, which need not be this one nor have this package.
# Like a console script, and unlike -c, it must not see the working directory.
_PROBE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import json, os, site
startup = sys.modules.get("_mergekit_collapse_startup")
said = {
    "prefix": sys.prefix,
    "startup": getattr(startup, "__file__", None),
    "no_site": bool(sys.flags.no_site),
    "no_user_site": not site.ENABLE_USER_SITE,
    "user_site": site.getusersitepackages(),
}
try:
    import mergekit.config, mergekit.merge
    said["field"] = "compat" in mergekit.config.MergeConfiguration.model_fields
    said["wrapped"] = hasattr(mergekit.merge.run_merge, "__mergekit_collapse__")
except Exception as error:
    said["error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(said))
"""
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Probe:
    """One fresh interpreter. ``error`` is set where MergeKit could not be asked there at all."""

    interpreter: str
    prefix: str = ""
    startup_file: str | None = None
    field: bool = False
    wrapped: bool = False
    no_site: bool = False
    no_user_site: bool = False
    user_site: str = ""
    stderr: str = ""
    error: str | None = None

    @property
    def hooked(self) -> bool:
        return self.error is None and self.field and self.wrapped


def probe(interpreter: str) -> Probe:
    """Start ``interpreter`` as a stock command would, and ask. It imports MergeKit: seconds."""
    try:
        done = subprocess.run(
            [interpreter, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(interpreter, error=str(error))
    except (ValueError, IndexError):
        return Probe(interpreter, error=done.stderr.strip() or f"exit code {done.returncode}")
    return Probe(
        interpreter,
        prefix=said["prefix"],
        startup_file=said["startup"],
        field=said.get("field", False),
        wrapped=said.get("wrapped", False),
        no_site=said["no_site"],
        no_user_site=said["no_user_site"],
        user_site=said["user_site"],
        stderr=done.stderr.strip(),
        error=said.get("error"),
    )


@dataclass(frozen=True)
class StockCommand:
    """A command as the shell would find it; ``interpreter`` is None where none can be told."""

    path: Path
    on_path: bool
    interpreter: str | None


def find_stock_command(name: str) -> StockCommand | None:
    """``name`` on the PATH, else beside this interpreter (an environment not activated)."""
    found = shutil.which(name)
    on_path = found is not None
    if found is None:
        found = shutil.which(name, path=os.path.dirname(sys.executable))
    return StockCommand(Path(found), on_path, _interpreter_of(Path(found))) if found else None


def _interpreter_of(script: Path) -> str | None:
    try:
        head = script.read_bytes()[:1024].decode("utf-8", errors="replace")
    except OSError:
        return None
    if not head.startswith("#!"):
        return None  # Windows: an executable
    shebang = head[2:].splitlines()[0].strip()
    if shebang == "/bin/sh":
        # Where a shebang cannot hold the path (long, or with a space), pip writes a shell line.
        line = re.search(r"""^'''exec' "?([^"\n]+?)"? "\$0" "\$@"$""", head, re.MULTILINE)
        return line.group(1) if line else None
    words = shebang.split()
    if Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    if not words or not Path(words[0]).name.startswith(("python", "pypy")):
        return None  # a shim, such as pyenv's
    return shutil.which(words[0])
