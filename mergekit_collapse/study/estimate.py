"""A statistic with its interval by the cluster bootstrap."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64, Int64
from mergekit_collapse.study.cluster_resamples import (
    RESAMPLES,
    Statistic,
    cluster_numbers,
    resampled_weights,
)

LEVEL = 0.95
# With three clusters of a kind, one resample in twenty has none of them; with two, one in seven.
MOST_UNDEFINED = 0.1


@dataclass(frozen=True)
class Interval:
    """95 %, two-sided.

    Attributes:
        low, high: infinite where that share of the resamples is.
        undefined: share of the resamples that have no value, such as an AUROC of rows that all
            collapsed. They are left out.
    """

    low: float
    high: float
    undefined: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A number from rows.

    Attributes:
        value: of the rows as they are.
        interval: None where ``reason`` says why.
        clusters: how many there are.
    """

    value: float
    interval: Interval | None
    reason: str | None
    clusters: int


def estimate(
    statistic: Statistic,
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The statistic of the rows, and the middle 95 % of it over resamples of their clusters.

    Resamples without a value are left out; where they are more than a tenth, there are too few
    clusters of one kind to say anything, and the interval is None.

    Args:
        statistic: from weights of the rows (how often each is there), NaN where undefined.
        labels: of the cluster that each row is in.

    Raises:
        ValueError: there are no rows, or the statistic is undefined on the rows as they are.
    """
    clusters = cluster_numbers(labels)
    if not len(clusters):
        raise ValueError("no rows, so nothing can be estimated; give some")
    (value,) = statistic(np.ones((1, len(clusters)))).tolist()
    if np.isnan(value):
        raise ValueError("the statistic is undefined on these rows; give rows of both kinds")
    drawn = [statistic(weights) for weights in resampled_weights(clusters, resamples, seed)]
    return estimated(value, np.concatenate(drawn), clusters)


def estimated(
    value: float,
    resampled: Float64[np.ndarray, " resample"],
    clusters: Int64[np.ndarray, " row"],
) -> Estimate:
    """A value with what the resamples of its clusters say; NaN where one says nothing."""
    count = int(clusters.max()) + 1
    interval = _middle(resampled)
    if interval.undefined > MOST_UNDEFINED or count == 1:
        reason = f"{interval.undefined:.0%} of the resamples of {count} clusters have no value"
        return Estimate(value, None, reason if count > 1 else "there is one cluster", count)
    return Estimate(value, interval, None, count)


def _middle(values: Float64[np.ndarray, " resample"]) -> Interval:
    """The interval that leaves out 2.5 % at either end. NaN counts as undefined."""
    known = np.sort(values[~np.isnan(values)])
    undefined = 1 - len(known) / len(values)
    if not len(known):
        return Interval(np.nan, np.nan, undefined)
    # No interpolation, which has no answer between a number and infinity.
    cut = int((1 - LEVEL) / 2 * len(known))
    return Interval(float(known[cut]), float(known[len(known) - 1 - cut]), undefined)
