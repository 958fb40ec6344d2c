"""Correlation of two short lists, with p-values that hold for few and unruly numbers."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mergekit_collapse.shapes import Float64, Int64

MOST_EXACT = 9
ROUNDING = 1e-12


@dataclass(frozen=True)
class Correlation:
    """One coefficient, dimensionless.

    Attributes:
        value: r or ρ, in [-1, 1].
        p_value: two-sided, by Student's t on n - 2 degrees of freedom.
        exact_p: two-sided, by counting all n! orders of one list.
    """

    value: float
    p_value: float
    exact_p: float


@dataclass(frozen=True)
class Correlations:
    """Of a score with a loss.

    Attributes:
        pearson: of the numbers.
        spearman: of their ranks; ties share the mean of theirs.
    """

    pearson: Correlation
    spearman: Correlation


@dataclass(frozen=True)
class LeaveOneOut:
    """The correlations without one entry."""

    left_out: int
    rest: Correlations


def correlations(
    x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]
) -> Correlations:
    """Pearson and Spearman of two lists.

    Raises:
        ValueError: a list is constant or not finite, or too long to count its orders.
    """
    return Correlations(_correlation(x, y), _correlation(stats.rankdata(x), stats.rankdata(y)))


def leave_one_out(
    x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]
) -> tuple[LeaveOneOut, ...]:
    """``correlations`` of all entries but one, for each in turn."""
    return tuple(LeaveOneOut(i, correlations(*_without(i, x, y))) for i in range(len(x)))


def pearson_p(x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]) -> float:
    """Two-sided p-value of Pearson's r.

    t = r √((n - 2) / (1 - r²)) has Student's distribution on n - 2 degrees of freedom when x
    and y are independent and one of them is normal.
    """
    return p_of(_r(x, y), len(x))


def p_of(r: float, count: int) -> float:
    """The two-sided p-value of a Pearson coefficient from ``count`` pairs."""
    t = r * np.sqrt((count - 2) / max(1 - r * r, np.finfo(np.float64).tiny))
    return float(2 * stats.t.sf(abs(t), count - 2))


def permutation_p(x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]) -> float:
    """Share of the n! orders of y whose |r| with x is no smaller; exact, two-sided.

    Raises:
        ValueError: more than 9 entries, whose orders would not fit into memory.
    """
    if len(x) > MOST_EXACT:
        raise ValueError(
            f"all orders of {len(x)} entries are too many to count, {MOST_EXACT} at most; "
            "use pearson_p"
        )
    u, v = (values - values.mean() for values in (x, y))
    r = np.abs(v[_orders(len(v))] @ u) / (np.linalg.norm(u) * np.linalg.norm(v))
    # The first order is the given one. Orders that tie with it may differ in their last digit.
    return float(np.mean(r >= r[0] - ROUNDING))


def _correlation(x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]) -> Correlation:
    r = _r(x, y)
    return Correlation(r, p_of(r, len(x)), permutation_p(x, y))


def _r(x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]) -> float:
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.ptp(x) > 0 and np.ptp(y) > 0):
        raise ValueError(
            f"no correlation of {x.tolist()} with {y.tolist()}: give finite numbers, not all equal"
        )
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))


def _without(
    index: int, *lists: Float64[np.ndarray, " entry"]
) -> tuple[Float64[np.ndarray, " rest"], ...]:
    return tuple(np.delete(values, index) for values in lists)


@functools.lru_cache(maxsize=2)
def _orders(count: int) -> Int64[np.ndarray, "order entry"]:
    return np.array(list(itertools.permutations(range(count))), dtype=np.int64)
