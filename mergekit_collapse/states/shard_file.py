"""One safetensors file, whose tensors are read when they are asked for."""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.tensor_headers import StoredTensor, read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Of a pool of hundreds of models, since many systems allow 1,024 open files: the others are
# opened for each read.
_MOST_OPEN = 256
_KEPT_OPEN: set[int] = set()


class ShardFile:
    """Kept open as long as it is needed, unless many files are.

    It is read and not mapped into memory: a mapped file that is cut short while it is read
    ends the process, and whatever was read of it counts as memory.

    Attributes:
        tensors: of the header, by name.

    Raises:
        EvaluationError: the file is missing, truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tensors: dict[str, StoredTensor] = dict(read_header(path).tensors)
        self._lock = threading.Lock()
        self._kept: FileIO | None = None
        try:
            file = FileIO(path, "rb")
            self._stamp = _stamp(file)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(_KEPT_OPEN) >= _MOST_OPEN:
            file.close()
            return
        self._kept = file
        _KEPT_OPEN.add(file.fileno())
        weakref.finalize(self, _let_go, file)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored precision, in memory of its own.

        Raises:
            EvaluationError: the file is gone, cut short or was written to meanwhile, or the
                tensor's type is none of ``DTYPES``.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in DTYPES:
            raise EvaluationError(
                f"{self._path}: the tensor {name} is {tensor.dtype}, which cannot be computed "
                f"with; store it as one of {', '.join(DTYPES)}"
            )
        data = self.read(tensor.begin, tensor.end)
        return data.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Bytes from ``begin`` to ``end``; raises as ``tensor`` does."""
        data = torch.empty(end - begin, dtype=torch.uint8)
        self.read_into(begin, data)
        return data

    def read_into(self, begin: int, data: torch.Tensor) -> None:
        """Fill bytes, in the processor's memory, with the file's from ``begin``.

        Raises as ``tensor`` does. Several threads may read at a time.
        """
        view = data.numpy().data
        done = 0
        try:
            with self._file() as file:
                while done < len(view) and (got := self._some(file, begin + done, view[done:])):
                    done += got
                changed = _stamp(file) != self._stamp
        except OSError as error:
            raise self._unreadable(error) from error
        if done < len(view) or changed:
            what = "was cut short" if done < len(view) else "was written to"
            raise EvaluationError(
                f"{self._path}: {what} while it was read; run again when nothing writes to it"
            )

    def _some(self, file: FileIO, at: int, view: memoryview) -> int:
        """Read as much as comes at once."""
        if hasattr(os, "preadv"):
            # macOS takes no more than 2 GiB at a time.
            return os.preadv(file.fileno(), [view[: 2**30]], at)
        # Two threads that read would move each other's place.
        with self._lock:
            file.seek(at)
            return file.readinto(view)

    @contextmanager
    def _file(self) -> Iterator[FileIO]:
        if self._kept is not None:
            yield self._kept
            return
        with FileIO(self._path, "rb") as file:
            yield file

    def _unreadable(self, error: OSError) -> EvaluationError:
        return EvaluationError(
            f"{self._path}: cannot be read: {error.strerror or error}; check the file and its disk"
        )


def _stamp(file: FileIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _let_go(file: FileIO) -> None:
    _KEPT_OPEN.discard(file.fileno())
    file.close()
