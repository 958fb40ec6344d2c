"""What the gate changed, as the page tells it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mergekit_collapse.report.stored_remedy import StoredRemedy

_TOLD = {
    "reweight": "The same experts with other weights",
    "drop": "Fewer experts",
    "substitute": "Other experts in the place of those that did not fit",
    "karcher": "The same experts, averaged as directions",
    "split": "Not merged: one merge for each group would be inside its limits",
}
_FILES = 2


@dataclass(frozen=True)
class DiffLine:
    """One line of a diff, its mark included.

    Attributes:
        kind: of the line, whose mark says it too, so that colour is not alone.
        text: as the diff has it.
    """

    kind: Literal["added", "removed", "kept", "place"]
    text: str


def told(remedy: StoredRemedy) -> str:
    """The action in a sentence."""
    return _TOLD.get(remedy.action, "The recipe was changed")


def diff_lines(remedy: StoredRemedy) -> tuple[DiffLine, ...]:
    """The unified diff line by line; empty where there is none."""
    return tuple(_lines(remedy.diff or ""))


def _lines(diff: str) -> Iterator[DiffLine]:
    for number, line in enumerate(diff.splitlines()):
        # The names of the files have marks as well, and so has a removed line that begins with --.
        if number < _FILES or line.startswith("@@"):
            yield DiffLine("place", line)
        elif line.startswith("+"):
            yield DiffLine("added", line)
        elif line.startswith("-"):
            yield DiffLine("removed", line)
        else:
            yield DiffLine("kept", line)
