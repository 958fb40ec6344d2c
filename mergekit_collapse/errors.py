"""The one exception family; every message says what, where, got what, and what to do."""

from typing import Any


class CompatError(Exception):
    """A merge that the gate did not let through.

    ``exit_code`` is what every way in ends with; it is a property of the class,
    so that the command line, the stock MergeKit commands and Python callers agree.
    """

    exit_code = 1


class EvaluationError(CompatError):
    """The merge could not be measured: unreadable, mismatched or degenerate input."""

    exit_code = 1


class OutOfMemoryError(EvaluationError):
    """Memory ran out; smaller batches may do. A class, since a process hands on no cause."""


class InvalidRecipeError(CompatError):
    """The recipe, its ``compat:`` block or the command line is wrong."""

    exit_code = 2


class _ReportedError(CompatError):
    """``report`` is the ``Report`` that says why."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class MergeRefusedError(_ReportedError):
    """The merge was measured and is over a limit of its ``compat:`` block."""

    exit_code = 3


class MergeRejectedError(_ReportedError):
    """The merge was made, as far as it came, and the merged model is over a limit."""

    exit_code = 4


class UnevaluatedMergeError(_ReportedError, EvaluationError):
    """The merge was made and put aside, since the merged model could not be evaluated."""
