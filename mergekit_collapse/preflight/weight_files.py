"""Where a model's files are, and whether they are the very ones that MergeKit would merge."""

import os
from pathlib import Path

import huggingface_hub
from mergekit.common import ModelPath

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.preflight.hub_repository import unreachable

# The same names, in MergeKit's own order of preference.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


def model_folder(path: ModelPath, cache_dir: str | None, with_code: bool) -> Path:
    """Local folder of a full model, fetched from the Hub where it is not a folder already.

    Fetching first and loading from the folder keeps two of transformers' habits out: a
    request to the Hub to convert ``.bin`` files, and reading other files than MergeKit.

    Raises:
        EvaluationError: nothing there, no weights, or two sets of weights.
    """
    folder = _folder(path, cache_dir, _WEIGHTS, with_code)
    found = [n for n in _WEIGHTS if _exists(folder, n) or _exists(folder, f"{n}.index.json")]
    if _exists(folder, "adapter_config.json"):
        if found:
            raise EvaluationError(
                f"model {path}: the folder {folder} holds both a model and an adapter"
                " (adapter_config.json); MergeKit would merge the model without it. Move the"
                " adapter to a folder of its own and name it as model+adapter"
            )
        raise EvaluationError(
            f"model {path}: {folder} holds an adapter, not a model; write it as base+{path}"
        )
    if not found:
        raise EvaluationError(
            f"model {path}: no model.safetensors or pytorch_model.bin, single or with an index,"
            f" in {folder}; copy or download the weights again"
        )
    if _exists(folder, found[0]) and _exists(folder, f"{found[0]}.index.json"):
        raise EvaluationError(
            f"model {path}: {folder} has both {found[0]} and {found[0]}.index.json, and MergeKit"
            " and transformers disagree on which to read; remove the stale one"
        )
    return folder


def adapter_folder(path: ModelPath, cache_dir: str | None) -> Path:
    """Local folder of a PEFT adapter, fetched from the Hub where it is not a folder already.

    Raises:
        EvaluationError: nothing there, no adapter_config.json, or no weights.
    """
    folder = _folder(path, cache_dir, _ADAPTERS, with_code=False)
    if not _exists(folder, "adapter_config.json") or not any(_exists(folder, n) for n in _ADAPTERS):
        raise EvaluationError(
            f"adapter {path}: {folder} lacks adapter_config.json or"
            " adapter_model.safetensors (or .bin); copy or download the adapter again"
        )
    return folder


def has_safetensors(folder: Path) -> bool:
    """Whether the folder's weights are safetensors, which then win over ``.bin``."""
    return _exists(folder, _WEIGHTS[0]) or _exists(folder, f"{_WEIGHTS[0]}.index.json")


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def _folder(
    path: ModelPath, cache_dir: str | None, weights: tuple[str, ...], with_code: bool
) -> Path:
    if os.path.isdir(path.path):
        return Path(path.path)
    patterns = ["*.json", "tokenizer.model", "*.safetensors"] + ["*.py"] * with_code
    try:
        folder = _download(path, cache_dir, patterns)
        if not any(folder.glob("*.safetensors")):
            folder = _download(path, cache_dir, [*patterns, "*.bin"])
    # The hub client's transport, and so its errors, differ between its versions.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise EvaluationError(
                f"model {path}: could not be downloaded: {first_line(error)}; free disk space or"
                " choose another cache folder"
            ) from error
        raise unreachable(f"model {path}", error) from error
    return folder


def _download(path: ModelPath, cache_dir: str | None, patterns: list[str]) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            path.path, revision=path.revision, cache_dir=cache_dir, allow_patterns=patterns
        )
    )
