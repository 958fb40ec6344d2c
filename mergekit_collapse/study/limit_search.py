"""The limit on a score that errs least, under many weightings of the rows at once."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.tied_groups import TiedGroups, tied_groups

RULE = (
    "least (share of the collapsed let through) + COST x (share of the others refused); of equal "
    "ones the limit in the middle of the widest gap between scores, or none if none is better"
)
# Sums of whole numbers over whole numbers: far above their rounding, far below their steps.
EQUAL = 1e-9


@dataclass(frozen=True)
class Limit:
    """Rows over ``value`` are refused.

    Attributes:
        value: infinity allows every row, minus infinity refuses every row.
        allowed, refused: the scores next to it, the highest allowed and the lowest refused.
        loss: share of the collapsed let through + cost · share of the others refused.
    """

    value: float
    allowed: float
    refused: float
    loss: float


def best_limit(
    score: Float64[np.ndarray, " row"], collapsed: Bool[np.ndarray, " row"], cost: float
) -> Limit:
    """By ``RULE``. With a cost of 1 that is the greatest of Youden's J = 1 - loss.

    Shares and not counts, so that it does not matter how many of the rows collapsed.

    Args:
        cost: of refusing all that did not collapse, as a multiple of letting all others through.

    Raises:
        ValueError: a score is NaN, the cost is not above 0, or one of the two kinds is missing.
    """
    groups = tied_groups(score)
    found = best_limits(groups, collapsed, np.ones((1, len(score))), cost)
    if np.isnan(found[0, 0]):
        raise ValueError(
            f"{int(collapsed.sum())} of {len(score)} rows collapsed; a limit needs both kinds"
        )
    return Limit(*found[0].tolist())


def best_limits(
    groups: TiedGroups,
    collapsed: Bool[np.ndarray, " row"],
    weights: Float64[np.ndarray, "resample row"],
    cost: float,
) -> Float64[np.ndarray, "resample 4"]:
    """``Limit``'s four numbers under each weighting; NaN where one kind has no weight."""
    if not 0 < cost < np.inf:
        raise ValueError(f"a cost of {cost}: it is a number above 0, such as 1")
    bad, good = groups.sums(weights * collapsed), groups.sums(weights * ~collapsed)
    losses = _losses(bad, good, cost)
    allowed, refused = _neighbours(groups.values, bad + good > 0)
    middle, width = middles(allowed, refused)
    # No limit at all comes first of equal ones.
    middle[:, -1], width[:, -1] = np.inf, np.inf
    least = losses.min(axis=1, keepdims=True)
    chosen = np.where(losses <= least + EQUAL, width, -1.0).argmax(axis=1)
    picked = np.stack([middle, allowed, refused, losses], axis=2)
    found: Float64[np.ndarray, "resample 4"] = picked[np.arange(len(weights)), chosen]
    found[np.isnan(least[:, 0])] = np.nan
    return found


def middles(
    allowed: Float64[np.ndarray, "*gap"], refused: Float64[np.ndarray, "*gap"]
) -> tuple[Float64[np.ndarray, "*gap"], Float64[np.ndarray, "*gap"]]:
    """The middle of each gap, which is not over the limit, and its width.

    Below the lowest score, minus infinity, which refuses everything, and the largest number there
    is. Infinity is no place to be halfway to: there the limit is the highest score allowed.
    """
    with np.errstate(invalid="ignore"):
        width = np.where(np.isfinite(refused), refused - allowed, 0.0)
        middle = allowed + width / 2
    # Between neighbouring numbers there is none.
    middle = np.where(np.isfinite(refused) & (middle < refused), middle, allowed)
    lowest = np.isneginf(allowed)
    return np.where(lowest, -np.inf, middle), np.where(lowest, np.finfo(np.float64).max, width)


def _losses(
    bad: Float64[np.ndarray, "resample group"],
    good: Float64[np.ndarray, "resample group"],
    cost: float,
) -> Float64[np.ndarray, "resample cut"]:
    """At the cut below all groups, after the first, .., after the last."""
    shares = []
    for sums in (bad, good):
        through = np.cumsum(sums, axis=1)
        with np.errstate(invalid="ignore"):
            shares.append(np.pad(through, ((0, 0), (1, 0))) / through[:, -1:])
    losses: Float64[np.ndarray, "resample cut"] = shares[0] + cost * (1 - shares[1])
    return losses


def _neighbours(
    values: Float64[np.ndarray, " group"], there: Bool[np.ndarray, "resample group"]
) -> tuple[Float64[np.ndarray, "resample cut"], Float64[np.ndarray, "resample cut"]]:
    """At each cut, the highest score below it and the lowest above it of those that are there."""
    below = np.maximum.accumulate(np.where(there, values, -np.inf), axis=1)
    above = np.minimum.accumulate(np.where(there, values, np.inf)[:, ::-1], axis=1)[:, ::-1]
    ends = ((0, 0), (1, 0)), ((0, 0), (0, 1))
    return (
        np.pad(below, ends[0], constant_values=-np.inf),
        np.pad(above, ends[1], constant_values=np.inf),
    )
