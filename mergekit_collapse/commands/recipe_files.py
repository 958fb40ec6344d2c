"""Recipes that a command writes."""

import os
from pathlib import Path

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
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


def require_other(path: Path | None, source: Path) -> None:
    """A recipe must not take the place of the pool that it was chosen from.

    Raises:
        InvalidRecipeError: they are one file.
    """
    if path is not None and os.path.realpath(path) == os.path.realpath(source):
        raise InvalidRecipeError(f"--recipe {path}: is the pool itself; name another file")


def told_of_fix(path: Path, report: Report) -> str:
    """Whether ``--fix`` wrote its file, in a line."""
    shown = printable(str(path))
    if report.verdict.decision == "modified":
        return f"Recipe: {shown}"
    refused = report.verdict.decision == "refuse"
    why = "no change would be allowed" if refused else "the recipe needs no change"
    return f"{shown} was not written: {why}"
