"""What the preflight has to say about a recipe or a model, before anything is measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One defect or difference.

    Attributes:
        severity: an ``error`` stops the merge; a ``warning`` is a difference that merges survive.
        subject: the model or the part of the recipe it is about.
        message: what is wrong and what was found instead.
        advice: what the user can do about it.
        invalid_recipe: the recipe itself is wrong (exit 2), whatever its models hold.
    """

    severity: Severity
    subject: str
    message: str
    advice: str
    invalid_recipe: bool = False

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}; {self.advice}"


def error(subject: object, message: str, advice: str) -> Finding:
    """A finding that stops the merge: a model is unreadable or does not fit the others."""
    return _finding("error", subject, message, advice)


def recipe_error(subject: object, message: str, advice: str) -> Finding:
    """A finding that stops the merge: the recipe is wrong, whatever its models hold."""
    return _finding("error", subject, message, advice, invalid_recipe=True)


def warning(subject: object, message: str, advice: str) -> Finding:
    """A difference that a merge survives but that the user should know."""
    return _finding("warning", subject, message, advice)


def _finding(
    severity: Severity, subject: object, message: str, advice: str, invalid_recipe: bool = False
) -> Finding:
    """Names come from other people's files: what would steer a terminal is written out."""
    return Finding(
        severity,
        printable(str(subject)),
        printable(message),
        printable(advice),
        invalid_recipe,
    )


def printable(text: str) -> str:
    """A stranger's text, with what a terminal would obey written out, such as ``\\x1b``."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(items: Iterable[object], limit: int = 4) -> str:
    """A list for a message: the first few, and how many more there are."""
    values = [str(item) for item in items]
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more
