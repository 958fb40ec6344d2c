"""Files of this package in the user's cache: each there whole or not at all, up to a size.

A file's name is the digest of all that its content depends on, so that two writers of one name
write the same. Its time is that of its last use.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mergekit_collapse.byte_size import parse_size
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.errors import InvalidRecipeError

logger = logging.getLogger(__name__)

SIZE_VARIABLE = "MERGEKIT_COLLAPSE_CACHE_SIZE"
_DEFAULT_SIZE = 4 * 2**30

# What is kept: name of the folder, ending of the files.
STATES = ("states", ".safetensors")
OWN_SCORES = ("own-scores", ".json")
LAYERED = ("layered", ".json")
KINDS = (STATES, OWN_SCORES, LAYERED)

# A writer that was killed leaves its half; no write takes as long.
_STALE_SECONDS = 3600
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\..*\.partial")


@dataclass(frozen=True)
class CachedFile:
    """One file, its size in bytes, and when it was last used, in seconds since the epoch."""

    path: Path
    kind: str
    size: int
    used: float


@dataclass(frozen=True)
class CachedFiles:
    """The files of one kind: ``FOLDER/ab/abcdef….ENDING``."""

    folder: Path
    ending: str

    def path(self, key: str) -> Path:
        """Where the file of a key is, if it is there."""
        return self.folder / key[:2] / f"{key}{self.ending}"

    def read(self, key: str) -> bytearray | None:
        """What is kept under a key, which is thereby used; None if nothing is.

        Raises:
            OSError: it cannot be read.
        """
        path = self.path(key)
        try:
            with path.open("rb", buffering=0) as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                view, filled = memoryview(data), 0
                while count := file.readinto(view[filled:]):
                    filled += count
        except (FileNotFoundError, NotADirectoryError):
            return None
        with suppress(OSError):  # of a folder that may only be read
            os.utime(path)
        return data

    def write(self, key: str, *parts: bytes | memoryview) -> None:
        """Keep something; whoever reads at the same time sees what was there before, or this.

        Args:
            parts: written one after the other.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(parts)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise

    def discard(self, key: str) -> None:
        """Remove what is kept under a key, as far as that is possible."""
        with suppress(OSError):
            self.path(key).unlink()

    def found(self) -> Iterator[CachedFile]:
        """Every file, in no order. What has another name or place is not ours."""
        name = re.compile(rf"([0-9a-f]{{64}}){re.escape(self.ending)}")
        for entry in self._entries():
            if (match := name.fullmatch(entry.name)) and entry.path == str(self.path(match[1])):
                with suppress(OSError):  # another process was quicker
                    status = entry.stat(follow_symlinks=False)
                    path = Path(entry.path)
                    yield CachedFile(path, self.folder.name, status.st_size, status.st_mtime)

    def make_room(self, size: int, limit: int) -> None:
        """Give up the least recently used files until ``size`` bytes more are within the limit."""
        self.sweep()
        files = sorted(self.found(), key=lambda file: (file.used, file.path))
        excess = sum(file.size for file in files) + size - limit
        for file in files:
            if excess <= 0:
                return
            with suppress(OSError):
                file.path.unlink()
                logger.info("%s: given up for a newer one", file.path)
            excess -= file.size

    def sweep(self) -> None:
        """Remove what killed writers left."""
        for entry in self._entries():
            if _PARTIAL.fullmatch(entry.name):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)

    def _entries(self) -> Iterator["os.DirEntry[str]"]:
        """Regular files one folder below; no link is followed out of the cache."""
        if self.folder.is_symlink():
            return
        for folder in _scan(self.folder):
            if folder.is_dir(follow_symlinks=False):
                for entry in _scan(folder.path):
                    if entry.is_file(follow_symlinks=False):
                        yield entry


def open_cached_files(kind: tuple[str, str], *, enabled: bool = True) -> CachedFiles | None:
    """The files of a kind in the user's cache; None where it is switched off or has no place."""
    if not enabled:
        return None
    folder, ending = kind
    try:
        return CachedFiles(cache_folder() / folder, ending)
    except RuntimeError as error:  # a user without a home
        logger.info("no cache: %s", error)
        return None


def all_cached_files() -> list[CachedFile]:
    """Every file of every kind, the last used first."""
    opened = (open_cached_files(kind) for kind in KINDS)
    files = [file for one in opened if one is not None for file in one.found()]
    return sorted(files, key=lambda file: (-file.used, file.path))


def clear(files: Iterable[CachedFile]) -> tuple[list[CachedFile], list[str]]:
    """Remove files.

    Returns:
        Those that are gone, and why others are not.
    """
    gone, problems = [], []
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
            gone.append(file)
        except OSError as error:
            problems.append(f"{file.path}: {error.strerror or error}")
    return gone, problems


def size_limit() -> int:
    """Most bytes of states that are kept.

    Raises:
        InvalidRecipeError: the environment variable holds no size.
    """
    text = os.environ.get(SIZE_VARIABLE, "").strip()
    if not text:
        return _DEFAULT_SIZE
    if (limit := parse_size(text)) is None:
        raise InvalidRecipeError(
            f"environment variable {SIZE_VARIABLE}: got {text[:60]!r}; write a size such as 2GB, "
            "512MiB or 0 (keep no states)"
        )
    return limit


def _scan(folder: Path | str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
