"""A good set of candidates by greedy starts, swaps of single members, and shaken restarts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.remedy.candidate_sets import (
    CandidateSets,
    Members,
    joined_radius,
    with_member,
    without_member,
)

# Starts and shakes, by the largest set that has so many: large sets have large balls.
EFFORT = ((12, 12, 24), (24, 8, 8), (48, 3, 4), (10**9, 2, 1))
RIM = 16
FIRST_SWAP_BEYOND = 24
NEIGHBOURS = 2000


@dataclass(frozen=True)
class Found:
    """A set and its r²."""

    radius_squared: float
    members: Members


def search_sets(
    sets: CandidateSets, count: int, seed: int, ceiling: float | None = None
) -> Found | None:
    """The best set of ``count`` that was found, among those that are accepted.

    Starts from every candidate with those nearest to it, takes the best few, swaps single
    members while that helps, then shakes the best and swaps again.

    Args:
        sets: what may be chosen; there are at least ``count``.
        count: K, members of a set.
        seed: of the shaking.
        ceiling: a set within it is enough, and ends the search.

    Returns:
        None where no set that was seen is accepted.
    """
    best: Found | None = None
    rng = np.random.default_rng([seed, count])
    starts, shakes = next((a, b) for most, a, b in EFFORT if count <= most)
    walked: Found | None = None
    tried: set[Members] = set()
    for start in _starts(sets, count, starts):
        walked, best = _walk(sets, start, walked, best, tried)
        if ceiling is not None and best is not None and best.radius_squared <= ceiling:
            return best
    for _ in range(shakes):
        assert walked is not None
        walked, best = _walk(sets, _shaken(sets, walked.members, rng), walked, best, tried)
    assert walked is not None
    return best or _accepted_neighbour(sets, walked.members)


def _starts(sets: CandidateSets, count: int, limit: int) -> Iterator[Members]:
    """Each candidate with the required ones and those nearest to them, the best few."""
    need = count - len(sets.required)
    if need == 0:
        yield sets.required
        return
    free = np.array(sets.free, dtype=np.int64)
    begun = [sets.required] if sets.required else []
    begun += [with_member(sets.required, i) for i in sets.free]
    full: dict[Members, None] = {}
    for begin in begun:
        left = free[~np.isin(free, begin)]
        order = np.argsort(sets.squared[left][:, begin].max(axis=1), kind="stable")
        full.setdefault(tuple(sorted((*begin, *left[order[: count - len(begin)]].tolist()))))
    # The diameter is known at once, and r² lies between a quarter and half of it.
    spread = {s: float(sets.squared[np.ix_(s, s)].max()) for s in full}
    nearest = sorted(full, key=spread.__getitem__)[: 4 * limit]
    yield from sorted(nearest, key=sets.radius)[:limit]


def _walk(
    sets: CandidateSets,
    start: Members,
    walked: Found | None,
    best: Found | None,
    tried: set[Members],
) -> tuple[Found | None, Found | None]:
    """Swap single members from ``start`` on; the lowest point so far, and the lowest accepted."""
    here = Found(sets.radius(start), start)
    best = _better(sets, here, best)
    while here.members not in tried:
        tried.add(here.members)
        swapped = _best_swap(sets, here)
        if swapped is None:
            break
        here = swapped
        best = _better(sets, here, best)
    if walked is None or here.radius_squared < walked.radius_squared:
        walked = here
    return walked, best


def _better(sets: CandidateSets, here: Found, best: Found | None) -> Found | None:
    if best is not None and not here.radius_squared < best.radius_squared:
        return best
    return here if sets.accepted(here.members) else best


def _best_swap(sets: CandidateSets, here: Found) -> Found | None:
    """One member leaves and another comes; None where no such set is smaller.

    The best such swap, in large sets the best of the first member whose leaving helps.
    """
    best: Found | None = None
    limit = here.radius_squared - sets.tolerance
    others = np.array([i for i in sets.free if i not in here.members], dtype=np.int64)
    if not len(others):
        return None
    for leaving in sets.rim(here.members)[:RIM]:
        rest = without_member(here.members, leaving)
        if rest:
            distance = sets.from_centre(rest, others)
            bounds = joined_radius(sets.radius(rest), distance)
        else:
            bounds = np.zeros(len(others))
        for index in np.argsort(bounds, kind="stable"):
            if not bounds[index] < limit:
                break
            members = with_member(rest, int(others[index]))
            if (radius := sets.radius(members)) < limit:
                best, limit = Found(radius, members), radius
        if best is not None and len(here.members) > FIRST_SWAP_BEYOND:
            break
    return best


def _shaken(sets: CandidateSets, members: Members, rng: np.random.Generator) -> Members:
    """A third of the free members exchanged, for candidates near to those that stay."""
    free = [i for i in members if i not in sets.required]
    others = np.array([i for i in sets.free if i not in members], dtype=np.int64)
    moves = min(len(others), len(free), max(1, len(members) // 3) + 1)
    if not moves:
        return members
    leaving = set(rng.choice(free, size=moves, replace=False).tolist())
    rest = [i for i in members if i not in leaving]
    near = np.arange(len(others))
    if rest:
        near = np.argsort(sets.squared[others][:, rest].max(axis=1), kind="stable")
    coming = rng.choice(others[near[: 4 * moves]], size=moves, replace=False).tolist()
    return tuple(sorted((*rest, *coming)))


def _accepted_neighbour(sets: CandidateSets, members: Members) -> Found | None:
    """The smallest accepted set that is one swap away, of the first few thousand."""
    others = [i for i in sets.free if i not in members]
    swaps = [
        with_member(without_member(members, old), new)
        for old in members
        if old not in sets.required
        for new in others
    ]
    spread = sorted(swaps, key=lambda s: float(sets.squared[np.ix_(s, s)].max()))
    found = [s for s in spread[:NEIGHBOURS] if sets.accepted(s)]
    return min(
        (Found(sets.radius(s), s) for s in found), key=lambda f: f.radius_squared, default=None
    )
