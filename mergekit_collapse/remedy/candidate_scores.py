"""How well each candidate of a pool goes with the chosen ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.remedy.candidate_sets import (
    CandidateSets,
    with_member,
    without_member,
)
from mergekit_collapse.remedy.choosing import Choice
from mergekit_collapse.shapes import Float64


@dataclass(frozen=True)
class CandidateScore:
    """How well one candidate goes with the chosen ones. All r² in units of D².

    Attributes:
        score: r²(S) / ``swapped``, in [0, 1]: 1 for members, and for others that would do
            no harm in place of one; None where ``swapped`` is.
        swapped: least r² of the chosen set after one swap, of this candidate for a member that
            need not be there; r²(S) for members; None where every member must be there.
        added: r² of the chosen set with this candidate besides; r²(S) for members.
        removed: r² of the chosen set without this member; None for others.
    """

    score: float | None
    swapped: float | None
    added: float
    removed: float | None


def candidate_scores(
    squared: Float64[np.ndarray, "candidate candidate"],
    choice: Choice,
    required: Sequence[int] = (),
) -> tuple[CandidateScore, ...]:
    """Every candidate against the chosen set, those that were excluded too.

    Args:
        squared: D², as it was chosen by.
        choice: S.
        required: members that no other may replace.
    """
    sets = CandidateSets(squared, tuple(required), ())
    members, radius = choice.members, choice.radius_squared
    replaceable = any(i not in sets.required for i in members)
    scores = []
    for index in range(len(squared)):
        if index in members:
            rest = sets.radius(without_member(members, index)) if len(members) > 1 else 0.0
            scores.append(CandidateScore(1.0, radius, radius, rest))
            continue
        more = with_member(members, index)
        added, swapped, score = sets.radius(more), None, None
        if replaceable:
            # The ball rests on its rim: whoever else leaves, it stays as it is.
            swaps = [without_member(more, old) for old in sets.rim(more) if old != index]
            swapped = min(map(sets.radius, swaps), default=added)
            score = 1.0 if swapped <= radius + sets.tolerance else radius / swapped
        scores.append(CandidateScore(score, swapped, added, None))
    return tuple(scores)
