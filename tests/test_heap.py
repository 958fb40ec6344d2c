"""Memory that is freed and taken again is not fetched from the system every time."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_collapse.states import heap

# Activations of a layer, twenty times over; prints the pages that were fetched after the first.
CODE = """
import resource, sys
import torch
from mergekit_collapse.states.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory(None)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def layer():
    made = [torch.ones(2**24, dtype=torch.uint8) for _ in range(4)]
    made.append(torch.ones(2**25 + 2**12, dtype=torch.uint8))

layer()
before = faults()
for _ in range(20):
    layer()
print(faults() - before)
"""


def pages(how, **environment):
    own = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how],
        capture_output=True,
        text=True,
        check=True,
        env={**own, **environment},
    )
    return int(done.stdout)


def huge_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[always]" in setting.read_text()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
@pytest.mark.skipif(huge_pages(), reason="pages are fetched by the hundred")
def test_blocks_are_reused_unless_the_user_set_it_otherwise():
    # The last block of a layer is above what glibc ever reuses by itself; of the others it
    # fetches more or fewer again, as its heap happens to lie.
    certain = 20 * 2**25 / os.sysconf("SC_PAGESIZE")
    assert pages("as it is") > certain
    assert pages("kept") < certain / 2
    assert pages("kept", MALLOC_TRIM_THRESHOLD_="131072") > certain
    assert pages("kept", GLIBC_TUNABLES="glibc.malloc.tcache_count=7") > certain


class _Library:
    """A C library that takes no threshold above ``most``."""

    def __init__(self, most):
        self.most, self.set = most, {}

    def mallopt(self, name, value):
        taken = name != heap._MMAP_THRESHOLD or value <= self.most
        if taken:
            self.set[name] = value
        return int(taken)


@pytest.mark.parametrize(
    ("most", "due"),
    [(2**30, {-3: 2**26, -1: 2**28}), (2**25, {-3: 2**25, -1: 2**28}), (2**20, {})],
    ids=["new", "old", "stubborn"],
)
def test_an_older_library_is_given_what_it_takes_or_left_alone(monkeypatch, most, due):
    library = _Library(most)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    heap.keep_freed_memory.__wrapped__(None)
    assert library.set == due


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    heap.keep_freed_memory.__wrapped__(None)


def test_where_memory_is_limited_nothing_is_kept(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", None)
    heap.keep_freed_memory.__wrapped__(10**9)
