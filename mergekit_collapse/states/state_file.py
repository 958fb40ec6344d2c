"""A model's states as the bytes of one safetensors file, and back only if they are the same."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.model_states import ModelRequest, ModelStates, answer_rows
from mergekit_collapse.states.states import LayerStatistics, ModelLayers

FORMAT = "mergekit-collapse states 1"
_NO_DIGEST = "0" * 64
# In a value these bytes would have backslashes between them.
_DIGEST = b'"blake2b":"'
# Little-endian, as safetensors has it: names in the format, and numpy's.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype.str: name for name, dtype in _DTYPES.items()}


class UnusableRecordError(Exception):
    """Bytes that are no such record; says why."""


def to_parts(
    found: ModelStates, key: str, described: Mapping[str, str]
) -> list[bytes | memoryview]:
    """The record as safetensors, with a BLAKE2 digest of every other byte in its metadata.

    Args:
        key: what the record is kept under.
        described: for whoever lists it, such as its model.

    Returns:
        What the file holds, one after the other: nothing large is copied.
    """
    tensors = {f"hidden.{i}": values for i, values in enumerate(found.hidden)}
    tensors["rows_per_probe"] = found.rows_per_probe
    if found.answers is not None:
        tensors["answers"] = found.answers
    if found.layers is not None:
        spread = [(s.variance, s.effective_rank) for s in found.layers.statistics]
        tensors["layers.statistics"] = np.array(spread, dtype=np.float64)
        tensors |= {f"layers.{i}": values for i, values in enumerate(found.layers.pooled)}
    told = {"answers_reason": found.answers_reason, "unlayered": found.unlayered, **described}
    metadata = {"format": FORMAT, "key": key, "blake2b": _NO_DIGEST, "told": json.dumps(told)}
    entries: dict[str, Any] = {"__metadata__": metadata}
    parts: list[bytes | memoryview] = []
    end = 0
    # The wide ones first, so that each lies at a multiple of its width.
    for name, values in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        start, end = end, end + values.nbytes
        entries[name] = {
            "dtype": _NAMES[values.dtype.str],
            "shape": values.shape,
            "data_offsets": (start, end),
        }
        parts.append(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    before, after = header.split(_DIGEST + _NO_DIGEST.encode())
    before += _DIGEST
    return [before, _digest(before, after, *parts).encode(), after, *parts]


def from_bytes(
    data: bytearray, key: str, probes: TokenizedProbes, request: ModelRequest
) -> ModelStates:
    """The record, once every byte of it is what was written and fits what is asked.

    A profile that was not asked for is left out.

    Args:
        data: all of the file; the result looks into it.

    Raises:
        UnusableRecordError: it is not.
    """
    start = _header(data).find(_DIGEST)
    if start < 0:
        raise UnusableRecordError("it is no record of states, or was cut short")
    start += 8 + len(_DIGEST)
    view, end = memoryview(data), start + len(_NO_DIGEST)
    if data[start:end] != _digest(view[:start], view[end:]).encode():
        raise UnusableRecordError("its checksum is not that of its content")
    try:
        entries = json.loads(_header(data))
        metadata = entries.pop("__metadata__")
        told = json.loads(metadata["told"])
        if (metadata["format"], metadata["key"]) != (FORMAT, key):
            raise UnusableRecordError("it was written for something else")
        tensors = {name: _tensor(data, entry) for name, entry in entries.items()}
        return _fitting(tensors, told, probes, request)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableRecordError(f"it cannot be read: {error!r}") from error


def described(start: bytes) -> Mapping[str, Any]:
    """What a record says of itself, from the beginning of its file; empty if that is no record."""
    try:
        told = json.loads(json.loads(_header(start))["__metadata__"]["told"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _tensor(data: bytearray, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    start = 8 + len(_header(data)) + entry["data_offsets"][0]
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    values: np.ndarray = flat.reshape(shape)
    return values


def _fitting(
    tensors: dict[str, np.ndarray],
    told: dict[str, Any],
    probes: TokenizedProbes,
    request: ModelRequest,
) -> ModelStates:
    count = len(probes.probes)
    rows = tensors.pop("rows_per_probe")
    if rows.shape != (count,) or rows.dtype != np.int64 or not (rows >= 1).all():
        raise UnusableRecordError("it is of other probes")
    hidden = tuple(tensors.pop(f"hidden.{i}") for i in range(len(request.layers)))
    for values in hidden:
        _require(values, int(rows.sum()))
    answers = tensors.pop("answers", None)
    if answers is not None:
        _require(answers, int(answer_rows(probes).sum()))
    if (answers is None) != isinstance(told["answers_reason"], str):
        raise UnusableRecordError("it lacks answers, or the reason why")
    found = ModelStates(hidden, rows, answers, told["answers_reason"], None, told["unlayered"])
    if "layers.statistics" in tensors:
        found = replace(found, layers=_layers(tensors, count, request.depth))
    if tensors:
        raise UnusableRecordError(f"it holds what it should not: {sorted(tensors)[:3]}")
    return found if request.profile else replace(found, layers=None, unlayered=False)


def _layers(tensors: dict[str, np.ndarray], count: int, depth: int) -> ModelLayers:
    spread = tensors.pop("layers.statistics")
    if spread.shape != (depth + 1, 2) or spread.dtype != np.float64 or not _finite(spread):
        raise UnusableRecordError("the spread of its layers is none")
    # Copies, since they outlive the rest of the file.
    pooled = tuple(tensors.pop(f"layers.{i}").copy() for i in range(depth + 1))
    for values in pooled:
        _require(values, count)
    return ModelLayers(pooled, tuple(LayerStatistics(float(v), float(r)) for v, r in spread))


def _require(values: np.ndarray, rows: int) -> None:
    if values.ndim != 2 or len(values) != rows or values.dtype != np.float32:
        raise UnusableRecordError("its states have another shape")
    if not _finite(values):
        raise UnusableRecordError("its states are NaN or infinite")


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


def _header(data: bytes | bytearray) -> bytes:
    return bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _digest(*parts: bytes | memoryview) -> str:
    seen = hashlib.blake2b(digest_size=len(_NO_DIGEST) // 2)
    for part in parts:
        seen.update(part)
    return seen.hexdigest()
