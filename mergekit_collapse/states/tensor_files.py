"""A model's tensors from disk, each read when it is asked for."""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.checkpoint import read_checkpoint
from mergekit_collapse.preflight.model_source import LocalFolder
from mergekit_collapse.preflight.tensor_headers import StoredTensor, read_header
from mergekit_collapse.states.dry_forward import NotLayeredError

_DTYPES = {
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
_SAMPLE = 4096
# Of a pool of hundreds of models, since many systems allow 1,024 open files: the others are
# opened for each read.
_MOST_OPEN = 256
_KEPT_OPEN: set[int] = set()


class TensorFiles:
    """The safetensors files of one folder.

    They are read and not mapped into memory: a mapped file that is cut short while it is read
    ends the process, and whatever was read of it counts as memory.

    Args:
        folder: of the model.

    Attributes:
        names: of all tensors.

    Raises:
        NotLayeredError: the weights are stored in another way.
        EvaluationError: a file is missing, truncated or no safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        checkpoint = read_checkpoint(LocalFolder(folder))
        if checkpoint.shard_of is None:
            raise NotLayeredError("its weights are pickled, and a pickle is read as a whole")
        self._files = {name: _ShardFile(folder / name) for name in checkpoint.shard_of.values()}
        self._file_of = {name: self._files[shard] for name, shard in checkpoint.shard_of.items()}
        self.names = frozenset(self._file_of)
        odd = {tensor.dtype for file in self._files.values() for tensor in file.tensors.values()}
        if odd - set(_DTYPES):
            raise NotLayeredError(f"it is quantized: its weights are {min(odd - set(_DTYPES))}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._file_of[name].tensors[name].shape

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor as it is stored."""
        tensor = self._file_of[name].tensors[name]
        return tensor.end - tensor.begin

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its stored precision, in memory of its own.

        Raises:
            EvaluationError: the file is gone, cut short or was written to meanwhile.
        """
        file = self._file_of[name]
        tensor = file.tensors[name]
        data = file.read(tensor.begin, tensor.end)
        return data.view(_DTYPES[tensor.dtype]).reshape(tensor.shape)

    def may_equal(self, name: str, other: "TensorFiles", its_name: str) -> bool:
        """Whether two stored tensors agree in type, shape and their first and last bytes."""
        mine, its = self._file_of[name].tensors[name], other._file_of[its_name].tensors[its_name]
        if (mine.dtype, mine.shape) != (its.dtype, its.shape):
            return False
        for at in {0, max(0, mine.end - mine.begin - _SAMPLE)}:
            length = min(_SAMPLE, mine.end - mine.begin - at)
            ours = self._file_of[name].read(mine.begin + at, mine.begin + at + length)
            theirs = other._file_of[its_name].read(its.begin + at, its.begin + at + length)
            if not torch.equal(ours, theirs):
                return False
        return True


class _ShardFile:
    """One safetensors file, kept open as long as it is needed unless many are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tensors: dict[str, StoredTensor] = dict(read_header(path).tensors)
        # Two threads that read would move each other's place.
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

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Bytes from ``begin`` to ``end``."""
        data = torch.empty(end - begin, dtype=torch.uint8)
        view = data.numpy().data
        done = 0
        try:
            with self._lock, self._file() as file:
                file.seek(begin)
                while done < len(view) and (got := file.readinto(view[done:])):
                    done += got
                changed = _stamp(file) != self._stamp
        except OSError as error:
            raise self._unreadable(error) from error
        if done < len(view) or changed:
            what = "was cut short" if done < len(view) else "was written to"
            raise EvaluationError(
                f"{self._path}: {what} while it was read; run again when nothing writes to it"
            )
        return data

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
