"""Weights that keep most experts inside the budget, at the expense of those that are over it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.remedy.weight_range import ROUNDING, Judged, WeightRange
from mergekit_collapse.shapes import Float64

HALVINGS = 20  # to a millionth of what can be taken


@dataclass(frozen=True)
class Protection:
    """Attributes:
    coefficients: α over the model axis; the recipe's own where nothing helps.
    given_up: experts that may be over the budget, worst first.
    found: every other expert is inside the budget, and there is one.
    """

    coefficients: Float64[np.ndarray, " model"]
    given_up: tuple[int, ...]
    found: bool


def protect(
    judged: Judged, allowed: WeightRange, own: Float64[np.ndarray, " model"], budget: float
) -> Protection:
    """Lower the shares of the experts over budget until the others are inside it.

    Given up are experts that are over budget under the recipe's own weights: the fewest for
    which the rest can be brought inside, in the order of how far they are over. Each loses the
    same part t of what it has above the floor, no other share falls, and what is gained goes
    where it helps the rest most; t is the smallest with which all of the rest are inside. Where
    only Σα has to change, nobody is given up.

    Args:
        own: the recipe's α, with a positive Σα over the experts.
        budget: limit of δ.

    Raises:
        EvaluationError: as ``Judged.best``.
    """
    before = judged.distortion(own)
    over = judged.owner[np.argsort(-before, kind="stable")]
    # An owner of several tasks counts with its worst; written so that a NaN is over.
    over = over[: int((~(before <= budget)).sum())]
    worst_first = [int(i) for i in dict.fromkeys(over.tolist())]
    for count in range(len(worst_first) + 1):
        given = tuple(worst_first[:count])
        rest = judged.without(given)
        if not len(rest.owner):
            break
        _, worst = rest.best(_reached(allowed, own, given, 1.0))
        if worst <= budget:
            return Protection(_least_taken(rest, allowed, own, given, budget), given, True)
    return Protection(own, tuple(worst_first[: len(np.unique(judged.owner)) - 1]), False)


def _reached(
    allowed: WeightRange, own: Float64[np.ndarray, " model"], given: Sequence[int], part: float
) -> Float64[np.ndarray, "corner model"]:
    """Corners of what is reached when the given-up lose at most ``part`` of what they can."""
    start = allowed.shares(own)
    low, lost = start.copy(), list(given)
    low[lost] -= part * (start[lost] - allowed.floor)
    corners, taken = [start], float(start.sum() - low.sum())
    if taken > ROUNDING:
        unit = np.eye(allowed.experts)
        corners += [low + taken * unit[j] for j in range(allowed.experts) if j not in given]
    return allowed.corners(np.stack(corners))


def _least_taken(
    rest: Judged,
    allowed: WeightRange,
    own: Float64[np.ndarray, " model"],
    given: Sequence[int],
    budget: float,
) -> Float64[np.ndarray, " model"]:
    """More is reached the more is taken, so halving finds the least that will do."""
    if allowed.allows(own) and rest.worst(own) <= budget:
        return own
    best, worst = rest.best(_reached(allowed, own, given, 0.0))
    if worst <= budget:
        return best
    low, high = 0.0, 1.0
    best, _ = rest.best(_reached(allowed, own, given, high))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found, worst = rest.best(_reached(allowed, own, given, middle))
        if worst <= budget:
            high, best = middle, found
        else:
            low = middle
    return best
