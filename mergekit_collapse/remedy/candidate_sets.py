"""Sets of candidates and their balls: what the search and the proof of the best set share."""

from collections.abc import Callable

import numpy as np

from mergekit_collapse.geometry.enclosing_ball import Ball, enclosing_ball
from mergekit_collapse.shapes import Float64, Int64

Members = tuple[int, ...]
Accept = Callable[[Members], bool]

# Two radii nearer than this, in shares of Δ²/4, are equal.
SAME = 1e-9


class CandidateSets:
    """Sets of candidates that hold every required member and no excluded one.

    Attributes:
        squared: D² between all candidates.
        required: members of every set, ascending.
        free: candidates that a set may have besides, ascending.
        accept: what else is asked of a set, or None.
        tolerance: radii (squared) closer than this are equal.
    """

    def __init__(
        self,
        squared: Float64[np.ndarray, "candidate candidate"],
        required: Members,
        excluded: Members,
        accept: Accept | None = None,
    ) -> None:
        self.squared = squared
        self.required = tuple(sorted(required))
        taken = {*required, *excluded}
        self.free = tuple(i for i in range(len(squared)) if i not in taken)
        self.accept = accept
        self.tolerance = SAME * float(squared.max(initial=0.0)) / 4
        self._known: dict[Members, Ball] = {}

    def ball(self, members: Members) -> Ball:
        """The ball of a set, solved once."""
        if members not in self._known:
            part = self.squared[np.ix_(members, members)]
            # Two opposite points and their like: from all of them it is slow in large sets.
            start = np.zeros(len(members))
            start[list(np.unravel_index(int(part.argmax()), part.shape))] = 1.0
            self._known[members] = enclosing_ball(part, start)
        return self._known[members]

    def radius(self, members: Members) -> float:
        """r² of a set."""
        return self.ball(members).radius_squared

    def rim(self, members: Members) -> list[int]:
        """Members that may leave and on whom the ball rests, the heaviest first."""
        weights = self.ball(members).weights
        order = np.argsort(-weights, kind="stable")
        return [members[i] for i in order if weights[i] > 0 and members[i] not in self.required]

    def from_centre(
        self, members: Members, others: Int64[np.ndarray, " other"]
    ) -> Float64[np.ndarray, " other"]:
        """δ, the squared distance of each of ``others`` from the centre of a set's ball."""
        ball = self.ball(members)
        slope = self.squared[others][:, members] @ ball.weights
        distance: Float64[np.ndarray, " other"] = np.maximum(slope - ball.radius_squared, 0.0)
        return distance

    def accepted(self, members: Members) -> bool:
        """Whether the set is what was asked for, apart from its radius."""
        return self.accept is None or self.accept(members)


def joined_radius(
    radius: float, distance: Float64[np.ndarray, " other"]
) -> Float64[np.ndarray, " other"]:
    """Least r² that a ball can have after a point at squared distance δ from its centre joins.

        r²(S + c) >= r²                       where δ <= r²
                  >= (δ + r²)² / (4 δ)        beyond

    A centre moved by t leaves some member at r² + t² or more, and the point at (√δ - t)²;
    the larger of the two is least where they are equal.
    """
    outside = distance > radius
    apart = np.where(outside, distance, 1.0)
    return np.where(outside, (apart + radius) ** 2 / (4 * apart), radius)


def with_member(members: Members, new: int) -> Members:
    """The set with one more, ascending."""
    return tuple(sorted((*members, new)))


def without_member(members: Members, old: int) -> Members:
    """The set with one less."""
    return tuple(i for i in members if i != old)
