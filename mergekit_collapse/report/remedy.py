"""What the gate changed in a recipe that was over its budget."""

from dataclasses import dataclass
from typing import Any, Literal

from mergekit_collapse.report.geometry_document import defined
from mergekit_collapse.verdict import Reason

Action = Literal["reweight", "drop", "substitute", "karcher", "split"]

_LEFT = "it is not merged any more"
_JOINED = "it was not merged before"


@dataclass(frozen=True)
class RemedyMember:
    """One expert before and after the change.

    Attributes:
        name: as in the recipe as it was written.
        weight_before, weight_after: the method's own; None where it has none.
        predicted_before, predicted_after: δ under the recipe's weights, units of D²; each in the
            scale of the experts of its time, so that the two compare only if nobody left.
        left: the expert is not merged any more, so that what is ``after`` is None.
        joined: it took the place of another, so that what is ``before`` is None.
    """

    name: str
    weight_before: float | None
    weight_after: float | None
    predicted_before: float | None
    predicted_after: float | None
    left: bool
    joined: bool = False


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe, or for ``split`` the recipes that could take its place.

    Attributes:
        action: the block's ``on_violation``.
        source_sha256: digest of the YAML as it was written.
        over: the limits that it passed.
        diff: of the YAML, unified; None for ``split``, which leaves the recipe as it is.
        effective: the YAML that is merged; None likewise.
        members: the experts of the recipe as it was written, then those that joined.
        reading_before, reading_after: the distortion that decides; None where none has a limit.
        notes: what else is to be known.
        split: documents for mergekit-multi, where the action is that.
    """

    action: Action
    source_sha256: str
    over: tuple[Reason, ...]
    diff: str | None
    effective: str | None
    members: tuple[RemedyMember, ...]
    reading_before: float | None
    reading_after: float | None
    notes: tuple[str, ...]
    split: str | None = None

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the experts that are not merged any more."""
        return tuple(member.name for member in self.members if member.left)

    @property
    def joined(self) -> tuple[str, ...]:
        """Names of the experts that took their place."""
        return tuple(member.name for member in self.members if member.joined)


def remedy_document(remedy: Remedy) -> dict[str, Any]:
    """For ``report.json``."""
    unlimited = "budget.distortion is null"
    no_change = "the recipe is as it was written"
    return {
        "action": remedy.action,
        **defined("diff", remedy.diff, no_change),
        **defined("effective", remedy.effective, no_change),
        "dropped": list(remedy.left),
        "joined": list(remedy.joined),
        "experts": [_member(member, remedy.split is not None) for member in remedy.members],
        **defined("distortion_before", remedy.reading_before, unlimited),
        **defined(
            "distortion_after",
            remedy.reading_after,
            "each merge is judged by itself" if remedy.split is not None else unlimited,
        ),
        "over": [str(reason) for reason in remedy.over],
        "notes": list(remedy.notes),
        **defined("split", remedy.split, "the action is another"),
    }


def remedy_lines(remedy: Remedy) -> list[str]:
    """What changed, in a line and as a diff; or the documents of a split."""
    if remedy.split is not None:
        return ["This recipe can be split:", *remedy.split.splitlines()]
    lines = [f"{remedy.action}: {summary(remedy)}", *(f"  note: {note}" for note in remedy.notes)]
    return [*lines, *(remedy.diff or "").splitlines()]


def summary(remedy: Remedy) -> str:
    """One line: who left, what weighs otherwise, and what that made of the distortion."""
    parts = []
    if remedy.left:
        parts.append(f"without {', '.join(remedy.left)}")
    if remedy.joined:
        parts.append(f"with {', '.join(remedy.joined)}")
    stayed = [member for member in remedy.members if not (member.left or member.joined)]
    changed = [m for m in stayed if m.weight_after != m.weight_before]
    if changed and all(m.weight_before is not None for m in changed):
        weights = (f"{m.name} {m.weight_before:.3g} → {m.weight_after:.3g}" for m in changed)
        parts.append(f"weights {', '.join(weights)}")
    if remedy.reading_before is not None and remedy.reading_after is not None:
        parts.append(f"distortion {remedy.reading_before:.3g} → {remedy.reading_after:.3g}")
    return "; ".join(parts) or "the recipe was changed"


def _member(member: RemedyMember, split: bool) -> dict[str, Any]:
    after = "the recipe is as it was written" if split else _LEFT if member.left else None
    before = _JOINED if member.joined else None
    no_weight, no_prediction = "the method takes no weights", "the method has no prediction"
    return {
        "name": member.name,
        **defined("weight_before", member.weight_before, before or no_weight),
        **defined("weight_after", member.weight_after, after or no_weight),
        **defined("predicted_before", member.predicted_before, before or no_prediction),
        **defined("predicted_after", member.predicted_after, after or no_prediction),
    }
