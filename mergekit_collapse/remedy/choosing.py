"""Which candidates of a pool merge best: sets with the smallest enclosing ball."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.remedy.candidate_sets import (
    Accept,
    CandidateSets,
    Members,
)
from mergekit_collapse.remedy.set_proof import MOST_WORK, Proof, prove_best
from mergekit_collapse.remedy.set_search import Found, search_sets
from mergekit_collapse.shapes import Float64

FEWEST = 2
GLANCE = 10**5


@dataclass(frozen=True)
class Choice:
    """A set of candidates.

    Attributes:
        members: indices, ascending.
        radius_squared: r² of the set, units of D².
        center: α of the ball's centre, one for each member.
        lower_bound: no admissible set of this size has less r² (within 1e-9 of Δ²/4).
        exact: the set is proven to be the best of its size: ``lower_bound`` has reached it.
        largest: no admissible set within the limit has more members, proven; None where the
            number was given.
        looked_at: partial sets that the proof went through.
    """

    members: Members
    radius_squared: float
    center: tuple[float, ...]
    lower_bound: float
    exact: bool
    largest: bool | None
    looked_at: int

    @property
    def gap(self) -> float:
        """At most this share of r² could be saved by another set of the same size."""
        if not self.radius_squared > 0:
            return 0.0
        return max(0.0, 1 - self.lower_bound / self.radius_squared)


def choose_count(
    squared: Float64[np.ndarray, "candidate candidate"],
    count: int,
    *,
    required: Sequence[int] = (),
    excluded: Sequence[int] = (),
    accept: Accept | None = None,
    seed: int = 0,
    most_work: int = MOST_WORK,
) -> Choice | None:
    """The ``count`` candidates with the smallest enclosing ball.

        min over admissible S with |S| = K of r²(S)

    A search by swaps, then branch and bound from what it found. The bound is deterministic:
    the same distances give the same answer on every machine. Where the proof is given
    up the found set stands, and ``lower_bound`` says how much better another could be.

    Args:
        squared: D² between candidates, without a base.
        count: K, at least 2.
        required: indices that every set must hold.
        excluded: indices that none may hold.
        accept: what else is asked of a set, such as a limit of another reading; called with
            ascending indices. None asks nothing.
        seed: of the search's restarts.
        most_work: of the proof, as in ``prove_best``.

    Returns:
        None where no admissible set was found.

    Raises:
        ValueError: an index is out of range, required and excluded at once, or there are too
            many required or too few candidates for K.
        EvaluationError: a distance is NaN or infinite.
    """
    sets = _admissible(squared, required, excluded, accept)
    _require_count(sets, count)
    return _choice(sets, _best_of(sets, count, seed, most_work), largest=None)


def choose_within(
    squared: Float64[np.ndarray, "candidate candidate"],
    limit: float,
    *,
    required: Sequence[int] = (),
    excluded: Sequence[int] = (),
    accept: Accept | None = None,
    seed: int = 0,
    most_work: int = MOST_WORK,
) -> Choice | None:
    """The largest set with r² <= limit, and of the largest ones that with the least r².

    r² never falls as members join, so the largest size is found by bisection; the next size
    is then searched, and ruled out by branch and bound.

    Args:
        squared, required, excluded, accept, seed, most_work: as for ``choose_count``.
        limit: of r², units of D².

    Returns:
        None where no admissible set of two or more is within the limit.

    Raises:
        ValueError, EvaluationError: as ``choose_count``.
    """
    sets = _admissible(squared, required, excluded, None)
    least, most = max(FEWEST, len(sets.required)), len(sets.required) + len(sets.free)
    if most < FEWEST:
        _require_count(sets, FEWEST)
    low, high = least - 1, most
    while low < high:
        middle = (low + high + 1) // 2
        # Most sizes that are far too large are ruled out at once, and a search is slower.
        glance = prove_best(sets, middle, None, ceiling=limit, most_work=GLANCE)
        found = glance.best
        if found is None and not glance.complete:
            found = search_sets(sets, middle, seed, ceiling=limit)
        low, high = (middle, high) if _within(found, limit) else (low, middle - 1)
    proven, looked_at = True, 0
    while low < most:  # what the search did not find, the proof may
        more = prove_best(sets, low + 1, None, ceiling=limit, most_work=most_work)
        looked_at += more.nodes
        if more.best is None:
            proven = more.complete
            break
        low += 1
    sets.accept = accept
    for count in range(low, least - 1, -1):
        proof = _best_of(sets, count, seed, most_work, ceiling=limit)
        looked_at += proof.nodes
        if proof.best is not None:
            return _choice(sets, proof, largest=proven, looked_at=looked_at)
        proven = proven and proof.complete
    return None


def _admissible(
    squared: Float64[np.ndarray, "candidate candidate"],
    required: Sequence[int],
    excluded: Sequence[int],
    accept: Accept | None,
) -> CandidateSets:
    if not np.isfinite(squared).all():
        raise EvaluationError("choosing needs finite distances: got NaN or infinity")
    every = range(len(squared))
    if strange := sorted({*required, *excluded} - set(every)):
        raise ValueError(f"there are {len(squared)} candidates, so no candidate {strange[0]}")
    if both := sorted({*required} & {*excluded}):
        raise ValueError(f"candidate {both[0]} is both required and excluded")
    return CandidateSets(squared, tuple(set(required)), tuple(set(excluded)), accept)


def _require_count(sets: CandidateSets, count: int) -> None:
    least, most = max(FEWEST, len(sets.required)), len(sets.required) + len(sets.free)
    if not least <= count <= most:
        raise ValueError(f"a set of {count} is not to be had: at least {least}, at most {most}")


def _best_of(
    sets: CandidateSets, count: int, seed: int, most_work: int, ceiling: float = np.inf
) -> Proof:
    found = search_sets(sets, count, seed)
    return prove_best(sets, count, found, ceiling=ceiling, most_work=most_work)


def _within(found: Found | None, limit: float) -> bool:
    """Written so that a NaN is outside."""
    return found is not None and found.radius_squared <= limit


def _choice(
    sets: CandidateSets, proof: Proof, *, largest: bool | None, looked_at: int | None = None
) -> Choice | None:
    if proof.best is None:
        return None
    members = proof.best.members
    return Choice(
        members=members,
        radius_squared=proof.best.radius_squared,
        center=tuple(sets.ball(members).weights.tolist()),
        lower_bound=proof.lower_bound,
        exact=proof.complete,
        largest=largest,
        looked_at=proof.nodes if looked_at is None else looked_at,
    )
