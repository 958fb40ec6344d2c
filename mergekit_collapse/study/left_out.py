"""A rule judged on rows that it was not fitted to."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.auroc import aurocs
from mergekit_collapse.study.cluster_resamples import RESAMPLES
from mergekit_collapse.study.error_rates import ErrorRates, error_rates
from mergekit_collapse.study.folds import Folds
from mergekit_collapse.study.tied_groups import tied_groups

# Which rows it may look at, to which rows it refuses, of all.
FitAndRefuse = Callable[[Bool[np.ndarray, " row"]], Bool[np.ndarray, " row"]]


@dataclass(frozen=True)
class LeftOut:
    """Every fold judged by a rule fitted to the rows outside it.

    Attributes:
        folds: how many there are.
        unfitted: those whose other rows are all of one kind. Nothing can be fitted to these, so
            all of the fold is refused.
        rates: over the rows of all folds together.
    """

    folds: int
    unfitted: int
    rates: ErrorRates


@dataclass(frozen=True)
class LeftOutAuroc:
    """AUROC of a score as folds are left out.

    Attributes:
        low, high: over the folds, of the rows outside it; without the folds whose others are of
            one kind.
        inside: lowest and highest within a fold; None where no fold has both kinds.
        inside_folds: how many have.
    """

    low: float
    high: float
    inside: tuple[float, float] | None
    inside_folds: int


def leave_out(
    folds: Folds,
    collapsed: Bool[np.ndarray, " row"],
    fit_and_refuse: FitAndRefuse,
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LeftOut:
    """Error rates on held-out rows. A row in several folds is judged, and counts, in each.

    Args:
        labels: of the clusters for the intervals, which need not be the folds.

    Raises:
        ValueError: there are fewer than two folds.
    """
    if len(folds) < 2:
        raise ValueError(f"{len(folds)} fold, and nothing to fit on; give two at least")
    fold_of, row_of = np.nonzero(folds)
    refused = np.ones(folds.shape, dtype=np.bool_)
    unfitted = 0
    for fold, held_out in enumerate(folds):
        others = collapsed[~held_out]
        if 0 < others.sum() < len(others):
            refused[fold] = fit_and_refuse(~held_out)
        else:
            unfitted += 1
    names = list(labels)
    rates = error_rates(
        refused[fold_of, row_of],
        collapsed[row_of],
        [names[row] for row in row_of],
        resamples=resamples,
        seed=seed,
    )
    return LeftOut(len(folds), unfitted, rates)


def left_out_auroc(
    folds: Folds, score: Float64[np.ndarray, " row"], collapsed: Bool[np.ndarray, " row"]
) -> LeftOutAuroc:
    """How much one fold carries: AUROC without each, and within each.

    Raises:
        ValueError: a score is NaN, or without any fold the rest is of one kind.
    """
    groups = tied_groups(score)
    rest = aurocs(groups, collapsed, (~folds).astype(np.float64))
    within = aurocs(groups, collapsed, folds.astype(np.float64))
    rest, within = rest[~np.isnan(rest)], within[~np.isnan(within)]
    if not len(rest):
        raise ValueError("whichever fold is left out, the others are of one kind; give more rows")
    inside = (float(within.min()), float(within.max())) if len(within) else None
    return LeftOutAuroc(float(rest.min()), float(rest.max()), inside, len(within))
