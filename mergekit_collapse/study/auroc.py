"""AUROC: the chance that a merge that collapsed has the higher score."""

from collections.abc import Hashable, Iterable
from dataclasses import replace

import numpy as np

from mergekit_collapse.shapes import Bool, Float64, Int64
from mergekit_collapse.study.cluster_resamples import RESAMPLES, cluster_numbers
from mergekit_collapse.study.estimate import LEVEL, Estimate, Interval, estimate
from mergekit_collapse.study.tied_groups import TiedGroups, tied_groups


def auroc(
    score: Float64[np.ndarray, " row"],
    collapsed: Bool[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """P(score of a collapsed row > score of another) + ½ P(equal), with a 95 % interval.

    The interval is that of ``estimate``. Where the score parts the two kinds without an error,
    every resample says 1 (or 0) as well, which is no interval. Then k disjoint pairs of clusters,
    one with a collapsed row and one with another, are k independent trials that all went the same
    way, and the end of the interval is Clopper's and Pearson's, (.05 / 2)^(1/k).

    Args:
        score: infinity is allowed, and ties with itself.
        labels: of the cluster that each row is in.

    Raises:
        ValueError: a score is NaN, or all rows collapsed, or none did.
    """
    labels = list(labels)
    require_both(collapsed)
    groups = tied_groups(score)
    found = estimate(
        lambda weights: aurocs(groups, collapsed, weights), labels, resamples=resamples, seed=seed
    )
    if found.interval is None or 0 < found.value < 1:
        return found
    pairs = _disjoint_pairs(cluster_numbers(labels), collapsed)
    end = ((1 - LEVEL) / 2) ** (1 / pairs)
    low, high = (end, 1.0) if found.value == 1 else (0.0, 1 - end)
    return replace(found, interval=Interval(low, high, found.interval.undefined))


def aurocs(
    groups: TiedGroups,
    collapsed: Bool[np.ndarray, " row"],
    weights: Float64[np.ndarray, "resample row"],
) -> Float64[np.ndarray, " resample"]:
    """Under each weighting of the rows; NaN where one kind has no weight."""
    bad = groups.sums(weights * collapsed)
    good = groups.sums(weights * ~collapsed)
    below = np.cumsum(good, axis=1) - good
    pairs = bad.sum(axis=1) * good.sum(axis=1)
    above = (bad * (below + good / 2)).sum(axis=1)
    found: Float64[np.ndarray, " resample"] = np.divide(
        above, pairs, out=np.full(len(weights), np.nan), where=pairs > 0
    )
    return found


def require_both(collapsed: Bool[np.ndarray, " row"]) -> None:
    """Two kinds are needed to tell one from the other.

    Raises:
        ValueError: all rows collapsed, or none did.
    """
    if not 0 < collapsed.sum() < len(collapsed):
        raise ValueError(
            f"{int(collapsed.sum())} of {len(collapsed)} rows collapsed; both kinds are needed"
        )


def _disjoint_pairs(
    clusters: Int64[np.ndarray, " row"], collapsed: Bool[np.ndarray, " row"]
) -> int:
    """The most pairs of different clusters, none used twice, that hold both kinds."""
    bad, good = set(clusters[collapsed].tolist()), set(clusters[~collapsed].tolist())
    return max(1, min(len(bad), len(good), len(bad | good) // 2))
