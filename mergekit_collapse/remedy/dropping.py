"""Which experts to leave out, so that the rest is inside the budget."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mergekit_collapse.remedy.criterion import Criterion
from mergekit_collapse.remedy.group_reading import Group

EXACT_UP_TO = 16
# Readings without a bound cost an optimisation for each group.
EXACT_UNBOUNDED_UP_TO = 8
FEWEST = 2


@dataclass(frozen=True)
class Dropping:
    """What is left.

    Attributes:
        kept: ascending; all experts where the rest cannot be brought inside.
        dropped: worst first where the search was greedy, else ascending.
        inside: ``kept`` is inside the limits.
        exact: no way to drop fewer, nor as many with a smaller reading; else the worst was
            dropped again and again.
        dropped_at_least: so many have to go, however it is done: with ``exact`` the number
            dropped, or more than ``fewest`` allows; else what pairs that are too far apart show.
        value: the reading of ``kept`` that the limit is held against.
        radius_squared: r² of ``kept``.
        reason: why nothing is inside, with the best that was found.
        nearest: that best, the group nearest to its limits; ``kept`` where it is inside.
    """

    kept: Group
    dropped: Group
    inside: bool
    exact: bool
    dropped_at_least: int
    value: float
    radius_squared: float
    reason: str | None
    nearest: Group


def drop(
    criterion: Criterion,
    *,
    fewest: int = FEWEST,
    keep: Collection[int] = (),
    exact_up_to: int | None = None,
) -> Dropping:
    """Drop as few experts as possible; among equals, keep those with the smallest reading.

    Exact up to 16 experts (8 where every group costs an optimisation, as with own tasks),
    greedy beyond: the expert whose leaving brings the rest nearest to its limits goes first.

    Args:
        criterion: over the experts of the recipe, and nothing else.
        fewest: never leave fewer than these (``drop.min_experts``, the method's arity), nor 2.
        keep: experts that have to stay, such as slerp's base.
        exact_up_to: another size for the exact search.

    Raises:
        EvaluationError: as the criterion's readings.
    """
    everyone, fewest = tuple(range(len(criterion.squared))), max(fewest, FEWEST)
    if exact_up_to is None:
        bounded = criterion.reading.bound is not None
        exact_up_to = EXACT_UP_TO if bounded else EXACT_UNBOUNDED_UP_TO
    exact = len(everyone) <= exact_up_to
    kept: Group | None = None
    if criterion.inside(everyone):
        kept, exact = everyone, True
    elif exact:
        kept = _largest_inside(criterion, fewest, keep)
    order = tuple(i for i in everyone if kept is not None and i not in kept)
    nearest = kept
    if nearest is None:
        nearest, order = _worst_first(criterion, fewest, keep)
        kept = nearest if criterion.inside(nearest) else None
    reason = None
    if kept is None:
        order = ()
        how = "every choice" if exact else "dropping the worst one by one"
        reason = (
            f"{how} of {fewest} or more experts is over the limits: the best that was found, "
            f"with {len(nearest)}, is at {criterion.excess(nearest):.3g} times its limit"
        )
    left = everyone if kept is None else kept
    if exact:
        least = len(everyone) - (fewest - 1 if kept is None else len(kept))
    else:
        least = max(1, _apart(criterion))
    return Dropping(
        kept=left,
        dropped=order,
        inside=kept is not None,
        exact=exact,
        dropped_at_least=least,
        value=criterion.value(left),
        radius_squared=criterion.radius_squared(left),
        reason=reason,
        nearest=nearest,
    )


def _largest_inside(criterion: Criterion, fewest: int, keep: Collection[int]) -> Group | None:
    """Sizes from the top; within one, groups by their bound until no better one can follow."""
    count = len(criterion.squared)
    for size in range(count - 1, fewest - 1, -1):
        groups = [g for g in combinations(range(count), size) if set(keep) <= set(g)]
        bounds = criterion.bounds(groups)
        best: Group | None = None
        least = np.inf if criterion.limit is None else criterion.limit
        for place in np.argsort(bounds, kind="stable"):
            if bounds[place] > least:
                break
            group = groups[place]
            if criterion.inside(group) and (best is None or criterion.value(group) < least):
                best, least = group, criterion.value(group)
        if best is not None:
            return best
    return None


def _worst_first(
    criterion: Criterion, fewest: int, keep: Collection[int]
) -> tuple[Group, tuple[int, ...]]:
    """What is left when it is inside, or the best of the last sizes, and who went, in order."""
    group: Group = tuple(range(len(criterion.squared)))
    order: list[int] = []
    seen = [group]
    while len(group) > fewest and not criterion.inside(group):
        rests = [tuple(j for j in group if j != i) for i in group if i not in keep]
        if not rests:
            break
        rest = criterion.best(rests)
        order += set(group) - set(rest)
        group = rest
        seen.append(group)
    nearest = min(reversed(seen), key=criterion.rank)
    return nearest, tuple(order[: len(seen[0]) - len(nearest)])


def _apart(criterion: Criterion) -> int:
    """Disjoint pairs that cannot stay together; one of each has to go."""
    if criterion.limit is None:
        return 0
    pairs = list(combinations(range(len(criterion.squared)), 2))
    bounds = criterion.bounds(pairs)
    taken: set[int] = set()
    for place in np.argsort(-bounds, kind="stable"):
        if bounds[place] > criterion.limit and not taken & set(pairs[place]):
            taken |= set(pairs[place])
    return len(taken) // 2
