"""Recipes that a command writes."""

from pathlib import Path

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import printable
from mergekit_collapse.report.report import Report
from mergekit_collapse.whole_file import write_whole


def write_recipe(path: Path, text: str) -> None:
    """Write a recipe, whole or not at all.

    Raises:
        EvaluationError: it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be written: {error.strerror}; name a file in a folder that can"
        ) from None


def told_of_fix(path: Path, report: Report) -> str:
    """Whether ``--fix`` wrote its file, in a line."""
    shown = printable(str(path))
    if report.verdict.decision == "modified":
        return f"Recipe: {shown}"
    refused = report.verdict.decision == "refuse"
    why = "no change would be allowed" if refused else "the recipe needs no change"
    return f"{shown} was not written: {why}"
