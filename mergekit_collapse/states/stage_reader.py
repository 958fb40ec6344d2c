"""Stages brought from files to where the forward passes are."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

import torch

from mergekit_collapse.states.peak_memory import PINNED
from mergekit_collapse.states.stage_tensors import StagedFiles
from mergekit_collapse.states.tensor_files import TensorFiles
from mergekit_collapse.states.weights import require_finite

Tensors = Mapping[str, torch.Tensor]
# A stage's tensors are handed through it while they are as new as they are read.
Prepare = Callable[[Tensors], dict[str, torch.Tensor]]

# Enough bytes that a copy runs at the bus's rate, few enough that the threads share a layer.
PIECE = 2**24


@runtime_checkable
class StageReader(Protocol):
    """Reads stages."""

    def load(
        self, files: StagedFiles, stage: int, prepare: Prepare = dict
    ) -> dict[str, torch.Tensor]:
        """One stage on the device, in its stored precision unless ``prepare`` changes it.

        Raises:
            EvaluationError: a file cannot be read, or a weight is NaN or infinite.
        """


def stage_reader(device: str) -> StageReader:
    """What reads for a device."""
    place = torch.device(device)
    return CudaReader(place) if place.type == "cuda" else _PlainReader()


class _PlainReader:
    """For the processor, and for devices to which the model itself copies what it is given."""

    def load(
        self, files: StagedFiles, stage: int, prepare: Prepare = dict
    ) -> dict[str, torch.Tensor]:
        return prepare(files.load(stage))


class CudaReader:
    """Reads into the memory of a CUDA device, beside the kernels that run there.

    Every tensor comes in pieces. Each of several threads reads one into pinned memory and has it
    copied on a stream of the reader's own, so that files, bus and kernels are busy at a time, and
    the processor holds ``PINNED`` bytes at most, however large a stage is. Whether all numbers
    are finite is asked of the device.

    Args:
        device: on whose current stream the tensors are going to be used.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no type for it
        self._users = torch.cuda.current_stream(device)
        with torch.cuda.device(device):
            self._buffers = [
                torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(_threads())
            ]
        # Its threads end when nothing holds it any more.
        self._pool = ThreadPoolExecutor(
            len(self._buffers), thread_name_prefix="mergekit-collapse-files"
        )

    def load(
        self, files: StagedFiles, stage: int, prepare: Prepare = dict
    ) -> dict[str, torch.Tensor]:
        # Other threads may not write to what is made in inference mode.
        with torch.inference_mode(False), torch.cuda.stream(self._stream):
            there = {name: files.files.empty(name, self._device) for name in files.stages[stage]}
            fill(files.files, there, self._buffers, self._copy, self._pool)
            require_finite(files.where, there.items())
            prepared = prepare(there)
        self._stream.synchronize()
        for tensor in prepared.values():
            # Their memory is not handed on before the kernels that read them are done.
            tensor.record_stream(self._users)
        return prepared

    def _copy(self, target: torch.Tensor, piece: torch.Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(piece, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the same
            done.record(self._stream)
        done.synchronize()


def fill(
    files: TensorFiles,
    tensors: Tensors,
    buffers: Sequence[torch.Tensor],
    copy: Callable[[torch.Tensor, torch.Tensor], object],
    pool: Executor,
) -> None:
    """Fill tensors with what is stored under their names, a piece at a time.

    Args:
        tensors: contiguous, of the stored shapes and precisions.
        buffers: bytes in the processor's memory, all of one size, at least one for each thread of
            the pool; each is used by one at a time.
        copy: puts a part of a buffer into its first argument, and returns when it is there.
        pool: its threads. Nothing of this runs there any more when this returns or raises.

    Raises:
        EvaluationError: a file cannot be read.
    """
    free: SimpleQueue[torch.Tensor] = SimpleQueue()
    for buffer in buffers:
        free.put(buffer)

    def move(name: str, at: int, target: torch.Tensor) -> None:
        buffer = free.get()
        try:
            files.read_into(name, at, buffer[: len(target)])
            copy(target, buffer[: len(target)])
        finally:
            free.put(buffer)

    running = [pool.submit(move, *piece) for piece in _pieces(tensors, len(buffers[0]))]
    try:
        for one in running:
            one.result()
    finally:
        for one in running:
            one.cancel()
        wait(running)


def _pieces(tensors: Tensors, size: int) -> Iterator[tuple[str, int, torch.Tensor]]:
    """All bytes of some tensors: a tensor's name, an offset, and at most ``size`` bytes."""
    for name, tensor in tensors.items():
        if tensor.numel():
            every = tensor.view(-1).view(torch.uint8)
            for at in range(0, len(every), size):
                yield name, at, every[at : at + size]


def _threads() -> int:
    # A process may be allowed some of the processors only.
    allowed = getattr(os, "sched_getaffinity", lambda _process: range(os.cpu_count() or 1))
    return min(PINNED // PIECE, len(allowed(0)))
