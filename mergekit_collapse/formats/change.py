"""What the gate changed in a recipe, read out of the report's document."""

from collections.abc import Iterator
from typing import Any

from mergekit_collapse.report.report import cell

_HEADS = ("expert", "then", "weight before", "after", "predicted before", "after")
_NUMBERS = ("weight_before", "weight_after", "predicted_before", "predicted_after")


def change_line(remedy: dict[str, Any]) -> str:
    """The action in one line: who left, who came, and what became of the distortion.

    Args:
        remedy: of a document, complete.
    """
    parts = []
    if remedy["dropped"]:
        parts.append(f"without {', '.join(remedy['dropped'])}")
    if remedy["joined"]:
        parts.append(f"with {', '.join(remedy['joined'])}")
    before, after = remedy["distortion_before"], remedy["distortion_after"]
    if before is not None and after is not None:
        parts.append(f"distortion {cell(before)} → {cell(after)}")
    elif before is not None:
        parts.append(f"distortion {cell(before)}")
    return f"{remedy['action']}: {'; '.join(parts)}" if parts else remedy["action"]


def member_table(remedy: dict[str, Any]) -> Iterator[list[str]]:
    """Heads, then a row for each expert; empty for a split, which changes none."""
    if remedy["split"] is not None or not remedy["experts"]:
        return
    yield list(_HEADS)
    for one in remedy["experts"]:
        yield [one["name"], _then(one["name"], remedy), *(cell(one[key]) for key in _NUMBERS)]


def _then(name: str, remedy: dict[str, Any]) -> str:
    if name in remedy["dropped"]:
        return "left out"
    return "taken in" if name in remedy["joined"] else "stays"
