"""Names and shapes of a checkpoint's tensors, from safetensors headers alone.

A safetensors file is an 8-byte little-endian length n, n bytes of JSON and the data
(https://github.com/huggingface/safetensors, "Format"). The JSON gives every tensor's place in
the data, so that the length of the file alone tells a truncated one; no data is read.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file.

    Attributes:
        dtype: in the format's own names, such as ``BF16``.
        shape: of the tensor.
        begin: its first byte, counted from the beginning of the file.
        end: the byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorHeader:
    """The tensors of one file, by name."""

    tensors: Mapping[str, StoredTensor]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by tensor name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def bytes_of_dtype(self) -> Mapping[str, int]:
        """Bytes of data by dtype."""
        held: dict[str, int] = {}
        for tensor in self.tensors.values():
            held[tensor.dtype] = held.get(tensor.dtype, 0) + tensor.end - tensor.begin
        return held


def read_header(path: Path) -> TensorHeader:
    """Read the header of a local safetensors file, and not a byte further.

    Raises:
        EvaluationError: unreadable, not safetensors, or of another length than its header says.
    """
    try:
        status = os.stat(path)
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise EvaluationError(f"{path}: is not a regular file; put the shard itself there")
        # Unbuffered: a buffer would read ahead into the data.
        with open(path, "rb", buffering=0) as file:
            length = header_length(file.read(8), status.st_size, str(path))
            return parse_header(file.read(length), status.st_size, str(path))
    except OSError as problem:
        raise EvaluationError(
            f"{path}: cannot be read: {problem.strerror or problem}; check the file and its rights"
        ) from problem


def header_length(start: bytes, file_bytes: int, where: str) -> int:
    """The length that the first 8 bytes announce, once it can be true.

    Raises:
        EvaluationError: no header of that length can be in a file of ``file_bytes``.
    """
    if start == b"version ":
        raise EvaluationError(
            f"{where}: is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
        )
    if len(start) < 8:
        raise EvaluationError(
            f"{where}: is truncated: {len(start)} bytes, not even the 8 of a safetensors "
            "length; fetch the file again"
        )
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES or length > file_bytes - 8:
        raise EvaluationError(
            f"{where}: is no safetensors file or is truncated: it announces a header of "
            f"{length:,} bytes in a file of {file_bytes:,}; fetch or save the file again"
        )
    return length


def parse_header(text: bytes, file_bytes: int, where: str) -> TensorHeader:
    """Check a header against the length of its file.

    Raises:
        EvaluationError: the header is malformed, or the file is shorter or longer than it says.
    """
    try:
        entries = json.loads(text.decode("utf-8"))
        if not isinstance(entries, dict):
            raise ValueError("it is not a JSON object")
        entries.pop("__metadata__", None)
        start = 8 + len(text)
        tensors = {name: _tensor(name, entry, start) for name, entry in entries.items()}
    # Deep nesting makes the JSON parser recurse without end.
    except (ValueError, RecursionError) as problem:
        raise EvaluationError(
            f"{where}: has a broken safetensors header: {problem}; fetch or save the file again"
        ) from problem
    expected = max((tensor.end for tensor in tensors.values()), default=start)
    if file_bytes != expected:
        state = "truncated" if file_bytes < expected else "longer than its header says"
        raise EvaluationError(
            f"{where}: is {state}: {file_bytes:,} bytes where its header needs {expected:,}; "
            "fetch or save the file again"
        )
    return TensorHeader(tensors)


def _tensor(name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of a header whose data begin at ``start``."""
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name!r} is not described by an object")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets):
        raise ValueError(f"tensor {name!r} lacks a valid dtype, shape or data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} lies at {offsets}")
    held, bits = offsets[1] - offsets[0], _BITS.get(dtype)
    # An unknown dtype is a newer format's: its length cannot be checked.
    if bits is not None and held * 8 != math.prod(shape) * bits:
        raise ValueError(f"tensor {name!r} of shape {shape} and dtype {dtype} has {held} bytes")
    return StoredTensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
