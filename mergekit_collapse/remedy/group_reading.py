"""The readings that a budget is held against, for any group of the experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.shapes import Float64

Group = tuple[int, ...]
ASCENTS = 20

# Rows are groups, as 0 and 1 over the models.
Masks = Float64[np.ndarray, "group model"]


def masks_of(groups: Sequence[Group], models: int) -> Masks:
    """One row of 0 and 1 for each group."""
    masks = np.zeros((len(groups), models))
    for row, group in zip(masks, groups, strict=True):
        row[list(group)] = 1.0
    return masks


@dataclass(frozen=True)
class GroupReading:
    """One reading.

    Attributes:
        name: for messages.
        value: of a group of two or more, units of D².
        bound: at most the value, for many groups at once; None where none is known, so that
            each group has to be solved.
    """

    name: str
    value: Callable[[Group], float]
    bound: Callable[[Masks], Float64[np.ndarray, " group"]] | None


def ball_reading(squared: Float64[np.ndarray, "model model"]) -> GroupReading:
    """r², which never rises when an expert leaves.

    The bound is ½ α'D²α, which is at most r² for every α on the simplex, after some rounds of
    α_i ← α_i (D²α)_i / α'D²α. That stays on the simplex and never lowers it (Baum and Eagon).
    """

    def value(group: Group) -> float:
        return enclosing_ball(squared[np.ix_(group, group)]).radius_squared

    def bound(masks: Masks) -> Float64[np.ndarray, " group"]:
        weights = masks / masks.sum(axis=1, keepdims=True)
        for _ in range(ASCENTS):
            slope = weights @ squared
            level = (weights * slope).sum(axis=1, keepdims=True)
            weights = np.divide(weights * slope, level, out=weights, where=level > 0)
        level = ((weights @ squared) * weights).sum(axis=1) / 2
        found: Float64[np.ndarray, " group"] = level / np.square(weights.sum(axis=1))
        return found * (1 - 1e-12)  # rounding

    return GroupReading("ball", value, bound)


def corollary_reading(squared: Float64[np.ndarray, "model model"], dimension: int) -> GroupReading:
    """d/(2(d+1))·Δ², the paper's test; it never rises when an expert leaves."""
    share = dimension / (2 * (dimension + 1))

    def value(group: Group) -> float:
        return share * float(squared[np.ix_(group, group)].max())

    def bound(masks: Masks) -> Float64[np.ndarray, " group"]:
        inside = masks > 0
        found = np.zeros(len(masks))
        for i, row in enumerate(squared):
            found = np.maximum(found, inside[:, i] * np.where(inside, row, 0.0).max(axis=1))
        return share * found

    return GroupReading("corollary", value, bound)


def weights_reading(
    squared: Float64[np.ndarray, "model model"],
    coefficients: Float64[np.ndarray, " model"],
    *,
    base: int | None,
) -> GroupReading:
    """The worst predicted distortion under the recipe's own weights.

    With a base, members keep their coefficients and the base takes up the rest; without one they
    are scaled to sum 1. A group whose weights cannot be scaled so has the value NaN.

    Args:
        squared: D² over experts, candidates and, where there is one, the base.
        coefficients: α over the same; a candidate's is that of the expert it would replace.
        base: its index.
    """

    def value(group: Group) -> float:
        merged = merged_members(coefficients, base, group)
        if merged is None:
            return float("nan")
        members, alpha = merged
        part = squared[np.ix_(members, members)]
        return float(predicted_distortion(part, alpha)[: len(group)].max())

    return GroupReading("weights", value, None)


def in_own_scale(reading: GroupReading, spread: Float64[np.ndarray, " model"]) -> GroupReading:
    """A pooled reading of D², in the scale of the group's own members.

        value(G) · s² / mean over G of s_m²

    Not monotone, so that no bound is known.

    Args:
        reading: in a scale common to all groups, s².
        spread: s_m²/s² of each model.
    """

    def value(group: Group) -> float:
        return reading.value(group) / float(spread[list(group)].mean())

    return GroupReading(reading.name, value, None)


def merged_members(
    coefficients: Float64[np.ndarray, " model"], base: int | None, group: Group
) -> tuple[list[int], Float64[np.ndarray, " member"]] | None:
    """The members, the base after them, and α with sum 1; None where there is no such α.

    With a base the members keep their α and it takes up the rest; without one they are scaled.
    """
    members, alpha = list(group), coefficients[list(group)]
    if base is not None:
        return [*members, base], np.append(alpha, 1 - alpha.sum())
    if not alpha.sum() > 0:
        return None
    return members, alpha / alpha.sum()
