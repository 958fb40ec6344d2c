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
def keep_freed_memory() -> None:
    """Have up to 256 MiB of freed memory stay with the process, and blocks up to 64 MiB reused.

    Every layer makes the same activations anew for every batch. glibc returns them to the system
    in between, as it comes out with the heap: fetching them page by page takes up to a fifth of
    the time of a forward pass (``docs/speed.md``). Weights are larger, and go back as before.

    Once in a process, which keeps it. Other C libraries are left alone, and so is a glibc for
    which the environment says what to keep (``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc" or any(n in os.environ for n in _OWN_SETTINGS):
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _APART)
    library.mallopt(_TRIM_THRESHOLD, _KEPT)
