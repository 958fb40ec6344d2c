"""Recipes that a command writes."""

from pathlib import Path

from mergekit_collapse.errors import EvaluationError
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
