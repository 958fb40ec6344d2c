"""A share of rows, with the interval that its count allows and the one that its clusters do."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.cluster_resamples import RESAMPLES, cluster_numbers
from mergekit_collapse.study.estimate import LEVEL, Interval, estimate


@dataclass(frozen=True)
class Share:
    """``hits`` of ``of`` rows.

    Attributes:
        value: hits / of; None of no rows.
        exact: 95 % by Clopper and Pearson, as if rows were independent.
        clustered: 95 % by the cluster bootstrap; None where there are too few clusters.
    """

    hits: int
    of: int
    value: float | None
    exact: Interval | None
    clustered: Interval | None


def exact_interval(hits: int, of: int) -> Interval:
    """Clopper's and Pearson's 95 % interval of a binomial share.

    All shares p under which neither P(X ≤ hits) nor P(X ≥ hits) is below .025; as quantiles of
    the beta distribution.

    Raises:
        ValueError: there are no trials, or more hits than trials.
    """
    if not 0 <= hits <= of or not of:
        raise ValueError(f"{hits} hits of {of} trials; give at least one trial, and no more hits")
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, hits, of - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, of - hits) if hits < of else 1.0
    return Interval(float(low), float(high))


def share(
    hits: Bool[np.ndarray, " row"],
    of: Bool[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Share:
    """Of the rows that ``of`` marks, those that ``hits`` marks as well.

    Resamples in which ``of`` marks no row are left out. Where none or all are hits, every
    resample says the same, and the interval is Clopper's and Pearson's over the clusters
    instead of the rows.
    """
    labels = list(labels)
    count, hit = int(of.sum()), int((hits & of).sum())
    if not count:
        return Share(0, 0, None, None, None)
    clusters = cluster_numbers(labels)
    # A cluster's rows are drawn together, so its two counts are all that matters of it.
    hit_in = np.bincount(clusters, weights=hits & of).astype(np.float64)
    of_in = np.bincount(clusters, weights=of).astype(np.float64)
    if hit in (0, count):
        holding = int((of_in > 0).sum())
        clustered: Interval | None = exact_interval(holding if hit else 0, holding)
    else:
        clustered = estimate(
            lambda weights: _ratio(weights @ hit_in, weights @ of_in),
            range(len(of_in)),
            resamples=resamples,
            seed=seed,
        ).interval
    return Share(hit, count, hit / count, exact_interval(hit, count), clustered)


def _ratio(
    above: Float64[np.ndarray, " resample"], below: Float64[np.ndarray, " resample"]
) -> Float64[np.ndarray, " resample"]:
    ratio: Float64[np.ndarray, " resample"] = np.divide(
        above, below, out=np.full(len(below), np.nan), where=below > 0
    )
    return ratio
