"""What a stored report may hold about a change of the recipe."""

from typing import Literal

from mergekit_collapse.report.stored import Number, Part, Squared

Place = Literal["stayed", "left", "joined"]


class StoredMember(Part):
    """One expert before and after the change; null where it was or is not merged."""

    name: str
    weight_before: Number | None = None
    weight_after: Number | None = None
    predicted_before: Squared | None = None
    predicted_after: Squared | None = None


class StoredRemedy(Part):
    """The change, or for ``split`` the recipes that could take the place of this one."""

    action: str = ""
    diff: str | None = None
    effective: str | None = None
    dropped: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    experts: tuple[StoredMember, ...] = ()
    distortion_before: Squared | None = None
    distortion_after: Squared | None = None
    over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    split: str | None = None

    def place(self, member: StoredMember) -> Place:
        """What became of an expert."""
        if member.name in self.dropped:
            return "left"
        return "joined" if member.name in self.joined else "stayed"
