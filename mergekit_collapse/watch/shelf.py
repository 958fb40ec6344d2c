"""Tensors that wait for their turn on disk, in one temporary file that leaves no trace."""

import tempfile
import weakref
from dataclasses import dataclass
from io import BufferedRandom

import torch

from mergekit_collapse.errors import EvaluationError


@dataclass(frozen=True)
class Shelved:
    """A tensor that was put on a shelf."""

    shelf: "Shelf"
    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def take(self) -> torch.Tensor:
        """The tensor, bit for bit, on the processor.

        Raises:
            EvaluationError: the file cannot be read back.
        """
        return self.shelf.read(self)


class Shelf:
    """Keeps tensors out of memory; the file is made by the first and gone with the shelf."""

    def __init__(self) -> None:
        self._file: BufferedRandom | None = None
        self._end = 0

    def put(self, tensor: torch.Tensor) -> Shelved:
        """Write a tensor away.

        Raises:
            EvaluationError: the disk is full.
        """
        plain = tensor.detach().cpu().contiguous()
        shelved = Shelved(self, self._end, plain.shape, plain.dtype)
        data = plain.reshape(-1).view(torch.uint8).numpy().data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="mergekit-collapse-")  # noqa: SIM115  (it stays open as long as the shelf is there)
                weakref.finalize(self, self._file.close)
            self._file.seek(self._end)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise EvaluationError(
                f"tensors that wait for their layer need {(self._end + data.nbytes) / 2**30:.1f}"
                f" GiB in {tempfile.gettempdir()}: {error.strerror}; free some space, or set"
                " TMPDIR to a larger disk"
            ) from error
        self._end += data.nbytes
        return shelved

    def read(self, shelved: Shelved) -> torch.Tensor:
        """As ``Shelved.take``."""
        assert self._file is not None
        found = torch.empty(shelved.shape, dtype=shelved.dtype)
        data = found.reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(shelved.offset)
        if self._file.readinto(data) != data.nbytes:
            raise EvaluationError(
                f"a tensor that waited in {tempfile.gettempdir()} cannot be read back; merge again"
            )
        return found
