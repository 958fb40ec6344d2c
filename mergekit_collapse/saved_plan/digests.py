"""Digests of files of any size, read as streams."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.saved_plan.record import PlannedFile

_CHUNK = 2**20
# Size, time and place on the disk: of a file that nobody touched all three stay.
Stamp = tuple[int, int, int]


def digests(paths: Iterable[Path], *, progress: bool) -> dict[Path, PlannedFile]:
    """SHA-256 of every file; one under several names is read once.

    Args:
        progress: whether to show a bar.

    Raises:
        EvaluationError: a file cannot be read.
    """
    paths = list(paths)
    places = {path: Path(os.path.realpath(path)) for path in paths}
    total = sum(stamp(place)[0] for place in set(places.values()))
    found: dict[Path, PlannedFile] = {}
    with tqdm(
        total=total, desc="Hashing inputs", unit="B", unit_scale=True, disable=not progress
    ) as bar:
        for place in dict.fromkeys(places.values()):
            found[place] = _digest(place, bar)
    return {path: found[place] for path, place in places.items()}


def stamp(path: Path) -> Stamp:
    """What changes with the file, at no cost.

    Raises:
        EvaluationError: it is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def _digest(path: Path, bar: "tqdm[Any]") -> PlannedFile:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise _unreadable(path, error) from error
    return PlannedFile(bytes=size, sha256=digest.hexdigest())


def _unreadable(path: Path, error: OSError) -> EvaluationError:
    return EvaluationError(
        f"{path}: cannot be read: {error.strerror or error}; check the file and its rights"
    )
