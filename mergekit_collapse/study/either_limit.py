"""Two scores and two limits: a merge is refused where either is over its own."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64, Int64
from mergekit_collapse.study.auroc import require_both
from mergekit_collapse.study.cluster_resamples import (
    RESAMPLES,
    cluster_numbers,
    resampled_weights,
)
from mergekit_collapse.study.error_rates import ErrorRates, error_rates, over
from mergekit_collapse.study.estimate import Estimate, estimated
from mergekit_collapse.study.folds import Folds, one_out
from mergekit_collapse.study.left_out import LeftOut, leave_out
from mergekit_collapse.study.limit_search import EQUAL, middles
from mergekit_collapse.study.tied_groups import tied_groups

# Limits that are tried on each score, evenly by rank where there are more gaps.
MOST_CUTS = 100


@dataclass(frozen=True)
class EitherLimit:
    """Refused if the first score is over the first limit or the second over the second.

    Attributes:
        limits: infinite where that score is not needed.
        loss: as in ``limit_search.Limit``.
        intervals: of the limits by the cluster bootstrap, over the limits tried on all rows.
        in_sample: on the rows that they were fitted to, which flatters them.
        left_out: on rows that they were not fitted to; None where there is one fold.
    """

    limits: tuple[float, float]
    loss: float
    intervals: tuple[Estimate, Estimate]
    in_sample: ErrorRates
    left_out: LeftOut | None


@dataclass(frozen=True)
class _Cuts:
    """The limits that are tried on one score.

    Attributes:
        values: ascending, from minus infinity to infinity.
        widths: of the gap that each is in, in standard deviations of the score.
        first: of each row, the lowest limit that allows it.
    """

    values: Float64[np.ndarray, " cut"]
    widths: Float64[np.ndarray, " cut"]
    first: Int64[np.ndarray, " row"]


def fit_either(
    scores: tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]],
    collapsed: Bool[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    cost: float = 1.0,
    folds: Folds | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> EitherLimit:
    """The pair of limits that errs least, as ``best_limit`` has it for one.

    Of equal pairs, the one whose narrower gap is the widest, so that a score that is not needed
    is left out.

    Args:
        scores, labels, cost, folds: as in ``fit_limit``.

    Raises:
        ValueError: as in ``best_limit``.
    """
    labels = list(labels)
    require_both(collapsed)
    cuts = (_cuts(scores[0]), _cuts(scores[1]))
    limits, loss = _best(cuts, collapsed, np.ones(len(collapsed)), cost)
    folds = one_out(labels) if folds is None else folds

    def refuse(seen: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
        part = (_cuts(scores[0][seen]), _cuts(scores[1][seen]))
        return _either(scores, _best(part, collapsed[seen], np.ones(seen.sum()), cost)[0])

    clusters = cluster_numbers(labels)
    drawn = np.array(
        [
            _best(cuts, collapsed, row, cost)[0]
            for weights in resampled_weights(clusters, resamples, seed)
            for row in weights
        ]
    )
    left_out = None
    if len(folds) > 1:
        left_out = leave_out(folds, collapsed, refuse, labels, resamples=resamples, seed=seed)
    refused = _either(scores, limits)
    return EitherLimit(
        limits,
        loss,
        (estimated(limits[0], drawn[:, 0], clusters), estimated(limits[1], drawn[:, 1], clusters)),
        error_rates(refused, collapsed, labels, resamples=resamples, seed=seed),
        left_out,
    )


def _either(
    scores: tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]],
    limits: tuple[float, float],
) -> Bool[np.ndarray, " row"]:
    refused: Bool[np.ndarray, " row"] = over(scores[0], limits[0]) | over(scores[1], limits[1])
    return refused


def _cuts(score: Float64[np.ndarray, " row"]) -> _Cuts:
    values = tied_groups(score).values
    below, above = np.append(-np.inf, values), np.append(values, np.inf)
    limits, widths = middles(below, above)
    limits[-1], widths[-1] = np.inf, np.inf
    finite = score[np.isfinite(score)]
    spread = float(finite.std()) if len(finite) else 0.0
    if len(limits) > MOST_CUTS:
        tried = np.linspace(0, len(limits) - 1, MOST_CUTS).round().astype(np.int64)
        limits, widths = limits[tried], widths[tried]
    with np.errstate(over="ignore"):
        return _Cuts(limits, widths / (spread or 1.0), np.searchsorted(limits, score))


def _best(
    cuts: tuple[_Cuts, _Cuts],
    collapsed: Bool[np.ndarray, " row"],
    weights: Float64[np.ndarray, " row"],
    cost: float,
) -> tuple[tuple[float, float], float]:
    """The limits and their loss; NaN where one kind has no weight."""
    if not 0 < cost < np.inf:
        raise ValueError(f"a cost of {cost}: it is a number above 0, such as 1")
    shape = len(cuts[0].values), len(cuts[1].values)
    cell = cuts[0].first * shape[1] + cuts[1].first
    shares = []
    for kind in (collapsed, ~collapsed):
        total = float(weights[kind].sum())
        if not total > 0:
            return (np.nan, np.nan), np.nan
        counts = np.bincount(cell[kind], weights[kind], minlength=shape[0] * shape[1])
        # Of each pair of limits, the rows that both allow.
        shares.append(counts.reshape(shape).cumsum(axis=0).cumsum(axis=1) / total)
    losses = shares[0] + cost * (1 - shares[1])
    least = losses.min()
    widths = np.minimum(cuts[0].widths[:, None], cuts[1].widths)
    chosen = np.where(losses <= least + EQUAL, widths, -1.0).argmax()
    first, second = np.unravel_index(chosen, shape)
    return (float(cuts[0].values[first]), float(cuts[1].values[second])), float(least)
