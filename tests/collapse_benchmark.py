"""What the tests of benchmarks/collapse share: where it lies, and numbers to feed it.

Import this before its modules, which import one another by their plain names.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "collapse"))


def drawn(*shape, seed=0):
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def value_of(rows, predictor, expert=""):
    """Of the one row about a predictor and an expert, or the whole group."""
    (found,) = (r.value for r in rows if (r.predictor, r.expert) == (predictor, expert))
    return found
