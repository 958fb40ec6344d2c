"""How to merge the experts into several models, where one cannot hold them all."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

from mergekit_collapse.geometry.grouping import Grouping, group_curve
from mergekit_collapse.remedy.criterion import Criterion
from mergekit_collapse.remedy.group_reading import Group

# Every subset is judged, which for own tasks is an optimisation each.
EXACT_UP_TO = 10
EXACT_UNBOUNDED_UP_TO = 8


@dataclass(frozen=True)
class Splitting:
    """One merged model for each group.

    Attributes:
        groups: ascending within a group, groups by their first expert; an expert alone in its
            group is used as it is. Empty where every expert would be alone.
        exact: no partition into fewer groups is inside.
        inside: every group is inside the limits.
        values: the reading of each group that the limit is held against, 0 for one alone.
        reason: why there is no such split.
    """

    groups: tuple[Group, ...]
    exact: bool
    inside: bool
    values: tuple[float, ...]
    reason: str | None


def split(
    criterion: Criterion,
    curve: Sequence[Grouping] | None = None,
    barred: Collection[Group] = (),
) -> Splitting:
    """The fewest groups that are all inside the limits; fewer than there are experts.

    Up to 10 experts (8 with own tasks) the answer is exact, whatever the limits; among equals
    the worst reading decides, then the sum of readings. Beyond, the partitions of the K curve
    are gone through, and those of other limits than r² may have been missed.

    Args:
        criterion: over the experts of the recipe, and nothing else.
        curve: of the same D², where it is known already.
        barred: groups that are over a limit all the same, by what else is known of them.

    Raises:
        EvaluationError: as the criterion's readings.
    """
    count = len(criterion.squared)
    exact = count <= (EXACT_UP_TO if criterion.reading.bound else EXACT_UNBOUNDED_UP_TO)
    if exact:
        groups = _fewest_groups(criterion, barred)
    else:
        curve = group_curve(criterion.squared) if curve is None else curve
        groups = next(
            (c.groups for c in curve if all(_inside(criterion, g, barred) for g in c.groups)),
            tuple((i,) for i in range(count)),
        )
    if len(groups) < count:
        values = tuple(criterion.value(group) for group in groups)
        return Splitting(groups, exact, True, values, None)
    pairs = list(combinations(range(count), 2))
    nearest = criterion.best(pairs)
    if not criterion.inside(nearest):
        reason = (
            f"no two of the {count} experts are inside the limits together: the nearest pair is "
            f"at {criterion.excess(nearest):.3g} times its limit"
        )
    elif barred:
        reason = "no other groups are inside the limits"
    else:
        reason = "no group of the K curve with two or more experts is inside the limits"
    return Splitting((), exact, False, (), reason)


def _inside(criterion: Criterion, group: Group, barred: Collection[Group]) -> bool:
    return group not in barred and criterion.inside(group)


def _fewest_groups(criterion: Criterion, barred: Collection[Group]) -> tuple[Group, ...]:
    """best[mask]: the cheapest partition of those experts, by a first group and the rest's best.

    The cost is the number of groups, then the worst and the sum of the readings.
    """
    count = len(criterion.squared)
    full = (1 << count) - 1
    members = [tuple(i for i in range(count) if mask >> i & 1) for mask in range(full + 1)]
    inside = [_inside(criterion, group, barred) for group in members]
    best: list[tuple[int, float, float, tuple[int, ...]]] = [(0, 0.0, 0.0, ())]
    for mask in range(1, full + 1):
        first = mask & -mask
        rest = part = mask ^ first
        options = []
        while True:  # every group that holds the first expert; ``part`` is left to the others
            own = mask ^ part
            if inside[own]:
                number, worst, total, masks = best[part]
                value = criterion.value(members[own])
                options.append((number + 1, max(worst, value), total + value, (own, *masks)))
            if not part:
                break
            part = (part - 1) & rest
        best.append(min(options, key=lambda option: option[:3]))
    return tuple(members[mask] for mask in best[full][3])
