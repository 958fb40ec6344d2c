"""The smallest ball around the experts: no merge, by any method, can be closer to all of them."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float64

GAP = 1e-10
FLAT = 1e-13
LONG = 1e3
# From here on few experts are thought to touch the ball, and distances to be rounded to float32.
MANY = 65


@dataclass(frozen=True)
class Ball:
    """Minimum enclosing ball, by its centre c = Σ α_i h_i.

    Attributes:
        radius_squared: r², the least possible worst distortion, in the units of D².
        weights: α, on the simplex. Unique unless experts are affinely dependent.
    """

    radius_squared: float
    weights: Float64[np.ndarray, " expert"]


def enclosing_ball(
    squared: Float64[np.ndarray, "expert expert"],
    start: Float64[np.ndarray, " expert"] | None = None,
) -> Ball:
    """Exact minimum enclosing ball from squared distances alone.

        r² = min over the simplex of max_i δ_i(α) = max over the simplex of ½ α'D²α
        δ_i(α) = Σ_j α_j D²_ij - ½ Σ_jk α_j α_k D²_jk

    The right-hand problem is solved by an active-set method: Newton steps on the experts with
    weight, an expert whose weight reaches 0 leaves, the one farthest outside the ball enters.
    ½ α'D²α ≤ r² ≤ max_i δ_i(α) for every α, so the answer proves itself: the two ends agree
    to 1e-10 of Δ². Works with duplicate and affinely dependent points. From 65 experts on
    several enter at a time, half as many as have weight: at the best weights of those that had
    it, a Newton step always raises one that enters, so the value rises all the same.

    Args:
        squared: D², any units, Euclidean (from 65 experts on, to about 1e-7), zero diagonal.
        start: weights to start from (a warm start); if None uniform, and from 65 experts on
            the two that are farthest apart.

    Raises:
        EvaluationError: a distance is NaN or infinite, or no weights prove themselves.

    Source: Theorem 1 of arXiv 2603.09463 by way of Jung's theorem; the ball is its exact form.
    """
    count = len(squared)
    largest = float(squared.max())
    if not np.isfinite(squared).all():
        raise EvaluationError("the enclosing ball needs finite distances: got NaN or infinity")
    weights = _start(squared) if start is None else start / start.sum()
    if largest <= 0:
        return Ball(0.0, weights)
    scaled = squared / largest
    active = weights > 0
    for _ in range(100 + 20 * count):
        inside = np.flatnonzero(active)
        step = _newton_step(scaled[np.ix_(inside, inside)], weights[inside], count >= MANY)
        falling = step < 0
        room = np.full(len(inside), np.inf)
        room[falling] = weights[inside][falling] / -step[falling]
        length = min(1.0, float(room.min()))
        weights[inside] = np.where(room <= length, 0.0, weights[inside] + length * step)
        weights /= weights.sum()
        active[inside[room <= length]] = False
        if length < 1:
            continue
        slope = scaled @ weights
        excess = slope - weights @ slope
        if excess.max() <= GAP * 1e-3:
            break
        entering = 1 if count < MANY else max(1, len(inside) // 2)
        outermost = np.argsort(-excess, kind="stable")[:entering]
        active[outermost[excess[outermost] > 0]] = True
    slope = scaled @ weights
    lower, upper = float(weights @ slope) / 2, float(slope.max() - weights @ slope / 2)
    if not upper - lower <= GAP:
        raise EvaluationError(
            f"the enclosing ball of {count} experts is known only to {upper - lower:.1e} of the "
            "squared diameter: are these squared Euclidean distances?"
        )
    return Ball(upper * largest, weights)


def _start(squared: Float64[np.ndarray, "expert expert"]) -> Float64[np.ndarray, " expert"]:
    count = len(squared)
    if count < MANY:
        return np.full(count, 1 / count)
    weights = np.zeros(count)
    weights[list(np.unravel_index(squared.argmax(), squared.shape))] = 0.5
    return weights


def _newton_step(
    squared: Float64[np.ndarray, "active active"],
    weights: Float64[np.ndarray, " active"],
    rounded: bool,
) -> Float64[np.ndarray, " active"]:
    """Step to the maximum of ½ α'D²α with Σα fixed; very long where the function is flat.

    ``rounded`` distances may be those of no points at all: it is very long there as well.
    """
    count = len(weights)
    centred = squared - squared.mean(axis=0)
    curvature = centred.mean(axis=1, keepdims=True) - centred
    slope = squared @ weights
    slope -= slope.mean()
    step: Float64[np.ndarray, " active"]
    try:  # Nothing curves along (1, ..., 1); with that filled in, independent points are regular.
        filled = curvature + curvature.trace() / count**2
        if rounded:
            np.linalg.cholesky(filled)  # refuses a saddle
        step = np.linalg.solve(filled, slope)
        if np.abs(curvature @ step - slope).max() <= FLAT and np.abs(step).max() <= LONG:
            step -= step.mean()
            return step
    except np.linalg.LinAlgError:
        pass
    values, directions = np.linalg.eigh(curvature)
    along = slope @ directions
    curved = values > FLAT
    along[~curved & (np.abs(along) < FLAT)] = 0.0
    step = directions @ (along / np.where(curved, values, FLAT))
    step -= step.mean()
    return step
