"""A virtual environment of a test's own, without installing torch and MergeKit again.

What the running environment has is linked into it, except this project and start-up files: those
are what is under test.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
_LEFT_OUT = re.compile(
    r"_*(editable_+)?(impl_+|mapping_+)?mergekit.collapse|.*\.pth$|__pycache__$", re.I
)


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        return self.folder / "lib" / version / "site-packages"

    def run(
        self, *arguments: object, cwd: Path | None = None, timeout: int = 300, **variables: str
    ):
        """Python with these arguments. Nothing of the caller's settings gets in."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MERGEKIT_"))}
        return subprocess.run(
            [self.python, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=kept | {"HF_HUB_OFFLINE": "1"} | variables,
            check=False,
            timeout=timeout,
        )

    def pip(self, *arguments: object) -> None:
        """pip in here, from what is on this machine alone."""
        done = self.run("-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def unpack(self, wheel: Path) -> None:
        """What an installation puts into site-packages, without pip."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)


def make_environment(folder: Path) -> Environment:
    venv.create(folder, symlinks=True, with_pip=False)
    environment = Environment(folder)
    for key in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_path(key)).iterdir():
            link = environment.packages / entry.name
            if not _LEFT_OUT.match(entry.name) and not link.exists():
                link.symlink_to(entry)
    return environment


def build_wheel(folder: Path) -> Path:
    """As ``pip wheel .`` builds it, with the build backend that is installed here."""
    command = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.strip().splitlines()[-1]
