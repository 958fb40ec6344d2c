"""What the C library does with memory that a forward pass frees."""

import ctypes
import os
import platform
from functools import cache

# Names of mallopt(3), and the bytes that they are set to.
_TRIM_THRESHOLD, _KEPT = -1, 2**28
_MMAP_THRESHOLD, _APART = -3, 2**26
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@cache
def keep_freed_memory(max_memory: int | None) -> None:
    """Have 256 MiB of freed memory stay with each of glibc's heaps, and blocks up to 64 MiB reused.

    Every layer makes the same activations anew for every batch. glibc returns them to the system
    in between, as it comes out with the heap, and fetching them page by page takes time
    (``docs/speed.md``, "Freed memory"). Larger blocks, such as embeddings, go back as before.

    Once in a process, which keeps it; not where memory is limited. Other C libraries are left
    alone, and so is a glibc for which the environment says what to keep
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).

    Args:
        max_memory: bytes that the user allows; None for as many as there are.
    """
    if max_memory is not None:
        return
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc" or any(n in os.environ for n in _OWN_SETTINGS):
        return
    library = ctypes.CDLL(None)
    # Older versions take no more than 32 MiB. Setting only the other would fix this one where it
    # happens to be, which may be 128 KiB.
    if library.mallopt(_MMAP_THRESHOLD, _APART) or library.mallopt(_MMAP_THRESHOLD, _APART // 2):
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
