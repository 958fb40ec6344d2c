"""Everything the hidden states of one space say about a merge: states in, one record out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.bounds import Bounds, distance_bounds
from mergekit_collapse.geometry.chance_distances import chance_distances
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.enclosing_ball import Ball, enclosing_ball
from mergekit_collapse.geometry.grouping import Grouping, group_curve
from mergekit_collapse.geometry.merging_difficulty import (
    READINGS,
    MergingDifficulty,
    Reading,
    merging_difficulty,
)
from mergekit_collapse.geometry.own_task import OwnTasks, PooledSample, own_task_distortion
from mergekit_collapse.geometry.predicted import SUM_TOLERANCE, predicted_distortion
from mergekit_collapse.geometry.probe_parts import probe_parts
from mergekit_collapse.geometry.resampling import (
    Confidence,
    confidence,
    resample_count,
    resample_weights,
)
from mergekit_collapse.geometry.rows import select_probes
from mergekit_collapse.geometry.scales import Scale, layer_scales
from mergekit_collapse.shapes import Float64, Int64
from mergekit_collapse.states.states import Space, SpaceStates

NO_COEFFICIENTS = "the method's weights do not map to coefficients of the models' states"


@dataclass(frozen=True)
class LayerProfile:
    """Δ² and r² of one layer by itself, in units of its own scale."""

    layer: int
    diameter_squared: float
    ball_radius_squared: float


@dataclass(frozen=True)
class Geometry:
    """One space, measured. Every number is finite; what is undefined is None, with the reason.

    Attributes:
        space, layers, pooling: as in ``SpaceStates``.
        scale: what distances are divided by; ``none`` in predictive space, whose unit is natural.
        scale_squared: s² of each layer.
        dimension: d, features of a state, summed over layers.
        expert_count: N; the model axis holds the experts, then the base if any.
        distance: D̄, mean over probes, dimensionless.
        squared: D², mean over probes, dimensionless; √D² is Euclidean.
        bounds: Δ² and what follows from it.
        ball: r² and the weights of its centre.
        predicted: δ of each expert under the recipe's coefficients.
        predicted_reason: why that is None.
        chance: D̄°, the distance that unrelated experts would have; None below two probes.
        mds: one record for each of ``READINGS``.
        groups: the curve for K = 1..min(N, 64).
        profile: per layer, where there are several.
        own_task: the same on each task's own probes.
        confidence: intervals of the pooled quantities.
        optimistic: mixtures leave the space (the unit sphere), so that upper bounds and
            predictions are lower than what a merge can attain. Lower bounds hold.
    """

    space: Space
    layers: tuple[int, ...]
    pooling: str
    scale: Scale
    scale_squared: tuple[float, ...]
    dimension: int
    expert_count: int
    distance: Float64[np.ndarray, "model model"]
    squared: Float64[np.ndarray, "model model"]
    bounds: Bounds
    ball: Ball
    predicted: tuple[float, ...] | None
    predicted_reason: str | None
    chance: Float64[np.ndarray, "expert expert"] | None
    mds: tuple[MergingDifficulty, ...]
    groups: tuple[Grouping, ...]
    profile: tuple[LayerProfile, ...]
    own_task: OwnTasks
    confidence: Confidence
    optimistic: bool

    def difficulty(self, reading: Reading) -> MergingDifficulty:
        """The record of one reading."""
        return self.mds[READINGS.index(reading)]


def measure(
    states: SpaceStates,
    expert_count: int,
    task_of_probe: Int64[np.ndarray, " probe"],
    tasks: Sequence[tuple[str, int | None]],
    *,
    scale: Scale,
    coefficients: Float64[np.ndarray, " model"] | None,
    seed: int,
    coefficients_reason: str = NO_COEFFICIENTS,
    models: Sequence[str] | None = None,
) -> Geometry:
    """Measure one space.

    Args:
        states: of all models on all probes.
        expert_count: N, at least 2.
        task_of_probe: index into ``tasks`` of each probe.
        tasks: name and owner (an expert's index, or None) of each task.
        scale: of hidden space; predictive space has its natural unit and takes ``none``.
        coefficients: α of the recipe over all models, or None with ``coefficients_reason``.
            A sum other than 1 makes predictions None, with a reason of its own.
        seed: of the resampling and of the pairs at chance.
        models: names for messages, in the order of the model axis.

    Raises:
        EvaluationError: states are NaN, infinite or degenerate, or too few to be measured.

    Source: arXiv 2603.09463 (Eq. 2 and 3, Theorem 1, Corollary 1).
    """
    _check(states, expert_count, task_of_probe, tasks)
    scale = scale if states.space == "hidden" else "none"
    every = np.arange(len(task_of_probe), dtype=np.int64)
    rows = select_probes(states, every, unit=scale == "unit", models=models)
    matrices = 1 + len(states.values)
    parts = probe_parts(task_of_probe, matrices, len(rows.models), seed)
    weights = resample_weights(task_of_probe, seed, resample_count(expert_count), parts)
    scales = layer_scales(rows, range(expert_count), scale, weights, "all probes")
    scale_squared = tuple(s.squared for s in scales)
    distances = probe_distances(rows, scale_squared, parts)
    distance, squared = distances.mean_distance, distances.mean_squared
    between = squared[:expert_count, :expert_count]
    ball = enclosing_ball(between)
    coefficients, reason = usable_coefficients(coefficients, coefficients_reason)
    predicted = None
    if coefficients is not None:
        predicted = tuple(predicted_distortion(squared, coefficients)[:expert_count].tolist())
    pairs = chance_distances(rows, expert_count, scale_squared, seed)
    chance = None if pairs is None else pairs.distance.mean(axis=0)
    apart = distance[:expert_count, :expert_count]
    mds = tuple(merging_difficulty(r, apart, chance) for r in READINGS)
    per_layer = distances.layer_mean_squared[:, :expert_count, :expert_count]
    dimension = sum(v.shape[2] for v in states.values)
    sample = PooledSample(rows, expert_count, scale, distances, scales, task_of_probe, weights)
    return Geometry(
        space=states.space,
        layers=states.layers,
        pooling=states.pooling,
        scale=scale,
        scale_squared=scale_squared,
        dimension=dimension,
        expert_count=expert_count,
        distance=distance,
        squared=squared,
        bounds=distance_bounds(between, dimension),
        ball=ball,
        predicted=predicted,
        predicted_reason=reason,
        chance=chance,
        mds=mds,
        groups=group_curve(between),
        profile=_profile(states.layers, per_layer),
        own_task=own_task_distortion(sample, tasks, coefficients, reason),
        confidence=confidence(
            distances,
            scales,
            pairs,
            weights,
            ball=ball,
            mds=mds,
            coefficients=coefficients,
            reason=reason,
        ),
        optimistic=states.space == "predictive",
    )


def _check(
    states: SpaceStates,
    expert_count: int,
    task_of_probe: Int64[np.ndarray, " probe"],
    tasks: Sequence[tuple[str, int | None]],
) -> None:
    models = {len(v) for v in states.values}
    if expert_count < 2 or len(models) != 1 or models.pop() not in (expert_count, expert_count + 1):
        raise EvaluationError(
            f"{states.space} states are of {[len(v) for v in states.values]} models for "
            f"{expert_count} experts: at least two experts and at most one base are needed"
        )
    if not len(task_of_probe):
        raise EvaluationError("there are no probes: give at least one task with rows")
    if states.probe_of_row.max() >= len(task_of_probe) or task_of_probe.max() >= len(tasks):
        raise EvaluationError("states, probes and tasks do not belong together")


def usable_coefficients(
    coefficients: Float64[np.ndarray, " model"] | None, reason: str
) -> tuple[Float64[np.ndarray, " model"] | None, str | None]:
    """Coefficients that sum to 1, for which predictions mean something; else None, and why."""
    if coefficients is None:
        return None, reason
    total = float(coefficients.sum())
    if not abs(total - 1) <= SUM_TOLERANCE:
        return None, f"the weights sum to {total:.6g} and no base takes up the rest"
    return coefficients, None


def _profile(
    layers: tuple[int, ...], squared: Float64[np.ndarray, "layer expert expert"]
) -> tuple[LayerProfile, ...]:
    if len(layers) == 1:
        return ()
    return tuple(
        LayerProfile(layer, float(matrix.max()), enclosing_ball(matrix).radius_squared)
        for layer, matrix in zip(layers, squared, strict=True)
    )
