"""Which test gave the p-values that the paper prints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64
from mergekit_collapse.study.paper_tables import GroupTable
from mergekit_collapse.study.rounding import RoundedP, rounded_p

HALF_MDS = 0.005
HALF_LOSS = 0.05
HALF_P = 0.00005

Pairs = tuple[Float64[np.ndarray, " entry"], Float64[np.ndarray, " entry"]]
BEST = "best"

# MDS, and the loss that it is correlated with.
TESTS: Mapping[str, Callable[[GroupTable], Pairs]] = {
    BEST: lambda group: (group.mds, group.best),
    "mean": lambda group: (group.mds, group.loss.mean(axis=0)),
    "median": lambda group: (group.mds, np.median(group.loss, axis=0)),
    "worst": lambda group: (group.mds, group.loss.min(axis=0)),
    "LA": lambda group: (group.mds, group.loss[0]),
    "TA": lambda group: (group.mds, group.loss[1]),
    "TIES": lambda group: (group.mds, group.loss[2]),
    "all 24": lambda group: (np.tile(group.mds, len(group.loss)), group.loss.ravel()),
}


@dataclass(frozen=True)
class TriedTest:
    """One candidate: two-sided Pearson of MDS with one reading of a task's loss.

    Attributes:
        name: which loss of the methods is taken, or one method, or all as if independent.
        p: per group, with the range that rounding allows.
        reaches: per group, whether numbers that print the same give the printed p-value.
    """

    name: str
    p: tuple[RoundedP, ...]
    reaches: tuple[bool, ...]


def try_tests(groups: tuple[GroupTable, ...]) -> tuple[TriedTest, ...]:
    """Every candidate on every group. Losses are printed to one decimal, MDS to two."""
    return tuple(_tried(name, pairs, groups) for name, pairs in TESTS.items())


def _tried(
    name: str, pairs: Callable[[GroupTable], Pairs], groups: tuple[GroupTable, ...]
) -> TriedTest:
    p = tuple(rounded_p(*pairs(group), half_x=HALF_MDS, half_y=HALF_LOSS) for group in groups)
    return TriedTest(
        name,
        p,
        tuple(found.reaches(group.p_value, HALF_P) for found, group in zip(p, groups, strict=True)),
    )
