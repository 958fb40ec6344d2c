"""Stages brought from files to where the forward passes are."""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

import torch

from mergekit_collapse.states.peak_memory import PINNED
from mergekit_collapse.states.stage_tensors import StagedFiles
from mergekit_collapse.states.tensor_files import TensorFiles
from mergekit_collapse.states.weights import require_finite

Tensors = Mapping[str, torch.Tensor]
Prepare = Callable[[Tensors], dict[str, torch.Tensor]]

# Enough bytes that a copy runs at the bus's rate, few enough that the threads share a layer.
PIECE = 2**24


@runtime_checkable
class StageReader(Protocol):
    """Brings the tensors of a stage from its files to where a model is run."""

    def load(
        self, files: StagedFiles, stage: int, prepare: Prepare = dict
    ) -> dict[str, torch.Tensor]:
        """One stage's tensors.

        Args:
            prepare: what is made of them before they are handed on, by the thread that reads.

        Raises:
            EvaluationError: a file cannot be read, or a weight is NaN or infinite.
            torch.OutOfMemoryError: they do not fit into the device's memory.
        """


@functools.cache
def stage_reader(device: str) -> StageReader:
    """What reads for a device, the same for all that ask."""
    place = torch.device(device)
    return CudaReader(place) if place.type == "cuda" else PlainReader()


class PlainReader:
    """Reads into the processor's memory; the model copies what it is given to other devices."""

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

    The tensors are for the stream that is current where ``load`` is called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no type for it
        with torch.cuda.device(device):
            self._buffers = [
                torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(_threads())
            ]
        self._pool = ThreadPoolExecutor(
            len(self._buffers), thread_name_prefix="mergekit-collapse-files"
        )
        # The buffers are of one stage at a time.
        self._lock = threading.Lock()

    def load(
        self, files: StagedFiles, stage: int, prepare: Prepare = dict
    ) -> dict[str, torch.Tensor]:
        users = torch.cuda.current_stream(self._device)
        # Other threads may not write to what is made in inference mode.
        with self._lock, torch.inference_mode(False), torch.cuda.stream(self._stream):
            there = {name: files.files.empty(name, self._device) for name in files.stages[stage]}
            fill(files.files, there, self._buffers, self._copy, self._pool)
            require_finite(files.where, there.items())
            prepared = prepare(there)
            self._stream.synchronize()
        for tensor in prepared.values():
            # Their memory is not handed on before the kernels that read them are done.
            tensor.record_stream(users)
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
            the pool. Nothing else may use them meanwhile.
        copy: puts a part of a buffer into its first argument, and returns when it is there.
        pool: its threads. Nothing of this runs there any more when this returns or raises.

    Raises:
        EvaluationError: a file cannot be read.
        Exception: what ``copy`` raises.
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

    running: list[Future[None]] = []
    try:
        for piece in _pieces(tensors, len(buffers[0])):
            running.append(pool.submit(move, *piece))
        wait(running, return_when=FIRST_EXCEPTION)
    finally:
        failed = _end(running)
        running.clear()
    try:
        if failed is not None:
            raise failed
    finally:
        # An error refers to this frame: whatever refers to it in turn would keep the tensors.
        del failed


def _end(running: Sequence[Future[None]]) -> BaseException | None:
    """Let what has begun come to its end, and nothing else; an error, if there was one."""
    for one in running:
        one.cancel()
    wait(running)
    errors = (one.exception() for one in running if not one.cancelled())
    return next((error for error in errors if error is not None), None)


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
