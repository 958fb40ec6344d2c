"""Rules that could decide by default: fitted on the seen tasks, judged on tasks left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from merge_rows import MergeRow, column

from mergekit_collapse.recipe.limits import EvaluateBlock
from mergekit_collapse.recipe.schema import CompatBlock
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


def judge(rows: Sequence[MergeRow], limits: Mapping[str, float]) -> ErrorRates:
    """What given limits get right and wrong; a signal that a merge does not have refuses it."""
    return rates(rows, over_any(rows, limits))


def over_any(rows: Sequence[MergeRow], limits: Mapping[str, float]) -> np.ndarray:
    """Which merges are over one of the limits."""
    found = [over(column(rows, name), limit) for name, limit in limits.items()]
    return np.any([np.zeros(len(rows), dtype=bool), *found], axis=0)


def rates(rows: Sequence[MergeRow], refused: np.ndarray) -> ErrorRates:
    """What refusing some of the merges gets right and wrong."""
    return error_rates(refused, collapsed(rows), [row.members for row in rows])


def before(*, tasks: bool) -> dict[str, float]:
    """The limits of an ordinary block before a merge, by the signals that they are about.

    Args:
        tasks: whether the block names the experts' tasks, or has the shipped probes alone.
    """
    own = {"tasks": [{"name": "a task", "data": "rows.jsonl"}]} if tasks else {}
    budget = CompatBlock.model_validate({"probes": own}).budget
    reading = "gate" if tasks else "hidden_builtin"
    found = {f"{reading}.ball": budget.distortion, f"{reading}.mds_unrelated": budget.mds}
    return {name: limit for name, limit in found.items() if limit is not None}


def rejected(rows: Sequence[MergeRow], limits: EvaluateBlock) -> np.ndarray:
    """What the limits of an ordinary block make of the merged models, on 32 probes a task.

    A task by its merging loss; where that is not known, by its distortion in predictive space, and
    the merge by its worst distortion over all probes as well, where that was measured. Ratios of
    variance and rank are left out: these merges were not read at every position.
    """
    most_lost, farthest = limits.max_merging_loss, limits.max_own_distortion
    most = limits.max_distortion
    assert most_lost is not None
    assert farthest is not None
    assert most is not None

    def is_over(row: MergeRow) -> bool:
        losses = [member.readings["measured.few_loss"] for member in row.each]
        answers = [member.readings["measured.predictive_own"] for member in row.each]
        unknown = np.isnan(losses)
        if np.where(unknown, np.array(answers) > farthest, np.array(losses) > most_lost).any():
            return True
        return bool(unknown.any() and row.readings["measured.gate_pooled"] > most)

    return np.array([is_over(row) for row in rows])
