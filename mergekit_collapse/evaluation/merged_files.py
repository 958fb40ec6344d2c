"""The files of a finished merge: whether they are all there, and what their tensors hold."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.findings import printable, shortened
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.preflight.checkpoint import read_checkpoint
from mergekit_collapse.preflight.model_source import LocalFolder, read_json
from mergekit_collapse.preflight.tokenizer_files import tokenizer_digest

_SINGLE = ("model.safetensors", "pytorch_model.bin")
# TensorWriter's names for shards before it knows how many there will be.
_UNFINISHED = ("model-[0-9].safetensors", "model-[0-9][0-9].safetensors", "pytorch_model-[0-9].bin")


@dataclass(frozen=True)
class TensorSurvey:
    """What one pass over all tensors saw.

    Attributes:
        tensors: how many there are.
        not_finite: names of those with a NaN or an infinity.
        by_dtype: names of the floating-point tensors by dtype. Others have a dtype that their
            architecture prescribes, such as BERT's ``position_ids``.
    """

    tensors: int
    not_finite: tuple[str, ...]
    by_dtype: dict[torch.dtype, tuple[str, ...]]


def require_merge(folder: Path) -> None:
    """Refuse a path that is no merge, not even an unfinished one.

    Raises:
        InvalidRecipeError: no folder, a LoRA adapter, or neither a config.json nor weights.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InvalidRecipeError(f"{folder}: {what}; give the folder that the merge was written to")
    names = LocalFolder(folder).files()
    weights = [name for name in names if name.endswith((".safetensors", ".bin"))]
    if "adapter_config.json" in names and "config.json" not in names:
        raise InvalidRecipeError(
            f"{folder}: is a LoRA adapter, not a merged model; merge it into its base first"
        )
    if "config.json" not in names and not weights:
        raise InvalidRecipeError(
            f"{folder}: holds neither config.json nor weights, so it is no merged model; give the"
            " folder that the merge was written to"
        )


def incompleteness(folder: Path) -> str | None:
    """Why the folder holds no whole model, or None if it does.

    MergeKit writes the weights first, then their index, then config.json: whatever is missing,
    the merge was interrupted or a file was lost since.
    """
    source = LocalFolder(folder)
    started = sorted(p.name for kind in _UNFINISHED for p in folder.glob(kind))
    try:
        names = source.files()
        # Beside an older merge too: then the older is there whole, and not the one asked for.
        if started:
            return f"the merge was interrupted: {started[0]} is a shard with no place; merge again"
        if "config.json" not in names:
            return "config.json is missing, which MergeKit writes after the weights; merge again"
        read_json(source, "config.json")
        read_checkpoint(source)
        return _strays(source, names)
    except EvaluationError as error:
        return str(error)


def tokenizer_note(folder: Path) -> str:
    """What to say of the tokenizer, which a merge may do without."""
    try:
        found = tokenizer_digest(LocalFolder(folder)) is not None
    except EvaluationError as error:
        return f"the tokenizer cannot be read: {error}"
    return "with a tokenizer" if found else "without a tokenizer; copy one of an expert's into it"


def survey(folder: Path) -> TensorSurvey:
    """Look at every tensor, one in memory at a time.

    Raises:
        EvaluationError: a weight file cannot be read.
    """
    count, not_finite, by_dtype = 0, list[str](), dict[torch.dtype, list[str]]()
    with told_as_evaluation_error(f"model {folder}", "merge again"):
        for path in weight_paths(folder):
            for name, tensor in _tensors(path):
                count += 1
                if not tensor.is_floating_point():
                    continue
                by_dtype.setdefault(tensor.dtype, []).append(printable(name))
                if not _finite(tensor):
                    not_finite.append(printable(name))
    return TensorSurvey(count, tuple(not_finite), {k: tuple(v) for k, v in by_dtype.items()})


def weight_paths(folder: Path) -> list[Path]:
    """The weight files of a complete model, in order."""
    source = LocalFolder(folder)
    for single in _SINGLE:
        if source.has(f"{single}.index.json"):
            placed = read_json(source, f"{single}.index.json")["weight_map"]
            return [folder / name for name in sorted(set(placed.values()))]
        if source.has(single):
            return [folder / single]
    return []


def _strays(source: LocalFolder, names: frozenset[str]) -> str | None:
    """Tensors in the shards that the index does not know of."""
    index = f"{_SINGLE[0]}.index.json"
    if index not in names:
        return None
    placed: dict[str, Any] = read_json(source, index)["weight_map"]
    held = {name for shard in set(placed.values()) for name in source.header(shard).shapes}
    if extra := sorted(held - set(placed)):
        return f"{index} does not name {shortened(map(printable, extra))}; merge again"
    return None


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                yield name, file.get_tensor(name)
        return
    with warnings.catch_warnings():
        # torch deprecates a storage class that it uses itself.
        warnings.simplefilter("ignore")
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of torch before 1.6 cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    yield from tensors.items()


def _finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    # One byte wide, torch knows no minimum.
    low, high = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(low.isfinite() and high.isfinite())
