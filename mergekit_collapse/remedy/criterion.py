"""Whether a group of experts is inside the budget, and how far it is from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.merging_difficulty import INFINITE, Reading, merging_difficulty
from mergekit_collapse.remedy.group_reading import Group, GroupReading, ball_reading, masks_of
from mergekit_collapse.shapes import Float64


@dataclass(frozen=True)
class DifficultyLimit:
    """A limit on the Merging Difficulty Score of every member.

    Attributes:
        limit: of MDS, at least 1.
        reading: of similarity.
        distance: D̄ over the same models as the criterion's D².
        chance: D̄°, likewise; None where there are fewer than two probes.
    """

    limit: float
    reading: Reading
    distance: Float64[np.ndarray, "model model"]
    chance: Float64[np.ndarray, "model model"] | None

    def scores(self, group: Group) -> tuple[float, ...]:
        """MDS of each member within the group; infinite over every limit, NaN undefined."""
        part = np.ix_(group, group)
        chance = None if self.chance is None else self.chance[part]
        found = merging_difficulty(self.reading, self.distance[part], chance)
        return tuple(
            value if value is not None else (np.inf if why == INFINITE else np.nan)
            for value, why in zip(found.mds, found.reasons, strict=True)
        )


@dataclass(frozen=True)
class Criterion:
    """Limits on a group. A group of one merges nothing and is inside.

    Attributes:
        squared: D² over the experts, and the candidates of a pool after them; no base.
        reading: what ``limit`` is held against.
        limit: of distortion; None switches it off.
        difficulty: None switches it off.
    """

    squared: Float64[np.ndarray, "model model"]
    reading: GroupReading
    limit: float | None
    difficulty: DifficultyLimit | None = None
    _values: dict[Group, float] = field(default_factory=dict, repr=False, compare=False)
    _radius: dict[Group, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not np.isfinite(self.squared).all():
            raise EvaluationError("a remedy needs finite distances: got NaN or infinity")

    def value(self, group: Group) -> float:
        """The reading, each group's solved once. 0 for a group of one."""
        return _once(self._values, group, self.reading.value)

    def radius_squared(self, group: Group) -> float:
        """r² of the group, whatever the reading is."""
        return _once(self._radius, group, ball_reading(self.squared).value)

    def inside(self, group: Group) -> bool:
        """Every limit is kept. Written so that NaN, which stands for undefined, is outside."""
        if len(group) < 2:
            return True
        if self.difficulty is not None and not all(
            score <= self.difficulty.limit for score in self.difficulty.scores(group)
        ):
            return False
        return self.limit is None or bool(self.value(group) <= self.limit)

    def excess(self, group: Group) -> float:
        """The largest multiple of its limit that a reading is at; at most 1 inside."""
        if len(group) < 2:
            return 0.0
        parts = [] if self.limit is None else [_multiple(self.value(group), self.limit)]
        if self.difficulty is not None:
            limit = self.difficulty.limit
            parts += [_multiple(score, limit) for score in self.difficulty.scores(group)]
        return max(parts)

    def rank(self, group: Group) -> tuple[bool, float, float]:
        """Smaller is better: inside or not, then how far from it, then the reading."""
        outside = not self.inside(group)
        return outside, self.excess(group) if outside else 0.0, self.value(group)

    def bounds(self, groups: Sequence[Group]) -> Float64[np.ndarray, " group"]:
        """At most the reading of each group; 0 where no bound is known."""
        if self.reading.bound is None or not groups:
            return np.zeros(len(groups))
        return self.reading.bound(masks_of(groups, len(self.squared)))

    def best(self, groups: Sequence[Group]) -> Group:
        """The group of least rank, the first among equals; bounds spare most of the solving."""
        bounds = self.bounds(groups)
        found, least = groups[0], (True, np.inf, np.inf)
        for place in np.argsort(bounds, kind="stable"):
            bound = float(bounds[place])
            outside = self.limit is not None and bound > self.limit
            over = _multiple(bound, self.limit) if outside and self.limit is not None else 0.0
            if (outside, over, bound) > least:
                break
            rank = self.rank(groups[place])
            if rank < least:
                found, least = groups[place], rank
        return found


def _once(known: dict[Group, float], group: Group, solve: Callable[[Group], float]) -> float:
    if group not in known:
        known[group] = solve(group) if len(group) > 1 else 0.0
    return known[group]


def _multiple(value: float, limit: float) -> float:
    if not value >= 0:
        return np.inf
    if limit > 0:
        return value / limit
    return np.inf if value > 0 else 0.0
