"""Merging loss: what each task lost on its way from its expert into the merge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.scoring_set import Metric, ScoringSet


@dataclass(frozen=True)
class TaskLoss:
    """One task before and after the merge.

    Attributes:
        owner: index of the expert whose task it is.
        expert: the owner's score on it, 0 to 1.
        merged: the merged model's.
        loss_percent: negative where the merge is worse; None with the reason beside it.
    """

    name: str
    owner: int
    metric: Metric
    rows: int
    expert: float
    merged: float
    loss_percent: float | None
    loss_reason: str | None


def loss_percent(expert: float, merged: float) -> float:
    """(P(merged) / P(expert) − 1) · 100 %, for an expert that does not score 0.

    Source: arXiv 2603.09463, Eq. 1.
    """
    return (merged / expert - 1) * 100


def merging_losses(
    scoring: ScoringSet, expert_scores: Mapping[int, float], merged_scores: Mapping[int, float]
) -> tuple[TaskLoss, ...]:
    """Eq. 1 of arXiv 2603.09463, per task that is scored.

        L = (P(merged) / P(expert) − 1) · 100 %

    Minus 100 means that nothing is left, 0 that nothing was lost, and more than 0 that the
    merge is better than the expert.

    Args:
        expert_scores: of each task's owner, by the task's index in the probe set.
        merged_scores: of the merged model, likewise.

    Raises:
        EvaluationError: a score is missing, NaN, infinite or negative.
    """
    losses = []
    for task in scoring.tasks:
        expert = _checked(expert_scores, task.task, f"the expert's score on {task.name!r}")
        merged = _checked(merged_scores, task.task, f"the merge's score on {task.name!r}")
        loss, reason = None, None
        if expert == 0:
            reason = "the expert itself scores 0 on its own task, and Eq. 1 divides by it"
        elif not math.isfinite(loss := loss_percent(expert, merged)):
            loss, reason = None, "the expert's score is too near 0 to divide by"
        losses.append(
            TaskLoss(task.name, task.owner, task.metric, task.rows, expert, merged, loss, reason)
        )
    return tuple(losses)


def _checked(scores: Mapping[int, float], task: int, what: str) -> float:
    if task not in scores:
        raise EvaluationError(f"{what} is missing; measure it first")
    score = float(scores[task])
    if not (score >= 0 and math.isfinite(score)):
        raise EvaluationError(f"{what} is {score}, which is no score; the model is broken")
    return score
