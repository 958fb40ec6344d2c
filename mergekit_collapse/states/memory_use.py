"""Memory that this process has, and the most that it had."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Used:
    """What a run took.

    Attributes:
        seconds: of all of it.
        peak: most bytes of memory: of the process since it began, or of the GPU meanwhile; None
            where the system does not tell, or where other processes ran the models.
    """

    seconds: float
    peak: int | None


class Meter:
    """Watches from when it is made.

    Args:
        device: where the models run.
        here: whether it is this process that runs them.
    """

    def __init__(self, device: str, *, here: bool = True) -> None:
        self._device, self._start = torch.device(device), time.perf_counter()
        self._here = here
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def used(self) -> Used:
        """Up to now."""
        seconds = time.perf_counter() - self._start
        if not self._here:
            return Used(seconds, None)
        if self._device.type == "cuda":
            return Used(seconds, torch.cuda.max_memory_allocated(self._device))
        return Used(seconds, peak_resident() if self._device.type == "cpu" else None)


def resident() -> int:
    """Bytes that the process has in memory, 0 where the system does not tell."""
    return _status("VmRSS") or 0


def peak_resident() -> int | None:
    """Most bytes that it had, None where the system does not tell."""
    if (found := _status("VmHWM")) is not None:
        return found
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    kilobytes = next(found, None)
    return None if kilobytes is None else int(kilobytes) * 1024
