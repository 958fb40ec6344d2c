"""A model's weight files: names, shapes and dtypes of what MergeKit would load."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.model_source import ModelSource, read_json, stays_inside


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a model.

    Attributes:
        file_format: ``safetensors`` or ``bin``.
        shapes: shape by tensor name; a shape that only the weights would tell is None.
            None as a whole where not even the names are known (a single ``.bin``).
        bytes_of_dtype: bytes of data by dtype; empty for ``.bin``.
        total_bytes: of all tensors, or what the index says; None where unknown.
        shard_of: the file of every tensor; None for ``.bin``.
    """

    file_format: str
    shapes: Mapping[str, tuple[int, ...] | None] | None
    bytes_of_dtype: Mapping[str, int]
    total_bytes: int | None
    shard_of: Mapping[str, str] | None = None


def read_checkpoint(source: ModelSource) -> Checkpoint:
    """Names, shapes and dtypes of the tensors that MergeKit would load from here.

    Raises:
        EvaluationError: there are no such weights, or a shard is missing, truncated or foreign.
    """
    names = source.files()
    # MergeKit's own order of preference.
    for single, file_format in (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin")):
        index = f"{single}.index.json"
        if single in names and index in names:
            raise EvaluationError(
                f"{source.where}: has both {single} and {index}, and MergeKit and transformers "
                "disagree on which to read; remove the stale one"
            )
        if index in names:
            return _indexed(source, index, file_format)
        if single in names:
            return _single(source, single, file_format)
    raise EvaluationError(no_weights(source))


def no_weights(source: ModelSource) -> str:
    """What to say of a model without weights that MergeKit reads."""
    names = source.files()
    if any(name.lower().endswith(".gguf") for name in names):
        return (
            f"{source.where}: has GGUF weights only, which MergeKit cannot merge; convert them "
            "to safetensors first, or take the original model"
        )
    other = sorted(n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".pth")))
    found = f"found {other[0]}" if other else "found no weight file"
    return (
        f"{source.where}: lacks model.safetensors, pytorch_model.bin and an index of either "
        f"({found}); save the model with save_pretrained, or download it in full"
    )


def _single(source: ModelSource, name: str, file_format: str) -> Checkpoint:
    if file_format == "bin":
        _check_archives(source, [name])
        return Checkpoint("bin", None, {}, None)
    header = source.header(name)
    held = header.bytes_of_dtype
    shapes, shard_of = header.shapes, dict.fromkeys(header.tensors, name)
    return Checkpoint("safetensors", dict(shapes), held, sum(held.values()), shard_of)


def _indexed(source: ModelSource, index_name: str, file_format: str) -> Checkpoint:
    index = read_json(source, index_name)
    placed, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(placed, dict) or not placed:
        raise EvaluationError(f"{source.where}: {index_name} has no weight_map; restore the file")
    outside = sorted(str(name) for name in placed.values() if not stays_inside(name))
    if outside:
        raise EvaluationError(
            f"{source.where}: {index_name} leads out of the model's folder, to {outside[0]!r}; "
            "do not use this model before you know where it comes from"
        )
    shards = sorted(set(placed.values()))
    missing = [name for name in shards if not source.has(name)]
    if missing:
        raise EvaluationError(
            f"{source.where}: {len(missing)} of the {len(shards)} shards that {index_name} names "
            f"are missing, the first is {missing[0]}; download them again"
        )
    if file_format == "bin":
        _check_archives(source, shards)
        total: Any = metadata.get("total_size") if isinstance(metadata, dict) else None
        return Checkpoint("bin", dict.fromkeys(placed), {}, total if type(total) is int else None)
    # On the hub every header costs two round trips.
    with ThreadPoolExecutor(8) as pool:
        headers = dict(zip(shards, pool.map(source.header, shards), strict=True))
    lost = [name for name, shard in placed.items() if name not in headers[shard].tensors]
    if lost:
        raise EvaluationError(
            f"{source.where}: {len(lost)} tensors are not in the shard where {index_name} places "
            f"them, the first is {lost[0]} in {placed[lost[0]]}; download the model again"
        )
    held: dict[str, int] = {}
    for header in headers.values():
        for dtype, count in header.bytes_of_dtype.items():
            held[dtype] = held.get(dtype, 0) + count
    shapes = {name: headers[shard].tensors[name].shape for name, shard in placed.items()}
    return Checkpoint("safetensors", shapes, held, sum(held.values()), placed)


def _check_archives(source: ModelSource, shards: list[str]) -> None:
    for name in shards:
        if not source.complete_archive(name):
            raise EvaluationError(f"{source.where}: {name} is truncated; fetch the file again")
