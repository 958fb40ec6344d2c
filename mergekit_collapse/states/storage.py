"""Large arrays: in memory up to a limit, beyond it in a temporary file that leaves no trace."""

import math
import os
import tempfile
from typing import IO

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float32

MEMORY_LIMIT = 2**30
_CHUNK = 2**24


def zeros(shape: tuple[int, ...], what: str) -> Float32[np.ndarray, "..."]:
    """A float32 array of zeros, as a memory map of an unlinked file if over ``MEMORY_LIMIT`` bytes.

    The file's blocks are claimed at once: were they not, a disk that fills up later
    would end the process with a bus error instead of a message.

    Raises:
        EvaluationError: neither memory nor disk is enough; says what to lower.
    """
    size = 4 * math.prod(shape)
    try:
        if size <= MEMORY_LIMIT:
            return np.zeros(shape, dtype=np.float32)
        with tempfile.TemporaryFile(prefix="mergekit-collapse-") as file:
            _claim(file, size)
            return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "out of memory"
        raise EvaluationError(
            f"{what} need {size / 2**30:.1f} GiB, in {tempfile.gettempdir()} where they are over"
            f" {MEMORY_LIMIT / 2**30:.0f} GiB: {reason}; free some space, set TMPDIR to a larger"
            " disk, or lower probes.samples in the compat block"
        ) from error


def _claim(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    # macOS and Windows have no such call; written zeros are claimed as well.
    for start in range(0, size, _CHUNK):
        file.write(bytes(min(_CHUNK, size - start)))
    file.flush()
