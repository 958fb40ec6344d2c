"""How far a merged model really is from its experts, on the same probes and in the same units."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.rows import BLOCK_BYTES
from mergekit_collapse.shapes import Float32, Float64, Int64
from mergekit_collapse.states.states import SpaceStates

NOT_ALL_OWN = "not every expert owns a task"


@dataclass(frozen=True)
class MeasuredTask:
    """One task: how far the merged model is from its owner on its own probes.

    Attributes:
        owner: the expert's index, or None.
        distortion: δ_owner^own, in the scale of ``Geometry.own_task``; None with ``reason``.
    """

    name: str
    owner: int | None
    distortion: float | None
    reason: str | None


@dataclass(frozen=True)
class Measured:
    """Measured distortion in one space.

    Attributes:
        layers: as in ``Geometry``, by number in the merged model.
        distortion: δ_i of each expert over all probes, in the units of ``Geometry.squared``.
        own_task: in the order of the probes' tasks.
        own_task_worst: the largest of the owned ones; None, with ``own_task_reason``, unless
            every expert owns a task and every owned one is defined.
    """

    layers: tuple[int, ...]
    distortion: tuple[float, ...]
    own_task: tuple[MeasuredTask, ...]
    own_task_worst: float | None
    own_task_reason: str | None

    @property
    def worst(self) -> float:
        """δ_max."""
        return max(self.distortion)


def measured_distortion(
    experts: SpaceStates,
    merged: SpaceStates,
    geometry: Geometry,
    task_of_probe: Int64[np.ndarray, " probe"],
) -> Measured:
    """What the merge did to each expert's states.

        δ_i = mean_x mean_l ||h_i(x) - h(x)||² / s_l²

    The scale is that of the geometry, so that prediction, bounds and measurement compare.
    In predictive space a vocabulary that only one side has counts as probability 0.

    Args:
        experts: of all models of the recipe, experts first.
        merged: of the merged model alone, on the same rows.
        geometry: as measured from ``experts``.
        task_of_probe: index of each probe's task.

    Raises:
        EvaluationError: states are NaN, infinite, of other rows, of other layers or of another
            width.

    Source: arXiv 2603.09463, the distortion of Theorem 1.
    """
    if not np.array_equal(experts.probe_of_row, merged.probe_of_row):
        raise EvaluationError(
            "the merged model reads other tokens of the probes than its experts, so their states "
            "cannot be compared; merge with the experts' own tokenizer"
        )
    if len(experts.values) != len(merged.values):
        raise EvaluationError(
            f"the merged model was measured after {len(merged.values)} layers, its experts after "
            f"{len(experts.values)}: their depths differ; set compat.layer: last"
        )
    # layer, probe, expert: before any scale.
    squares = np.stack(
        [
            _squared_distances(theirs[: geometry.expert_count], ours[0], experts, geometry)
            for theirs, ours in zip(experts.values, merged.values, strict=True)
        ]
    )
    scale = np.array(geometry.scale_squared)[:, None, None]
    distortion = (squares / scale).mean(axis=(0, 1))
    if not np.isfinite(distortion).all():
        raise EvaluationError("the merged model's states are NaN or infinite on the probes")
    own = tuple(_own_tasks(squares, geometry, task_of_probe))
    reason = _lacking(own, geometry.expert_count)
    worst = None
    if reason is None:
        worst = max(task.distortion for task in own if task.distortion is not None)
    return Measured(merged.layers, tuple(distortion.tolist()), own, worst, reason)


def _lacking(own: tuple[MeasuredTask, ...], expert_count: int) -> str | None:
    """Why there is no worst own-task distortion, if there is none."""
    owned = [task for task in own if task.owner is not None]
    if {task.owner for task in owned} != set(range(expert_count)):
        return NOT_ALL_OWN
    # One that is undefined could be the worst.
    return next((task.reason for task in owned if task.distortion is None), None)


def _own_tasks(
    squares: Float64[np.ndarray, "layer probe expert"],
    geometry: Geometry,
    task_of_probe: Int64[np.ndarray, " probe"],
) -> Iterator[MeasuredTask]:
    for index, task in enumerate(geometry.own_task.tasks):
        if task.owner is None:
            yield MeasuredTask(task.name, None, None, "no expert owns this task")
        elif task.scale_squared is None:
            yield MeasuredTask(task.name, task.owner, None, task.reason)
        else:
            mine = squares[:, task_of_probe == index, task.owner]
            scale = np.array(task.scale_squared)[:, None]
            yield MeasuredTask(task.name, task.owner, float((mine / scale).mean()), None)


def _squared_distances(
    experts: Float32[np.ndarray, "expert row feature"],
    merged: Float32[np.ndarray, "row other"],
    states: SpaceStates,
    geometry: Geometry,
) -> Float64[np.ndarray, "probe expert"]:
    width, other = experts.shape[2], merged.shape[1]
    if width != other and geometry.space == "hidden":
        raise EvaluationError(
            f"the merged model's hidden states are {other} wide and its experts' {width}; "
            "its config.json does not belong to its weights"
        )
    rows_of_probe = np.bincount(states.probe_of_row)
    result = np.zeros((len(rows_of_probe), len(experts)))
    step = max(1, BLOCK_BYTES // (16 * max(width, other)))
    for start in range(0, len(merged), step):
        part = slice(start, start + step)
        ours = _rows(merged[part], max(width, other), geometry)
        probes = states.probe_of_row[part]
        for index, theirs in enumerate(experts):
            difference = _rows(theirs[part], max(width, other), geometry) - ours
            squares = np.einsum("rf,rf->r", difference, difference) / rows_of_probe[probes]
            np.add.at(result[:, index], probes, squares)
    return result


def _rows(
    values: Float32[np.ndarray, "row feature"], width: int, geometry: Geometry
) -> Float64[np.ndarray, "row width"]:
    rows = np.zeros((len(values), width))
    rows[:, : values.shape[1]] = values
    if geometry.scale == "unit":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        # A state of 0 or of infinity has no direction: NaN, which the caller refuses.
        with np.errstate(invalid="ignore"):
            rows /= np.where(norms > 0, norms, np.nan)
    return rows
