"""Pearson's and Spearman's coefficient of rows that belong together."""

from collections.abc import Hashable, Iterable

import numpy as np

from mergekit_collapse.shapes import Float64
from mergekit_collapse.study.cluster_resamples import RESAMPLES
from mergekit_collapse.study.estimate import Estimate, estimate
from mergekit_collapse.study.tied_groups import tied_groups


def pearson(
    x: Float64[np.ndarray, " row"],
    y: Float64[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """r = Σ(x - x̄)(y - ȳ) / √(Σ(x - x̄)² Σ(y - ȳ)²), with a 95 % interval by ``estimate``.

    Resamples in which a list is constant are left out.

    Raises:
        ValueError: a list is constant or not finite.
    """
    _require_spread(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Pearson's r needs finite numbers; leave the others out, or use Spearman")
    # Around their means, so that large numbers keep their digits.
    x, y = x - x.mean(), y - y.mean()

    def statistic(weights: Float64[np.ndarray, "resample row"]) -> np.ndarray:
        shape = weights.shape
        r = _weighted_r(np.broadcast_to(x, shape), np.broadcast_to(y, shape), weights)
        return np.where(_varies(x, weights) & _varies(y, weights), r, np.nan)

    return estimate(statistic, labels, resamples=resamples, seed=seed)


def spearman(
    x: Float64[np.ndarray, " row"],
    y: Float64[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """ρ: r of the ranks, where ties share the mean of theirs. Each resample is ranked anew.

    Infinity is the highest rank. Resamples in which a list is constant are left out.

    Raises:
        ValueError: a list is constant, or one of its numbers is NaN.
    """
    groups_x, groups_y = tied_groups(x, "number"), tied_groups(y, "number")
    _require_spread(x, y)

    def statistic(weights: Float64[np.ndarray, "resample row"]) -> np.ndarray:
        ranks_x, ranks_y = groups_x.midranks(weights), groups_y.midranks(weights)
        r = _weighted_r(ranks_x, ranks_y, weights)
        # Numbers of groups, since the difference of two infinities is none.
        varies = _varies(groups_x.group, weights) & _varies(groups_y.group, weights)
        return np.where(varies, r, np.nan)

    return estimate(statistic, labels, resamples=resamples, seed=seed)


def _weighted_r(
    x: Float64[np.ndarray, "resample row"],
    y: Float64[np.ndarray, "resample row"],
    weights: Float64[np.ndarray, "resample row"],
) -> Float64[np.ndarray, " resample"]:
    """NaN, or a number without a meaning, where a list is constant."""
    total = weights.sum(axis=1)
    u = x - ((weights * x).sum(axis=1) / total)[:, None]
    v = y - ((weights * y).sum(axis=1) / total)[:, None]
    squares = (weights * u * u).sum(axis=1) * (weights * v * v).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (weights * u * v).sum(axis=1) / np.sqrt(squares)
    within: Float64[np.ndarray, " resample"] = np.clip(r, -1.0, 1.0)
    return within


def _varies(values: np.ndarray, weights: Float64[np.ndarray, "resample row"]) -> np.ndarray:
    """Whether the rows that are there have two values; the variance of one may round to more."""
    there = weights > 0
    least = np.where(there, values, np.inf).min(axis=1)
    most = np.where(there, values, -np.inf).max(axis=1)
    varies: np.ndarray = most > least
    return varies


def _require_spread(*lists: Float64[np.ndarray, " row"]) -> None:
    for values in lists:
        if not len(values) or (values == values[0]).all():
            raise ValueError("no correlation with numbers that are all equal; give others")
