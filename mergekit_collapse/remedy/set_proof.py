"""Branch and bound over sets of candidates: the best set, with the proof that it is the best."""

import heapq
from dataclasses import dataclass
from itertools import count as numbers

import numpy as np

from mergekit_collapse.remedy.candidate_sets import (
    CandidateSets,
    Members,
    joined_radius,
    with_member,
)
from mergekit_collapse.remedy.set_search import Found
from mergekit_collapse.shapes import Float64, Int64

# In units of some 20 ns on one core of 2020: a proof is given up after about two seconds. A count
# and no clock, so that the same distances give the same answer everywhere.
MOST_WORK = 10**8
_PER_NODE, _PER_MEMBER = 5000, 1000
_SHARES = np.array([0.6, 0.8, 1.0, 1.2])


@dataclass(frozen=True)
class Proof:
    """What is known of all sets of one size.

    Attributes:
        best: the best set seen; None where none is accepted and within the ceiling.
        lower_bound: no accepted set has less r², up to the tolerance; the ceiling where none is
            within it.
        complete: every set was ruled out or looked at; else the work ran out.
        nodes: how many partial sets were looked at.
    """

    best: Found | None
    lower_bound: float
    complete: bool
    nodes: int


def prove_best(
    sets: CandidateSets,
    count: int,
    best: Found | None,
    *,
    ceiling: float = np.inf,
    most_work: int = MOST_WORK,
) -> Proof:
    """Look for a better set than ``best`` until there can be none, the most promising first.

    r² never falls as members join, so a partial set is given up when r² of what it must become
    is bounded from below by more than the best. The bounds, with S the partial set, A its
    completion of m members and δ the squared distance from its centre:

        pairs:    r² >= D²_ij / 4
        joining:  ``joined_radius`` for each member of A
        spread:   r² >= ½ α'D²α for every α on the simplex; with a share β on A, in equal parts,
                  (1 - β) r²(S) + Σ_A [ β (1 - β) δ / m + β² Σ_A D² / (2 m²) ],
                  of which the least over A is bounded by the m least terms, each with the
                  m - 1 least distances of its row

    Args:
        sets: what may be chosen.
        count: K, at least 2.
        best: an accepted set to start from.
        ceiling: sets above it do not count.
        most_work: after which the answer is not proven; at least one partial set is looked at.
    """
    search = _Search(sets, count, best, ceiling)
    heap: list[tuple[float, int, Members, Int64[np.ndarray, " candidate"]]] = []
    order = numbers()
    heap.append((0.0, next(order), sets.required, np.array(sets.free, dtype=np.int64)))
    nodes, work = 0, 0.0
    while heap and heap[0][0] < search.limit and work < most_work:
        bound, _, members, candidates = heapq.heappop(heap)
        nodes += 1
        work += _PER_NODE + len(candidates) ** 2 + _PER_MEMBER * len(members) ** 1.5
        for key, child, left in search.expand(bound, members, candidates):
            heapq.heappush(heap, (key, next(order), child, left))
    complete = not heap or not heap[0][0] < search.limit
    least = search.limit if complete else min(heap[0][0], search.limit)
    if complete and search.best is not None:
        least = search.best.radius_squared
    return Proof(search.best, least, complete, nodes)


class _Search:
    """The best set so far, and what a partial set leads to."""

    def __init__(self, sets: CandidateSets, count: int, best: Found | None, ceiling: float) -> None:
        self.sets, self.count = sets, count
        self.best = best if best is not None and best.radius_squared <= ceiling else None
        self.limit = float(np.nextafter(ceiling, np.inf))
        self._lower_limit()

    def _lower_limit(self) -> None:
        if self.best is not None:
            self.limit = self.best.radius_squared - self.sets.tolerance

    def _look_at(self, members: Members) -> None:
        radius = self.sets.radius(members)
        if radius < self.limit and self.sets.accepted(members):
            self.best = Found(radius, members)
            self._lower_limit()

    def expand(
        self, bound: float, members: Members, candidates: Int64[np.ndarray, " candidate"]
    ) -> list[tuple[float, Members, Int64[np.ndarray, "..."]]]:
        """Children that may still hold a better set, each with a lower bound on it."""
        need = self.count - len(members)
        if need == 0:
            self._look_at(members)
            return []
        if members and not self.sets.radius(members) < self.limit:
            return []
        bounds = np.zeros(0)
        while True:
            if len(candidates) < need:
                return []
            bounds = self._bounds(members, candidates, need)
            kept = bounds < self.limit
            if kept.all():
                break
            candidates = candidates[kept]
        # The worst first: they are soon given up, and the good ones are left with few others.
        order = np.argsort(-bounds, kind="stable")
        candidates, bounds = candidates[order], bounds[order]
        if need == 1:
            for index in range(len(candidates) - 1, -1, -1):
                if bounds[index] < self.limit:
                    self._look_at(with_member(members, int(candidates[index])))
            return []
        children = []
        for index in range(len(candidates) - need + 1):
            new, left = int(candidates[index]), candidates[index + 1 :]
            left = left[self.sets.squared[new, left] / 4 < self.limit]
            if len(left) >= need - 1:
                key = max(bound, float(bounds[index]))
                children.append((key, with_member(members, new), left))
        return children

    def _bounds(
        self, members: Members, candidates: Int64[np.ndarray, " candidate"], need: int
    ) -> Float64[np.ndarray, " candidate"]:
        """Per candidate, a lower bound on r² of every completion that it belongs to."""
        squared = self.sets.squared[np.ix_(candidates, candidates)]
        radius, distance, share = 0.0, np.zeros(len(candidates)), np.ones(1)
        result = np.zeros(len(candidates))
        if members:
            radius = self.sets.radius(members)
            distance = self.sets.from_centre(members, candidates)
            share = np.minimum(_SHARES * need / self.count, 0.98)
            result = joined_radius(radius, distance)
            # The completion has `need` members: none is better than the worst of the best.
            result = np.maximum(result, np.partition(result, need - 1)[need - 1])
        if need > 1:
            nearest = np.partition(squared, need - 1, axis=1)[:, :need]
            # The diagonal, 0, is one of them.
            result = np.maximum(result, nearest.max(axis=1) / 4)
            rows = nearest.sum(axis=1)
        else:
            rows = np.zeros(len(candidates))
        share = share[:, None]
        terms = share * (1 - share) * distance / need + share**2 * rows / (2 * need**2)
        if need < len(candidates):
            least = np.partition(terms, need - 1, axis=1)[:, :need]
        else:
            least = np.sort(terms, axis=1)
        worst = least.max(axis=1, keepdims=True)
        spread = (1 - share) * radius + least.sum(axis=1, keepdims=True)
        spread = spread + np.maximum(terms - worst, 0.0)
        bounds: Float64[np.ndarray, " candidate"] = np.maximum(result, spread.max(axis=0))
        return bounds
