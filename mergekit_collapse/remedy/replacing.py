"""Other models in the place of the experts that do not fit."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mergekit_collapse.remedy.criterion import Criterion
from mergekit_collapse.remedy.group_reading import Group

# By slot and candidate: why that one must not stand there.
Unfit = Mapping[tuple[int, int], str]
NOBODY: Unfit = MappingProxyType({})


@dataclass(frozen=True)
class Trial:
    """A candidate in the place of an expert.

    Attributes:
        slot: position among the recipe's experts.
        candidate: index on the model axis.
        value: the reading of the whole group with it; None where it was not measured.
        reason: why that is None.
        unfit: the reason is that it does not do the work of the expert.
    """

    slot: int
    candidate: int
    value: float | None
    reason: str | None
    unfit: bool = False


@dataclass(frozen=True)
class Swap:
    """A replacement that was made; the reading of the whole group before and after it."""

    slot: int
    expert: int
    candidate: int
    before: float
    after: float


@dataclass(frozen=True)
class Replacing:
    """What became of the group.

    Attributes:
        members: index on the model axis for each of the recipe's experts, in their order.
        swaps: in the order in which they were made; none where they do not lead inside.
        tried: every trial of every round.
        inside: ``members`` are inside the limits.
        value: the reading of ``members``.
        radius_squared: r² of ``members``.
        reason: why they are not inside, with the best that was found.
    """

    members: Group
    swaps: tuple[Swap, ...]
    tried: tuple[Trial, ...]
    inside: bool
    value: float
    radius_squared: float
    reason: str | None


def replace_experts(
    criterion: Criterion,
    experts: int,
    *,
    keep: Collection[int] = (),
    candidates: Mapping[int, Sequence[int]] | None = None,
    unfit: Unfit = NOBODY,
) -> Replacing:
    """Replace the worst expert by the candidate that fits best, until the group is inside.

    The worst is the one of highest MDS over its limit, else the one without which the rest is
    nearest to its limits, and where that is the same, as of two, the one that a candidate mends
    most. It gives way to the candidate that leaves the smallest reading, if
    that is an improvement; if none is, the next worst is tried. Every slot is changed at most
    once. A candidate at distance 0 from a member that stays would be that model twice, and is
    left out with a reason, as is one that does not do the work of the expert.

    Args:
        criterion: over the experts, then the candidates of the pool.
        experts: N.
        keep: experts that have to stay, such as slerp's base.
        candidates: those that may take each slot; all of the pool for every slot if None.
        unfit: those of them that do not do the work of the expert in that slot.

    Raises:
        EvaluationError: as the criterion's readings.

    Source: arXiv 2603.09463, section 3.4.4 (replace the task of highest MDS).
    """
    members = tuple(range(experts))
    swaps: list[Swap] = []
    tried: list[Trial] = []
    pool = range(experts, len(criterion.squared))
    open_slots = [slot for slot in range(experts) if slot not in keep]
    while not criterion.inside(members):
        swap = None
        trials, best = {}, {}
        for slot in open_slots:
            offered = pool if candidates is None else candidates[slot]
            trials[slot] = _trials(criterion, members, slot, offered, unfit)
            groups = [_with(members, slot, t.candidate) for t in trials[slot] if t.reason is None]
            best[slot] = min(groups, key=criterion.rank, default=members)
        for slot in _worst_first(criterion, members, open_slots, best):
            tried += trials[slot]
            if criterion.rank(best[slot]) < criterion.rank(members):
                before, after = criterion.value(members), criterion.value(best[slot])
                swap = Swap(slot, members[slot], best[slot][slot], before, after)
                break
        if swap is None:
            break
        members = _with(members, swap.slot, swap.candidate)
        swaps.append(swap)
        open_slots.remove(swap.slot)
    reason = None
    if not (inside := criterion.inside(members)):
        reason = _reason(criterion, members, swaps, tried)
        members, swaps = tuple(range(experts)), []
    return Replacing(
        members=members,
        swaps=tuple(swaps),
        tried=tuple(tried),
        inside=inside,
        value=criterion.value(members),
        radius_squared=criterion.radius_squared(members),
        reason=reason,
    )


def _with(members: Group, slot: int, candidate: int) -> Group:
    return (*members[:slot], candidate, *members[slot + 1 :])


def _worst_first(
    criterion: Criterion, members: Group, slots: Sequence[int], best: Mapping[int, Group]
) -> list[int]:
    """By MDS those over its limit; then all by what their leaving would do, and the best swap."""
    over: dict[int, float] = {}
    if criterion.difficulty is not None:
        scores = criterion.difficulty.scores(members)
        limit = criterion.difficulty.limit
        over = {slot: scores[slot] for slot in slots if not scores[slot] <= limit}
    rests = {slot: (*members[:slot], *members[slot + 1 :]) for slot in slots}
    return sorted(
        slots,
        key=lambda s: (
            -over.get(s, 0.0),
            *criterion.rank(rests[s]),
            *criterion.rank(best[s]),
        ),
    )


def _trials(
    criterion: Criterion, members: Group, slot: int, pool: Sequence[int], unfit: Unfit
) -> list[Trial]:
    trials = []
    stay = [member for place, member in enumerate(members) if place != slot]
    for candidate in pool:
        value, reason = None, unfit.get((slot, candidate))
        if reason is not None:
            trials.append(Trial(slot, candidate, value, reason, unfit=True))
            continue
        if candidate in members:
            reason = "it is a member already"
        elif twins := [m for m in stay if not criterion.squared[candidate, m] > 0]:
            reason = f"it answers every probe as member {members.index(twins[0])} does"
        else:
            value = criterion.value(_with(members, slot, candidate))
        trials.append(Trial(slot, candidate, value, reason))
    return trials


def _reason(
    criterion: Criterion, members: Group, swaps: Sequence[Swap], tried: Sequence[Trial]
) -> str:
    measured = sum(trial.reason is None for trial in tried)
    # A slot is looked at once in every round, and a score is the same in all of them.
    unfit = len({(trial.slot, trial.candidate) for trial in tried if trial.unfit})
    twins = sum(trial.reason is not None and not trial.unfit for trial in tried)
    text = "1 replacement was tried" if measured == 1 else f"{measured} replacements were tried"
    if twins:
        what = "a twin or member" if twins == 1 else "twins or members"
        text += f"{',' if unfit else ' and'} {twins} left out as {what}"
    if unfit:
        text += f" and {unfit} left out for {'its score' if unfit == 1 else 'their scores'}"
    return (
        f"{text}; the best group, with {len(swaps)} of them, is still at "
        f"{criterion.excess(members):.3g} times its limit"
    )
