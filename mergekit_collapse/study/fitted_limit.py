"""A limit chosen from merges whose outcome is known, and what it is worth."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.auroc import require_both
from mergekit_collapse.study.cluster_resamples import RESAMPLES
from mergekit_collapse.study.error_rates import ErrorRates, error_rates, over
from mergekit_collapse.study.estimate import Estimate, estimate
from mergekit_collapse.study.folds import Folds, one_out
from mergekit_collapse.study.left_out import LeftOut, leave_out
from mergekit_collapse.study.limit_search import Limit, best_limit, best_limits
from mergekit_collapse.study.tied_groups import tied_groups


@dataclass(frozen=True)
class FittedLimit:
    """Of one score.

    Attributes:
        limit: by ``limit_search.RULE``.
        interval: of its value by the cluster bootstrap; infinite ends are resamples that would
            rather have no limit.
        in_sample: on the rows that it was fitted to, which flatters it.
        left_out: on rows that it was not fitted to; None where there is one fold.
    """

    limit: Limit
    interval: Estimate
    in_sample: ErrorRates
    left_out: LeftOut | None


def fit_limit(
    score: Float64[np.ndarray, " row"],
    collapsed: Bool[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    cost: float = 1.0,
    folds: Folds | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> FittedLimit:
    """The limit on a score that errs least, its interval, and its error rates.

    Args:
        score: higher is worse; infinity is over every limit but no limit at all.
        labels: of the cluster that each row is in.
        cost: as in ``best_limit``.
        folds: rows to hold out together; a fold for each cluster if None.

    Raises:
        ValueError: as in ``best_limit``.
    """
    labels = list(labels)
    require_both(collapsed)
    groups = tied_groups(score)
    limit = best_limit(score, collapsed, cost)
    folds = one_out(labels) if folds is None else folds

    def refuse(seen: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
        return over(score, best_limit(score[seen], collapsed[seen], cost).value)

    left_out = None
    if len(folds) > 1:
        left_out = leave_out(folds, collapsed, refuse, labels, resamples=resamples, seed=seed)
    return FittedLimit(
        limit,
        estimate(
            lambda weights: best_limits(groups, collapsed, weights, cost)[:, 0],
            labels,
            resamples=resamples,
            seed=seed,
        ),
        error_rates(over(score, limit.value), collapsed, labels, resamples=resamples, seed=seed),
        left_out,
    )
