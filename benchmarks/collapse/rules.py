"""Rules that could decide by default: fitted on the seen tasks, judged on tasks left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from merge_rows import MergeRow, column

from mergekit_collapse.recipe.schema import BudgetBlock
from mergekit_collapse.study.either_limit import fit_either
from mergekit_collapse.study.error_rates import ErrorRates, error_rates, over
from mergekit_collapse.study.fitted_limit import fit_limit
from mergekit_collapse.study.folds import member_out
from mergekit_collapse.study.left_out import LeftOut

COLLAPSE = 20.0


@dataclass(frozen=True)
class Rule:
    """A merge is refused if any signal is over its limit.

    Attributes:
        left_out: rates where each task is left out with all merges that it takes part in.
    """

    signals: tuple[str, ...]
    limits: tuple[float, ...]
    in_sample: ErrorRates
    left_out: LeftOut | None


def collapsed(rows: Sequence[MergeRow]) -> np.ndarray:
    """Which merges lost more than 20 % on a task."""
    return np.array([not row.worst >= -COLLAPSE for row in rows])


def fit(rows: Sequence[MergeRow], *signals: str, cost: float = 1.0) -> Rule:
    """Limits that err least, for one signal or for either of two."""
    bad, sets = collapsed(rows), [row.members for row in rows]
    folds = member_out([row.families for row in rows])
    # What is not known is over every limit.
    scores = [np.where(np.isnan(c), np.inf, c) for c in (column(rows, s) for s in signals)]
    if len(scores) == 1:
        one = fit_limit(scores[0], bad, sets, cost=cost, folds=folds)
        return Rule(signals, (one.limit.value,), one.in_sample, one.left_out)
    two = fit_either((scores[0], scores[1]), bad, sets, cost=cost, folds=folds, resamples=400)
    return Rule(signals, two.limits, two.in_sample, two.left_out)


def judge(rows: Sequence[MergeRow], limits: dict[str, float]) -> ErrorRates:
    """What given limits get right and wrong; a signal that a merge does not have refuses it."""
    refused = np.any([over(column(rows, name), limit) for name, limit in limits.items()], axis=0)
    return error_rates(refused, collapsed(rows), [row.members for row in rows])


def defaults() -> dict[str, float]:
    """The limits of an ordinary block before a merge."""
    budget = BudgetBlock()
    found = {"gate.ball": budget.distortion, "gate.mds_unrelated": budget.mds}
    return {name: limit for name, limit in found.items() if limit is not None}
