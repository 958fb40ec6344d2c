"""A model's states as the bytes of one safetensors file, and back only if they are the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.model_states import ModelRequest, ModelStates, answer_rows
from mergekit_collapse.states.states import LayerStatistics, ModelLayers

FORMAT = "mergekit-collapse states 1"
_NO_DIGEST = "0" * 64
_DIGEST = b'"blake2b":"'


class UnusableRecordError(Exception):
    """Bytes that are no such record; says why."""


def to_bytes(found: ModelStates, key: str, described: Mapping[str, str]) -> bytes:
    """The record as safetensors, with a BLAKE2 digest of every other byte in its metadata.

    Args:
        key: what the record is kept under.
        described: for whoever lists it, such as its model.
    """
    tensors = {f"hidden.{i}": np.ascontiguousarray(v) for i, v in enumerate(found.hidden)}
    tensors["rows_per_probe"] = found.rows_per_probe
    if found.answers is not None:
        tensors["answers"] = np.ascontiguousarray(found.answers)
    if found.layers is not None:
        spread = [(s.variance, s.effective_rank) for s in found.layers.statistics]
        tensors["layers.statistics"] = np.array(spread, dtype=np.float64)
        tensors |= {
            f"layers.{i}": np.ascontiguousarray(v) for i, v in enumerate(found.layers.pooled)
        }
    told = {"answers_reason": found.answers_reason, "unlayered": found.unlayered, **described}
    metadata = {"format": FORMAT, "key": key, "blake2b": _NO_DIGEST, "told": json.dumps(told)}
    data = bytearray(save(tensors, metadata))
    start = _digest_place(data)
    data[start : start + len(_NO_DIGEST)] = _digest(data, start).encode()
    return bytes(data)


def from_bytes(
    data: bytes, key: str, probes: TokenizedProbes, request: ModelRequest
) -> ModelStates:
    """The record, once every byte of it is what was written and fits what is asked.

    A profile that was not asked for is left out.

    Raises:
        UnusableRecordError: it is not.
    """
    start = _digest_place(data)
    if data[start : start + len(_NO_DIGEST)] != _digest(data, start).encode():
        raise UnusableRecordError("its checksum is not that of its content")
    try:
        tensors = load(data)
        metadata = _metadata(data)
        told = json.loads(metadata["told"])
        if (metadata["format"], metadata["key"]) != (FORMAT, key):
            raise UnusableRecordError("it was written for something else")
        return _fitting(tensors, told, probes, request)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableRecordError(f"it cannot be read: {error!r}") from error


def described(start: bytes) -> dict[str, Any]:
    """What a record says of itself, from the beginning of its file; empty if that is no record."""
    try:
        told = json.loads(_metadata(start)["told"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


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
    pooled = tuple(tensors.pop(f"layers.{i}") for i in range(depth + 1))
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


def _metadata(data: bytes) -> dict[str, str]:
    found = json.loads(_header(data))["__metadata__"]
    return found if isinstance(found, dict) else {}


def _digest_place(data: bytes | bytearray) -> int:
    """Where the digest stands; in a value these bytes would have backslashes between them."""
    place = _header(data).find(_DIGEST)
    if place < 0:
        raise UnusableRecordError("it is no record of states, or was cut short")
    return 8 + place + len(_DIGEST)


def _digest(data: bytes | bytearray, start: int) -> str:
    view = memoryview(data)
    seen = hashlib.blake2b(digest_size=len(_NO_DIGEST) // 2)
    seen.update(view[:start])
    seen.update(view[start + len(_NO_DIGEST) :])
    return seen.hexdigest()
