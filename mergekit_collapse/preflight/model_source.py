"""Where a model's files lie, a local folder or the Hugging Face hub, seen without its weights."""

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

from mergekit.common import ModelPath

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.hub_repository import MAX_TEXT_BYTES, find_on_hub
from mergekit_collapse.preflight.tensor_headers import TensorHeader, read_header


@runtime_checkable
class ModelSource(Protocol):
    """A model's files by name."""

    @property
    def where(self) -> str:
        """The folder or the hub id, as a message should name it."""

    def files(self) -> frozenset[str]:
        """Names of the files at the top level."""

    def has(self, name: str) -> bool:
        """Whether there is such a file, perhaps in a folder below."""

    def text(self, name: str) -> bytes:
        """A small file, such as ``config.json``."""

    def header(self, name: str) -> TensorHeader:
        """The header of a safetensors file."""

    def complete_archive(self, name: str) -> bool:
        """Whether a ``.bin`` is not visibly cut short."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    folder: Path

    @property
    def where(self) -> str:
        return str(self.folder)

    def files(self) -> frozenset[str]:
        try:
            return frozenset(p.name for p in self.folder.iterdir() if not p.is_dir())
        except OSError as problem:
            raise _unreadable(self.folder, problem) from problem

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def text(self, name: str) -> bytes:
        path = self.folder / name
        try:
            if not path.is_file():
                raise EvaluationError(f"{path}: is no readable file; restore it")
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise EvaluationError(
                    f"{path}: is {path.stat().st_size:,} bytes, which no such file needs; check it"
                )
            return path.read_bytes()
        except OSError as problem:
            raise _unreadable(path, problem) from problem

    def header(self, name: str) -> TensorHeader:
        return read_header(self.folder / name)

    def complete_archive(self, name: str) -> bool:
        path = self.folder / name
        try:
            with open(path, "rb", buffering=0) as file:
                # Files of torch before 1.6 are plain pickles, which have no end to look for.
                return file.read(2) != b"PK" or zipfile.is_zipfile(path)
        except OSError as problem:
            raise _unreadable(path, problem) from problem


def open_source(model: ModelPath, cache_dir: str | None = None) -> ModelSource:
    """Find a model as MergeKit does: an existing path is local, anything else a hub id.

    Raises:
        EvaluationError: neither a folder, nor a repository that can be reached or is cached.
    """
    path = Path(model.path)
    if path.is_dir():
        return LocalFolder(path)
    if path.exists():
        raise EvaluationError(
            f"{model}: is a file, but a model is a folder; name the folder that holds it"
        )
    if path.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1:
        raise EvaluationError(
            f"{model}: there is no such folder (seen from {os.getcwd()}); correct the path, "
            "which is relative to the working directory and has no ~"
        )
    found = find_on_hub(model, cache_dir)
    return LocalFolder(found) if isinstance(found, Path) else found


def read_json(source: ModelSource, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        EvaluationError: the file is missing, is not UTF-8 or holds anything else.
    """
    try:
        value = json.loads(source.text(name).decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise EvaluationError(
            f"{source.where}: {name} is not valid JSON: {problem}; restore the file"
        ) from problem
    if not isinstance(value, dict):
        raise EvaluationError(
            f"{source.where}: {name} holds a {type(value).__name__} where an object is due; "
            "restore the file"
        )
    return value


def stays_inside(name: object) -> bool:
    """Whether a file name from an index cannot lead out of the model's folder."""
    if not isinstance(name, str) or not name:
        return False
    # Judged by its letters: symbolic links are how the hub's own cache is made.
    kinds = PurePosixPath(name), PureWindowsPath(name)
    return not any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in kinds)


def _unreadable(path: Path, problem: OSError) -> EvaluationError:
    reason = problem.strerror or problem
    return EvaluationError(f"{path}: cannot be read: {reason}; check the path and its rights")
