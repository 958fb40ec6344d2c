"""How far the numbers would move with other probes: a bootstrap over probes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.geometry.chance_distances import ChanceDistances
from mergekit_collapse.geometry.distances import ProbeDistances
from mergekit_collapse.geometry.enclosing_ball import Ball, enclosing_ball
from mergekit_collapse.geometry.merging_difficulty import (
    INFINITE,
    MergingDifficulty,
    difficulty_scores,
    similarities,
)
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.geometry.probe_parts import part_weights, single_parts
from mergekit_collapse.geometry.scales import LayerScale
from mergekit_collapse.shapes import Float64, Int64

RESAMPLES = 1000
# Where so many distances would be drawn that it takes minutes: 2.5 % are five of them.
FEWEST_RESAMPLES = 200
DRAWN_VALUES = 2**28
# 64 MiB of float64 at a time.
BATCH_VALUES = 2**23
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Percentile interval at 95 %; an end that is undefined is None, with the reason.

    Resampling lifts a maximum, so the interval is widened where it must be to hold the value
    itself.
    """

    low: float | None
    high: float | None
    reason: str | None


@dataclass(frozen=True)
class Confidence:
    """Intervals of the pooled quantities.

    Attributes:
        diameter_squared: of Δ².
        ball_radius_squared: of r².
        predicted_worst: of max_i δ_i under the recipe's coefficients.
        mds: of every expert, for each reading, in the order given.
    """

    diameter_squared: Interval
    ball_radius_squared: Interval
    predicted_worst: Interval
    mds: tuple[tuple[Interval, ...], ...]


def resample_weights(
    task_of_probe: Int64[np.ndarray, " probe"],
    seed: int,
    count: int = RESAMPLES,
    part_of_probe: Int64[np.ndarray, " probe"] | None = None,
) -> Float64[np.ndarray, "resample probe"]:
    """Share of each probe in each resample; rows sum to 1.

    Parts of the probes (each probe by itself if None) are drawn with replacement within their
    task, so each task keeps its share.
    """
    rng = np.random.default_rng([seed, 2])
    parts = single_parts(len(task_of_probe)) if part_of_probe is None else part_of_probe
    weights = np.zeros((count, len(task_of_probe)))
    for task in np.unique(task_of_probe):
        probes = np.flatnonzero(task_of_probe == task)
        mine, place = np.unique(parts[probes], return_inverse=True)
        size = len(mine)
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=count)[:, place]
        weights[:, probes] = drawn * (len(probes) / drawn.sum(axis=1, keepdims=True))
    return weights / len(task_of_probe)


def resample_count(experts: int) -> int:
    """1,000, and beyond 518 experts fewer: never less than 200."""
    return max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWN_VALUES // experts**2))


def resampled_squared(
    distances: ProbeDistances,
    scales: Sequence[LayerScale],
    weights: Float64[np.ndarray, "resample probe"],
) -> Float64[np.ndarray, "resample model model"]:
    """D² on every resample, the scale measured there too; NaN where that is degenerate."""
    layers, parts, models, _ = distances.layer_squared.shape
    shares = part_weights(weights, distances.part_of_probe)
    total = np.zeros((len(weights), models * models))
    for squared, scale in zip(distances.layer_squared, scales, strict=True):
        flat = squared.reshape(parts, models * models)
        total += (shares @ flat) * (scale.squared / scale.resampled)[:, None]
    result: Float64[np.ndarray, "resample model model"] = (total / layers).reshape(
        -1, models, models
    )
    return result


def confidence(
    distances: ProbeDistances,
    scales: Sequence[LayerScale],
    chance: ChanceDistances | None,
    weights: Float64[np.ndarray, "resample probe"],
    *,
    ball: Ball,
    mds: Sequence[MergingDifficulty],
    coefficients: Float64[np.ndarray, " model"] | None,
    reason: str | None,
) -> Confidence:
    """Recompute Δ², r², the worst prediction and every MDS on each resample.

    D² is recomputed with each resample's own scale. The readings are ratios of D̄, in which
    the scale of a single layer cancels; with several layers they keep the sample's scales.

    Args:
        distances, scales, chance, ball, mds: as measured on all probes.
        weights: of ``resample_weights``.
        coefficients: the recipe's, or None with ``reason``.
    """
    experts, count = len(ball.weights), len(weights)
    sample = distances.mean_squared
    diameter, radius = np.full(count, np.nan), np.full(count, np.nan)
    scores = [np.full((count, experts), np.nan) for _ in mds]
    step = max(1, BATCH_VALUES // experts**2)
    for start in range(0, count, step):
        batch = slice(start, start + step)
        drawn_scales = [LayerScale(s.squared, s.resampled[batch]) for s in scales]
        squared = resampled_squared(distances, drawn_scales, weights[batch])
        squared = squared[:, :experts, :experts]
        diameter[batch] = squared.max(axis=(1, 2))
        for b in np.flatnonzero(np.isfinite(squared).all(axis=(1, 2))):
            found = enclosing_ball(squared[b], start=ball.weights)
            radius[start + b] = found.radius_squared
        apart = resampled_distance(distances, weights[batch])[:, :experts, :experts]
        at_chance = None if chance is None else resampled_chance(chance, weights[batch])
        for one, drawn in zip(mds, scores, strict=True):
            if one.similarity is not None:
                drawn[batch] = difficulty_scores(similarities(one.reading, apart, at_chance))
    worst = Interval(None, None, reason)
    if coefficients is not None:
        predicted = resampled_distortion(distances, scales, weights, coefficients)
        value = float(predicted_distortion(sample, coefficients)[:experts].max())
        worst = interval(predicted[:, :experts].max(axis=1), value)
    return Confidence(
        diameter_squared=interval(diameter, float(sample[:experts, :experts].max())),
        ball_radius_squared=interval(radius, ball.radius_squared),
        predicted_worst=worst,
        mds=tuple(_mds_intervals(*one) for one in zip(mds, scores, strict=True)),
    )


def resampled_distortion(
    distances: ProbeDistances,
    scales: Sequence[LayerScale],
    weights: Float64[np.ndarray, "resample probe"],
    coefficients: Float64[np.ndarray, " model"],
) -> Float64[np.ndarray, "resample model"]:
    """``predicted_distortion`` of D² on every resample, which is linear in D²: no N × N each."""
    shares = part_weights(weights, distances.part_of_probe)
    total = np.zeros((len(weights), len(coefficients)))
    for squared, scale in zip(distances.layer_squared, scales, strict=True):
        slope = squared @ coefficients
        each = slope - (slope @ coefficients)[:, None] / 2
        total += (shares @ each) * (scale.squared / scale.resampled)[:, None]
    result: Float64[np.ndarray, "resample model"] = np.maximum(total / len(scales), 0.0)
    return result


def resampled_distance(
    distances: ProbeDistances, weights: Float64[np.ndarray, "resample probe"]
) -> Float64[np.ndarray, "resample model model"]:
    """D̄ on every resample, in units of the sample's own scale."""
    parts, models, _ = distances.distance.shape
    flat = distances.distance.reshape(parts, models**2)
    shares = part_weights(weights, distances.part_of_probe)
    result: Float64[np.ndarray, "resample model model"] = (shares @ flat).reshape(
        -1, models, models
    )
    return result


def _mds_intervals(
    mds: MergingDifficulty, scores: Float64[np.ndarray, "resample expert"]
) -> tuple[Interval, ...]:
    if mds.similarity is None:
        return tuple(Interval(None, None, reason) for reason in mds.reasons)
    return tuple(interval(s, value) for s, value in zip(scores.T, mds.mds, strict=True))


def interval(values: Float64[np.ndarray, " resample"], value: float | None) -> Interval:
    """2.5 and 97.5 % points of the resamples, widened to hold ``value``.

    Each end is one of the resamples, since infinity does not interpolate.

    Args:
        values: one per resample; infinity is allowed, a NaN makes the interval undefined.
        value: on all probes; None where it is infinite.
    """
    undefined = int(np.isnan(values).sum())
    if undefined:
        return Interval(None, None, f"undefined in {undefined} of {len(values)} resamples")
    tails = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    here = np.inf if value is None else value
    ends = min(float(tails[0]), here), max(float(tails[1]), here)
    low, high = (end if np.isfinite(end) else None for end in ends)
    return Interval(low, high, None if high is not None else INFINITE)


def resampled_chance(
    chance: ChanceDistances, weights: Float64[np.ndarray, "resample probe"]
) -> Float64[np.ndarray, "resample expert expert"]:
    """D̄°: a pair counts with the product of its probes' weights; NaN where no pair is left."""
    pairs, experts, _ = chance.distance.shape
    both = weights[:, chance.probes[:, 0]] * weights[:, chance.probes[:, 1]]
    total = both.sum(axis=1, keepdims=True)
    flat = both @ chance.distance.reshape(pairs, -1)
    mean = np.divide(flat, total, out=np.full_like(flat, np.nan), where=total > 0)
    result: Float64[np.ndarray, "resample expert expert"] = mean.reshape(-1, experts, experts)
    return result
