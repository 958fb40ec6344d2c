"""Each expert's score on its own task, kept on disk so that it is measured once."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from mergekit.common import ModelReference

import mergekit_collapse
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.scoring_set import ScoringSet
from mergekit_collapse.preflight.model_source import LocalFolder, read_json, stays_inside
from mergekit_collapse.preflight.tensor_headers import header_length
from mergekit_collapse.preflight.weight_files import adapter_folder, model_folder
from mergekit_collapse.states.loader import LoadOptions

logger = logging.getLogger(__name__)

_FOLDER = "own-scores"
_WEIGHTS = (".safetensors", ".bin")
_INDEX = ".index.json"
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")


@dataclass(frozen=True)
class OwnScores:
    """The scores on disk, a small JSON file each; None for the folder is no cache at all."""

    folder: Path | None

    def get(self, key: str) -> float | None:
        """The score kept under a key; None if there is none, or no score to be trusted."""
        if self.folder is None:
            return None
        try:
            kept: Any = json.loads(self._path(self.folder, key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        # The key is in the file too: a file that was copied or cut is then no answer.
        if not isinstance(kept, dict) or kept.get("key") != key:
            return None
        score = kept.get("score")
        return score if type(score) is float and 0 <= score <= 1 else None

    def put(self, key: str, score: float, *, model: str, task: str) -> None:
        """Keep a score; its model and task are there for whoever opens the file."""
        if self.folder is None or not 0 <= score <= 1:
            return
        kept = {"key": key, "score": float(score), "model": model, "task": task}
        path = self._path(self.folder, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(kept, indent=1) + "\n")
        except OSError as error:
            logger.info("%s: not kept: %s", path, error)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"


def open_own_scores(enabled: bool) -> OwnScores:
    """The scores in the user's cache; nothing is kept or found where ``enabled`` is false."""
    try:
        return OwnScores(cache_folder() / _FOLDER if enabled else None)
    except RuntimeError as error:  # a user without a home
        logger.info("no cache: %s", error)
        return OwnScores(None)


def score_key(
    reference: ModelReference, scoring: ScoringSet, task: int, options: LoadOptions
) -> str:
    """Digest of all that an expert's score on a task depends on.

    That is the model's and the adapter's configuration, the headers, sizes and times of their
    weight files (not the data, which would take as long to read as to run), what is asked,
    the precision, the kind of device and the versions of what computes.

    Raises:
        EvaluationError: the expert's files are not there.
    """
    folders = [model_folder(reference.model, options.cache_dir, options.trust_remote_code)]
    if reference.lora is not None:
        folders.append(adapter_folder(reference.lora, options.cache_dir))
    try:
        files = [list(_identity(folder)) for folder in folders]
    except OSError as error:
        raise EvaluationError(
            f"model {reference}: a file cannot be read: {error}; check it and its rights"
        ) from error
    told = (
        files,
        reference.override_architecture,
        scoring.digest(task),
        str(options.dtype),
        torch.device(options.device).type,
        options.trust_remote_code,
        torch.__version__,
        transformers.__version__,
        mergekit_collapse.__version__,
    )
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _identity(folder: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name, size, time and header or content of every file that the model is made of."""
    for path in sorted(_files(folder)):
        status = path.stat()
        size, time = status.st_size, status.st_mtime_ns
        name = str(path.relative_to(folder))
        if path.suffix in _WEIGHTS:
            yield name, size, time, hashlib.sha256(_header(path, size)).hexdigest()
        elif path.name in _CONFIGS or path.name.endswith(_INDEX):
            yield name, size, 0, hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".py":
            yield name, size, time, ""


def _files(folder: Path) -> set[Path]:
    """Those at the top, and the shards of an index, which may lie in folders below."""
    found = {path for path in folder.iterdir() if path.is_file()}
    for index in folder.glob(f"*{_INDEX}"):
        placed = read_json(LocalFolder(folder), index.name).get("weight_map")
        names = placed.values() if isinstance(placed, dict) else ()
        found |= {folder / n for n in names if stays_inside(n) and (folder / n).is_file()}
    return found


def _header(path: Path, size: int) -> bytes:
    if path.suffix != ".safetensors":
        return b""
    with path.open("rb") as file:
        return file.read(header_length(file.read(8), size, str(path)))


def _write(path: Path, text: str) -> None:
    """Beside its place, then renamed, so that no half of it is ever read."""
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
