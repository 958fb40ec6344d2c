"""The limits of a block as a criterion for any group of the recipe's experts."""

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.group_reading import (
    GroupReading,
    ball_reading,
    corollary_reading,
    weights_reading,
)
from mergekit_collapse.remedy.own_task_reading import (
    own_task_reading,
    own_task_weights_reading,
)
from mergekit_collapse.shapes import Float64, Int64


def group_limits(
    geometry: Geometry, budget: BudgetBlock, coefficients: Float64[np.ndarray, " model"] | None
) -> Criterion:
    """What ``judging.judge`` holds against the whole recipe, for a part of it.

    The scale is that of all experts, so a part that is inside has to be measured again.

    Args:
        geometry: of the space that decides.
        coefficients: the recipe's α over all models, which ``rule: weights`` needs.

    Raises:
        EvaluationError: a distance is NaN, or the reading is undefined for this recipe.
    """
    experts = geometry.expert_count
    squared = geometry.squared[:experts, :experts]
    difficulty = None
    if budget.mds is not None:
        chance = None if geometry.chance is None else geometry.chance[:experts, :experts]
        distance = geometry.distance[:experts, :experts]
        difficulty = DifficultyLimit(budget.mds, budget.similarity, distance, chance)
    reading = ball_reading(squared)
    if budget.distortion is not None:
        reading = _reading(geometry, budget, coefficients)
    return Criterion(squared, reading, budget.distortion, difficulty)


def owned_tasks(
    geometry: Geometry,
) -> tuple[Float64[np.ndarray, "task model model"], Int64[np.ndarray, " task"]]:
    """D² on the probes of each task that has an owner, over all models, and the owners.

    Raises:
        EvaluationError: no task has one, or the distances of one are undefined.
    """
    tasks = [task for task in geometry.own_task.tasks if task.owner is not None]
    matrices = [task.squared for task in tasks if task.squared is not None]
    if not tasks or len(matrices) < len(tasks):
        reasons = [task.reason for task in tasks if task.reason] or ["no expert owns a task"]
        raise EvaluationError(f"own-task distances are undefined: {reasons[0]}; mend the probes")
    return np.stack(matrices), np.array([task.owner for task in tasks], dtype=np.int64)


def _reading(
    geometry: Geometry, budget: BudgetBlock, coefficients: Float64[np.ndarray, " model"] | None
) -> GroupReading:
    experts = geometry.expert_count
    base = experts if len(geometry.squared) > experts else None
    if budget.rule == "weights" and coefficients is None:
        raise EvaluationError("rule: weights needs a method whose weights are known")
    if budget.over == "own_task":
        squared, owner = owned_tasks(geometry)
        if coefficients is None or budget.rule != "weights":
            return own_task_reading(squared[:, :experts, :experts], owner)
        return own_task_weights_reading(squared, owner, coefficients, base=base)
    if budget.rule == "weights" and coefficients is not None:
        return weights_reading(geometry.squared, coefficients, base=base)
    squared = geometry.squared[:experts, :experts]
    if budget.rule == "corollary":
        return corollary_reading(squared, geometry.dimension)
    return ball_reading(squared)
