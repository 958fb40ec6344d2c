"""What each task feels: distances on its own probes alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.distances import ProbeDistances, probe_distances
from mergekit_collapse.geometry.minimax import Minimax, minimax_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.geometry.resampling import Interval, interval, resampled_distortion
from mergekit_collapse.geometry.rows import StateRows, select_probes
from mergekit_collapse.geometry.scales import LayerScale, Scale, layer_scales
from mergekit_collapse.shapes import Float64, Int64


@dataclass(frozen=True)
class OwnTask:
    """One task. What is undefined is None, with the reason.

    Attributes:
        name: the task.
        owner: the expert whose task it is, or None.
        probe_count: its probes.
        scale_squared: s² of each layer: its owner's on these probes (all experts' if no owner).
        distance: D̄ on these probes, dimensionless.
        squared: D² on these probes, dimensionless.
        reason: why the three above are None.
        predicted_distortion: δ_owner under the recipe's coefficients.
        predicted_reason: why that is None.
    """

    name: str
    owner: int | None
    probe_count: int
    scale_squared: tuple[float, ...] | None
    distance: Float64[np.ndarray, "model model"] | None
    squared: Float64[np.ndarray, "model model"] | None
    reason: str | None
    predicted_distortion: float | None
    predicted_reason: str | None


@dataclass(frozen=True)
class OwnTasks:
    """All tasks, and their worst distortion; None, with the reason, unless all experts own one.

    No ball and no bound holds here: the probes of the tasks are disjoint.

    Attributes:
        tasks: in the order of the probes' tasks.
        minimax: least max_i δ_i^own over convex weights of the experts.
        minimax_interval: of the distortion at those weights, over resamples of the probes.
        minimax_reason: why ``minimax`` is None.
        predicted_worst: max_i δ_i^own under the recipe's coefficients.
        predicted_interval: the same over resamples.
        predicted_reason: why ``predicted_worst`` is None.
    """

    tasks: tuple[OwnTask, ...]
    minimax: Minimax | None
    minimax_interval: Interval
    minimax_reason: str | None
    predicted_worst: float | None
    predicted_interval: Interval
    predicted_reason: str | None


@dataclass(frozen=True)
class PooledSample:
    """What was measured on all probes, from which the own-task numbers are taken."""

    rows: StateRows
    expert_count: int
    scale: Scale
    distances: ProbeDistances
    scales: tuple[LayerScale, ...]
    task_of_probe: Int64[np.ndarray, " probe"]
    weights: Float64[np.ndarray, "resample probe"]


@dataclass(frozen=True)
class OnProbes:
    """The same, of one task."""

    distances: ProbeDistances
    scales: tuple[LayerScale, ...]
    weights: Float64[np.ndarray, "resample probe"]


def own_task_distortion(
    sample: PooledSample,
    tasks: Sequence[tuple[str, int | None]],
    coefficients: Float64[np.ndarray, " model"] | None,
    reason: str | None,
) -> OwnTasks:
    """Distances on each task's own probes, and the worst own-task distortion.

        δ_i^own(α) = E_{x in X_i} ||h_i - Σ_j α_j h_j||² / s_i²,  j over the base too

    Args:
        sample: as measured on all probes.
        tasks: name and owner of each.
        coefficients: the recipe's α, or None with ``reason``.

    Raises:
        EvaluationError: as ``minimax_distortion``. A degenerate task is a reason instead.
    """
    parts = [
        _own_task(sample, index, name, owner, coefficients=coefficients, reason=reason)
        for index, (name, owner) in enumerate(tasks)
    ]
    records = tuple(record for record, _ in parts)
    lacking = _lacking(sample, records)
    if lacking:
        none = Interval(None, None, lacking)
        return OwnTasks(records, None, none, lacking, None, none, lacking)
    owned = [(r, r.owner, own) for r, own in parts if r.owner is not None]
    owners = np.array([owner for _, owner, _ in owned], dtype=np.int64)
    n = sample.expert_count
    matrices = np.stack([r.squared[:n, :n] for r, _, _ in owned if r.squared is not None])
    minimax = minimax_distortion(matrices, owners)
    alpha = np.zeros(len(sample.rows.models))
    alpha[:n] = minimax.weights
    draws = [(own, owner) for _, owner, own in owned if own is not None]
    predicted = [r.predicted_distortion for r, _, _ in owned if r.predicted_distortion is not None]
    worst, drift = None, Interval(None, None, reason)
    if coefficients is not None:
        worst = max(predicted)
        drift = _worst_interval(draws, coefficients, worst)
    around = _worst_interval(draws, alpha, minimax.distortion)
    return OwnTasks(records, minimax, around, None, worst, drift, reason)


def _own_task(
    sample: PooledSample,
    index: int,
    name: str,
    owner: int | None,
    *,
    coefficients: Float64[np.ndarray, " model"] | None,
    reason: str | None,
) -> tuple[OwnTask, OnProbes | None]:
    """The record, and what resamples of the task are drawn from."""
    probes = np.flatnonzero(sample.task_of_probe == index).astype(np.int64)
    try:
        own = on_probes(sample, probes, owner, f"task {name!r}")
    except EvaluationError as error:
        why = str(error)
        return OwnTask(name, owner, len(probes), None, None, None, why, None, why), None
    squared = own.distances.mean_squared
    predicted = None
    why_not = "no expert owns this task" if owner is None else reason
    if owner is not None and coefficients is not None:
        predicted = float(predicted_distortion(squared, coefficients)[owner])
    record = OwnTask(
        name=name,
        owner=owner,
        probe_count=len(probes),
        scale_squared=tuple(s.squared for s in own.scales),
        distance=own.distances.mean_distance,
        squared=squared,
        reason=None,
        predicted_distortion=predicted,
        predicted_reason=None if predicted is not None else why_not,
    )
    return record, own


def on_probes(
    sample: PooledSample, probes: Int64[np.ndarray, " probe"], owner: int | None, subject: str
) -> OnProbes:
    """What was measured, on the probes of one task and in units of its owner's scale.

    Raises:
        EvaluationError: there are no probes, or they are not told apart.
    """
    if not len(probes):
        raise EvaluationError(f"{subject} has no probes: give it rows")
    pooled = sample.rows
    rows = select_probes(pooled.states, probes, unit=pooled.unit, models=pooled.models)
    experts = range(sample.expert_count) if owner is None else [owner]
    # Resampling keeps the number of probes of a task, so the shares only need their own sum.
    weights = sample.weights[:, probes] * (len(sample.task_of_probe) / len(probes))
    scales = layer_scales(rows, experts, sample.scale, weights, subject)
    parts, place = np.unique(sample.distances.part_of_probe[probes], return_inverse=True)
    ratios = [p.squared / s.squared for p, s in zip(sample.scales, scales, strict=True)]
    if len(set(ratios)) > 1:
        found = probe_distances(rows, [s.squared for s in scales], place)
        return OnProbes(found, scales, weights)
    distance = sample.distances.distance[parts] * np.sqrt(ratios[0])
    squared = sample.distances.layer_squared[:, parts] * ratios[0]
    return OnProbes(ProbeDistances(distance, squared, place), scales, weights)


def _lacking(sample: PooledSample, tasks: Sequence[OwnTask]) -> str | None:
    """Why there is no worst own-task distortion, if there is none."""
    owners = {task.owner for task in tasks}
    without = [sample.rows.models[i] for i in range(sample.expert_count) if i not in owners]
    if without:
        return f"no probe task belongs to {', '.join(without)}"
    return next((t.reason for t in tasks if t.owner is not None and t.reason), None)


def _worst_interval(
    draws: Sequence[tuple[OnProbes, int]],
    coefficients: Float64[np.ndarray, " model"],
    value: float,
) -> Interval:
    values = [
        resampled_distortion(own.distances, own.scales, own.weights, coefficients)[:, owner]
        for own, owner in draws
    ]
    return interval(np.max(np.stack(values), axis=0), value)
