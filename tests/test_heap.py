"""Memory that is freed and taken again is not fetched from the system every time."""

import os
import platform
import subprocess
import sys

import pytest

from mergekit_collapse.states.heap import keep_freed_memory

# Activations of a layer, twenty times over; prints the pages that were fetched after the first.
CODE = """
import resource, sys
import torch
from mergekit_collapse.states.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

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


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
def test_blocks_are_reused_unless_the_user_set_it_otherwise():
    blocks = 20 * 2**25 // 4096
    assert pages("as it is") > blocks
    assert pages("kept") < blocks / 10
    assert pages("kept", MALLOC_TRIM_THRESHOLD_="131072") > blocks


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    keep_freed_memory.__wrapped__()
