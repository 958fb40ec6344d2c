"""One signal on all merges that have it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.auroc import auroc
from mergekit_collapse.study.error_rates import ErrorRates, error_rates, over
from mergekit_collapse.study.estimate import Estimate
from mergekit_collapse.study.finished_merges import FinishedMerge
from mergekit_collapse.study.fitted_limit import FittedLimit, fit_limit
from mergekit_collapse.study.folds import one_out
from mergekit_collapse.study.left_out import LeftOutAuroc, left_out_auroc
from mergekit_collapse.study.limit_search import Limit
from mergekit_collapse.study.report_signals import Signal


@dataclass(frozen=True)
class FittedSignal:
    """A signal, and the limit that errs least on it.

    Attributes:
        name: of the signal.
        before: whether it is known before anything is merged.
        merges, collapsed: how many have it, and how many of those collapsed.
        auroc: with its interval.
        without: the AUROC as each group of experts is left out.
        fitted: the limit, its interval and its rates.
        limit: the fitted one, written with few digits; None where allowing or refusing all of
            them errs least.
        default: the block's own limit.
        at_default: its rates. Both None where it is switched off.
    """

    name: str
    before: bool
    merges: int
    collapsed: int
    auroc: Estimate
    without: LeftOutAuroc
    fitted: FittedLimit
    limit: float | None
    default: float | None
    at_default: ErrorRates | None


def fit_signal(
    signal: Signal,
    merges: Sequence[FinishedMerge],
    collapsed: Bool[np.ndarray, " merge"],
    *,
    cost: float,
    resamples: int,
    seed: int,
) -> FittedSignal:
    """Merges of the same experts are resampled, and left out, together.

    Args:
        merges: which all have the signal.

    Raises:
        ValueError: all of them collapsed, or none did.
    """
    score, groups = scores(signal, merges), [merge.experts for merge in merges]
    fitted = fit_limit(score, collapsed, groups, cost=cost, resamples=resamples, seed=seed)
    at_default = None
    if signal.default is not None:
        refused = over(score, signal.default)
        at_default = error_rates(refused, collapsed, groups, resamples=resamples, seed=seed)
    return FittedSignal(
        signal.name,
        signal.before,
        len(merges),
        int(collapsed.sum()),
        auroc(score, collapsed, groups, resamples=resamples, seed=seed),
        left_out_auroc(one_out(groups), score, collapsed),
        fitted,
        shortest(fitted.limit),
        signal.default,
        at_default,
    )


def scores(signal: Signal, merges: Sequence[FinishedMerge]) -> Float64[np.ndarray, " merge"]:
    """The signal of each merge."""
    return np.array([merge.readings[signal.name] for merge in merges], dtype=np.float64)


def shortest(limit: Limit) -> float | None:
    """The limit with two digits or as many as it takes to refuse the same; None for no limit."""
    if not np.isfinite(limit.value):
        return None
    rounded = (float(f"{limit.value:.{digits}g}") for digits in range(2, 17))
    return next((r for r in rounded if limit.allowed <= r < limit.refused), limit.value)
