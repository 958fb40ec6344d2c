"""Whether merging losses say what a merge is worth for every expert."""

import math
from collections.abc import Collection, Iterable

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.recipe.default_limits import MAX_MERGING_LOSS
from mergekit_collapse.recipe.limits import EvaluateBlock

ROWS = 32
"""A loss on as many rows is what was held against outcomes (``docs/evidence.md``)."""


def limits_losses(limits: EvaluateBlock) -> bool:
    """Whether a loss is limited at least as tightly as where it was found to tell collapse."""
    return limits.max_merging_loss is not None and limits.max_merging_loss <= MAX_MERGING_LOSS


def covers(owners: Iterable[tuple[str, int | None]], told: Collection[str], experts: int) -> bool:
    """Whether every expert owns a task, and all tasks that have an owner are among those told.

    Args:
        owners: each task by name, with the index of its expert.
        told: names of tasks.
        experts: N.
    """
    owned = [(name, owner) for name, owner in owners if owner is not None]
    every = {owner for _, owner in owned} == set(range(experts))
    return every and all(name in told for name, _ in owned)


def losses_tell(found: Evaluation, limits: EvaluateBlock, experts: int) -> bool:
    """Whether the losses of a merged model tell enough that defaults about distances give way.

    Every expert owns a task, and every task of an expert has a finite loss on ``ROWS`` rows or
    more, under a limit that is no looser than the default. Whether they are within it is judged
    elsewhere.

    Args:
        found: of the merged model, as far as it was measured.
        experts: N.
    """
    if found.hidden is None or not limits_losses(limits):
        return False
    told = {
        task.name
        for task in found.tasks
        if task.rows >= ROWS and task.loss_percent is not None and math.isfinite(task.loss_percent)
    }
    return covers(((task.name, task.owner) for task in found.hidden.own_task), told, experts)


def applied(limits: EvaluateBlock, found: Evaluation | None, experts: int) -> EvaluateBlock:
    """The limits that a merged model is held against, once its losses are known.

    The default ``max_distortion`` gives way where losses tell: beside these it refuses twice as
    many good merges and finds hardly another collapse (``docs/evidence.md``). One that the author
    wrote stays.

    Args:
        found: None where nothing was measured, and all limits stand.
    """
    if found is None or limits.wrote("max_distortion"):
        return limits
    if not losses_tell(found, limits, experts):
        return limits
    return limits.model_copy(update={"max_distortion": None})
