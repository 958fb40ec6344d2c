"""Recipes that a command reads as text and writes again."""

import os
from contextlib import suppress
from pathlib import Path

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError


def recipe_text_in(path: Path) -> str:
    """The text with its own line ends.

    Raises:
        InvalidRecipeError: no such file, or no UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InvalidRecipeError(
            f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    except OSError as error:
        raise InvalidRecipeError(f"{path}: cannot be read: {error.strerror}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        EvaluationError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EvaluationError(
            f"{path}: cannot be written: {error.strerror}; name a file in a folder that can"
        ) from None
