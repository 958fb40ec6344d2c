"""How many merged models the experts need: the smallest worst distortion for each number."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mergekit_collapse.geometry.enclosing_ball import Ball, enclosing_ball
from mergekit_collapse.shapes import Float64

EXACT_UP_TO = 10
NEAREST_GROUPS = 3
SLACK = 1e-9
LONGEST = 64
SEARCHED_UP_TO = 64
MOVED_EXPERTS = 4096

Group = tuple[int, ...]


@dataclass(frozen=True)
class Grouping:
    """One point of the curve.

    Attributes:
        group_count: K, the number of merged models.
        worst_radius_squared: largest r² over the groups, in the units of D².
        groups: expert indices, ascending within a group; groups by their first expert.
        exact: no partition into K groups does better; else the best that was found.
    """

    group_count: int
    worst_radius_squared: float
    groups: tuple[Group, ...]
    exact: bool


def group_curve(squared: Float64[np.ndarray, "expert expert"]) -> tuple[Grouping, ...]:
    """Partition of the experts into K groups with the least worst r², for K = 1..min(N, 64).

    The operational form of rate-distortion (log2 of K merged models instead of one).
    Among equals a smaller sum of r² is preferred. Never increases with K. Exact up to
    10 experts, by dynamic programming over subsets; beyond, complete linkage and moves of
    single experts while they help, and beyond 64 experts 4,096 / N moves for each K. More than
    64 merged models are no answer to how to merge: the curve ends there.

    Args:
        squared: D² between experts, without the base.

    Raises:
        EvaluationError: as ``enclosing_ball``.
    """
    balls = _Balls(squared)
    if len(squared) <= EXACT_UP_TO:
        return tuple(_record(balls, groups, True) for groups in _best_partitions(balls))
    curve: list[tuple[Group, ...]] = []
    for groups in _linked_partitions(squared):
        candidates = [_improve(balls, groups)]
        if curve:
            candidates.append(_improve(balls, _split_worst(balls, curve[-1])))
        curve.append(min(candidates, key=balls.cost))
    return tuple(_record(balls, groups, False) for groups in curve)


class _Balls:
    """r² of a group, each solved once."""

    def __init__(self, squared: Float64[np.ndarray, "expert expert"]) -> None:
        self.squared = squared
        self._known: dict[Group, Ball] = {}

    def ball(self, group: Group) -> Ball:
        if group not in self._known:
            self._known[group] = enclosing_ball(self.squared[np.ix_(group, group)])
        return self._known[group]

    def radius(self, group: Group) -> float:
        return self.ball(group).radius_squared

    def outermost(self, group: Group) -> Group:
        """Experts on the surface: the ball shrinks only if one of these leaves."""
        return tuple(i for i, w in zip(group, self.ball(group).weights, strict=True) if w > 0)

    def reach(self, expert: int, group: Group) -> float:
        """Largest squared distance; a quarter of it is the least r² of the two together."""
        return float(self.squared[expert, list(group)].max())

    def cost(self, groups: Iterable[Group]) -> tuple[float, float]:
        radii = [self.radius(g) for g in groups]
        return max(radii), sum(radii)


def _record(balls: _Balls, groups: tuple[Group, ...], exact: bool) -> Grouping:
    return Grouping(len(groups), balls.cost(groups)[0], tuple(sorted(groups)), exact)


def _best_partitions(balls: _Balls) -> list[tuple[Group, ...]]:
    """best[mask] = cheapest partition of mask into K groups, from that into K - 1."""
    count = len(balls.squared)
    full = (1 << count) - 1
    members = [tuple(i for i in range(count) if mask >> i & 1) for mask in range(full + 1)]
    radius = [balls.radius(m) if m else 0.0 for m in members]
    best: dict[int, tuple[float, float, Group]] = {
        mask: (radius[mask], radius[mask], (mask,)) for mask in range(1, full + 1)
    }
    partitions = [best[full][2]]
    for _ in range(1, count):
        longer: dict[int, tuple[float, float, Group]] = {}
        for mask in range(1, full + 1):
            first = mask & -mask
            rest = part = mask ^ first
            found = None
            while part:  # every way to leave `part` to the other groups
                if part in best:
                    worst, total, groups = best[part]
                    own = mask ^ part
                    option = (max(worst, radius[own]), total + radius[own], (own, *groups))
                    found = option if found is None or option[:2] < found[:2] else found
                part = (part - 1) & rest
            if found is not None:
                longer[mask] = found
        best = longer
        partitions.append(best[full][2])
    return [tuple(members[mask] for mask in masks) for masks in partitions]


def _linked_partitions(squared: np.ndarray) -> Iterable[tuple[Group, ...]]:
    """Complete-linkage clusters for K = 1..min(N, 64)."""
    tree = linkage(squareform(np.sqrt(squared), checks=False), method="complete")
    for count in range(1, min(len(squared), LONGEST) + 1):
        labels = fcluster(tree, count, criterion="maxclust")
        groups = [tuple(np.flatnonzero(labels == k).tolist()) for k in np.unique(labels)]
        while len(groups) < count:  # ties leave fewer clusters than asked for
            largest = max(groups, key=len)
            groups.remove(largest)
            groups += [largest[:1], largest[1:]]
        yield tuple(groups)


def _split_worst(balls: _Balls, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """One group more: the worst loses the expert whose leaving helps most."""
    worst = max((g for g in groups if len(g) > 1), key=balls.radius)
    rests = [(tuple(j for j in worst if j != i), (i,)) for i in balls.outermost(worst)]
    rest, alone = min(rests, key=lambda pair: balls.radius(pair[0]))
    return (*(g for g in groups if g != worst), rest, alone)


def _improve(balls: _Balls, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Move single experts out of the worst group, to the nearest ones, while that helps."""
    count = len(balls.squared)
    moves = count**2 if count <= SEARCHED_UP_TO else MOVED_EXPERTS // count
    for _ in range(moves if len(groups) > 1 else 0):
        worst = max(groups, key=balls.radius)
        limit = balls.radius(worst)
        best, better = balls.cost(groups), None
        for i in balls.outermost(worst) if len(worst) > 1 else ():
            left = tuple(j for j in worst if j != i)
            near = sorted((balls.reach(i, g), g) for g in groups if g != worst)[:NEAREST_GROUPS]
            for reach, group in near:
                if reach / 4 < limit:
                    kept = [g for g in groups if g not in (worst, group)]
                    radii = [balls.radius(g) for g in kept]
                    # A group that an expert joins does not shrink: no ball need be solved.
                    least = [*radii, balls.radius(left), max(reach / 4, balls.radius(group))]
                    if (max(least), sum(least) * (1 - SLACK)) < best:
                        joined = tuple(sorted((*group, i)))
                        radii += [balls.radius(left), balls.radius(joined)]
                        if (max(radii), sum(radii)) < best:
                            best, better = (max(radii), sum(radii)), (*kept, left, joined)
        if better is None:
            break
        groups = better
    return groups
