"""Does the task explain the loss, or the method? Analyses of variance of the printed losses."""

import itertools
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64
from mergekit_collapse.study.anova import TwoFactors, two_factors
from mergekit_collapse.study.paper_tables import GroupTable, SizeTable

# Averages of the same experts, which differ by little: counted three times, they agree with
# themselves. So each choice is made once more with one of them.
AVERAGES = ("LA", "TA", "SLERP")
_COPIES = AVERAGES[1:]
LEFT_OUT = ((), ("DARE",), _COPIES, ("DARE", *_COPIES))


@dataclass(frozen=True)
class MethodAgainstTask:
    """One analysis.

    Attributes:
        table: which block of Table 2, or which group.
        methods: the rows that took part.
        factors: rows are methods, columns are tasks.
    """

    table: str
    methods: tuple[str, ...]
    factors: TwoFactors


@dataclass(frozen=True)
class Distance:
    """Largest difference of two methods' losses on any task, in percent."""

    size: str
    first: str
    second: str
    largest: float


def analyse(
    sizes: tuple[SizeTable, ...], groups: tuple[GroupTable, ...]
) -> tuple[MethodAgainstTask, ...]:
    """Each size with all methods and without DARE, both with one average only; then each group."""
    chosen = [size.without(*left_out) for size in sizes for left_out in LEFT_OUT]
    return tuple(
        MethodAgainstTask(name, methods, two_factors(loss))
        for name, methods, loss in (
            *((size.size, size.methods, size.loss) for size in chosen),
            *((group.name, group.methods, group.loss) for group in groups),
        )
    )


def distances(sizes: tuple[SizeTable, ...]) -> tuple[Distance, ...]:
    """How far apart the methods are: every two of each size."""
    return tuple(
        Distance(size.size, first, second, _largest(size.loss[i], size.loss[j]))
        for size in sizes
        for (i, first), (j, second) in itertools.combinations(enumerate(size.methods), 2)
    )


def _largest(one: Float64[np.ndarray, " task"], other: Float64[np.ndarray, " task"]) -> float:
    return float(np.abs(one - other).max())
