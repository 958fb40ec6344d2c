"""The one place where an error of ours becomes one that click prints and exits with."""

from typing import Any

import click

from mergekit_collapse.errors import CompatError
from mergekit_collapse.findings import printable


class GateExit(click.ClickException):
    """A refusal or failure as the stock commands show it: a message, no traceback, an exit code.

    What `at_the_edge` returns is of the error's own class as well. A program that calls
    ``run_merge`` in-process catches ``MergeRefusedError`` like any caller of this package, and what
    catches nothing but click's exceptions is served too.
    """

    error: CompatError

    def format_message(self) -> str:
        """Names come from other people's files: what would steer a terminal is written out."""
        return "\n".join(map(printable, self.message.split("\n")))

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made below and has no importable name; worker processes pickle exceptions.
        return at_the_edge, (self.error,)


_classes: dict[type[CompatError], type[GateExit]] = {}


def _edge_class(family: type[CompatError]) -> type[GateExit]:
    if family not in _classes:
        # The family first: its exit_code stands before click's.
        bases = (family, GateExit)
        _classes[family] = type(family.__name__, bases, {"__doc__": family.__doc__})
    return _classes[family]


def at_the_edge(error: CompatError) -> GateExit:
    """The same error with the same attributes, as click understands it; raise it ``from error``."""
    if isinstance(error, GateExit):
        return error
    edge_class = _edge_class(type(error))
    edge = edge_class.__new__(edge_class)
    # Not the family's own __init__: it may want other arguments, and what it set is copied.
    click.ClickException.__init__(edge, str(error))
    vars(edge).update(vars(error))
    edge.error = error
    return edge
