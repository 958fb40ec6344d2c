"""A model's tensors from disk, each read when it is asked for."""

from pathlib import Path

import torch

from mergekit_collapse.preflight.checkpoint import read_checkpoint
from mergekit_collapse.preflight.model_source import LocalFolder
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.shard_file import DTYPES, ShardFile

# Bytes that are compared at a time: of most tensors, and of what is probably equal.
_SAMPLE, _PIECE = 2**12, 2**24


class TensorFiles:
    """The safetensors files of one folder.

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
        self._files = {name: ShardFile(folder / name) for name in set(checkpoint.shard_of.values())}
        self._file_of = {name: self._files[shard] for name, shard in checkpoint.shard_of.items()}
        self.names = frozenset(self._file_of)
        odd = {tensor.dtype for file in self._files.values() for tensor in file.tensors.values()}
        if odd - set(DTYPES):
            raise NotLayeredError(f"it is quantized: its weights are {min(odd - set(DTYPES))}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._file_of[name].tensors[name].shape

    def empty(self, name: str, device: torch.device) -> torch.Tensor:
        """A tensor of that shape and stored precision, not yet read."""
        stored = self._file_of[name].tensors[name]
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device=device)

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor as it is stored."""
        tensor = self._file_of[name].tensors[name]
        return tensor.end - tensor.begin

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its stored precision, in memory of its own.

        Raises:
            EvaluationError: the file is gone, cut short or was written to meanwhile.
        """
        return self._file_of[name].tensor(name)

    def read_into(self, name: str, at: int, data: torch.Tensor) -> None:
        """Fill bytes, in the processor's memory, with a tensor's from its byte ``at``.

        Raises as ``read`` does. Several threads may read at a time.
        """
        self._file_of[name].read_into(self._file_of[name].tensors[name].begin + at, data)

    def may_equal(self, name: str, other: "TensorFiles", its_name: str) -> bool:
        """Whether two stored tensors agree in type, shape and their first and last bytes."""
        size = self.nbytes(name)
        return self._alike(name, other, its_name) and all(
            self._agree(name, other, its_name, at, min(_SAMPLE, size - at))
            for at in {0, max(0, size - _SAMPLE)}
        )

    def equal(self, name: str, other: "TensorFiles", its_name: str) -> bool:
        """Whether two stored tensors are the same bit for bit: -0 is not 0, and NaN is NaN."""
        size = self.nbytes(name)
        return self._alike(name, other, its_name) and all(
            self._agree(name, other, its_name, at, min(_PIECE, size - at))
            for at in range(0, size, _PIECE)
        )

    def _alike(self, name: str, other: "TensorFiles", its_name: str) -> bool:
        """Whether two tensors agree in type and shape."""
        mine, its = self._file_of[name].tensors[name], other._file_of[its_name].tensors[its_name]
        return (mine.dtype, mine.shape) == (its.dtype, its.shape)

    def _agree(self, name: str, other: "TensorFiles", its_name: str, at: int, size: int) -> bool:
        """Whether two tensors have the same bytes from ``at``."""
        ours, theirs = (torch.empty(size, dtype=torch.uint8) for _ in range(2))
        self.read_into(name, at, ours)
        other.read_into(its_name, at, theirs)
        return torch.equal(ours, theirs)
