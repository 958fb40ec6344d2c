"""The readings of a budget on the experts' own tasks, for any group of the experts."""

import numpy as np

from mergekit_collapse.geometry.minimax import minimax_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.remedy.group_reading import Group, GroupReading, merged_members
from mergekit_collapse.shapes import Float64, Int64


def own_task_reading(
    squared: Float64[np.ndarray, "task model model"],
    owner: Int64[np.ndarray, " task"],
    stands_for: Int64[np.ndarray, " model"] | None = None,
    spread: Float64[np.ndarray, "task model"] | None = None,
) -> GroupReading:
    """The least worst own-task distortion of the group, over the tasks that its members own.

    It can rise when an expert leaves whose states helped the others, so every group counts.

    Args:
        squared: D² on the probes of each task, without the base.
        owner: the expert that owns each task. A group with a member that owns none has the
            value NaN, which is never inside.
        stands_for: the expert whose tasks each model answers for; every model for itself if
            None. A candidate that may take one of several places needs a row for each.
        spread: s² of each model on each task, in shares of the s² that ``squared`` is in; 1 if
            None. A task's scale is that of whoever answers for it.
    """

    def value(group: Group) -> float:
        found = _own_tasks(squared, owner, stands_for, spread, group)
        if found is None:
            return float("nan")
        matrices, place = found
        return minimax_distortion(matrices[:, group][:, :, group], place).distortion

    return GroupReading("ball on own tasks", value, None)


def own_task_weights_reading(
    squared: Float64[np.ndarray, "task model model"],
    owner: Int64[np.ndarray, " task"],
    coefficients: Float64[np.ndarray, " model"],
    *,
    base: int | None,
    stands_for: Int64[np.ndarray, " member"] | None = None,
    spread: Float64[np.ndarray, "task member"] | None = None,
) -> GroupReading:
    """The worst predicted distortion under the recipe's own weights, each owner on its own task.

    NaN where ``own_task_reading`` or ``weights_reading`` is.

    Args:
        squared: D² on the probes of each task, over the models of ``coefficients``.
        owner, stands_for, spread: as for ``own_task_reading``; without the base.
        coefficients, base: as for ``weights_reading``.
    """

    def value(group: Group) -> float:
        found = _own_tasks(squared, owner, stands_for, spread, group)
        merged = merged_members(coefficients, base, group)
        if found is None or merged is None:
            return float("nan")
        matrices, place = found
        members, alpha = merged
        every = predicted_distortion(matrices[:, members][:, :, members], alpha)
        return float(every[np.arange(len(place)), place].max())

    return GroupReading("weights on own tasks", value, None)


def _own_tasks(
    squared: Float64[np.ndarray, "task model model"],
    owner: Int64[np.ndarray, " task"],
    stands_for: Int64[np.ndarray, " member"] | None,
    spread: Float64[np.ndarray, "task member"] | None,
    group: Group,
) -> tuple[Float64[np.ndarray, "own model model"], Int64[np.ndarray, " own"]] | None:
    """D² of each task that a member answers for, and that member's place in the group.

    None where a member answers for no task.
    """
    members = np.array(group)
    present = members if stands_for is None else stands_for[members]
    if not np.isin(present, owner).all():
        return None
    tasks = np.flatnonzero(np.isin(owner, present))
    place = (owner[tasks][:, None] == present).argmax(axis=1).astype(np.int64)
    matrices = squared[tasks]
    if spread is not None:
        matrices = matrices / spread[tasks, members[place]][:, None, None]
    return matrices, place
