"""Which recipe file a stock MergeKit command is at, where one is running."""

from dataclasses import dataclass
from pathlib import Path

import click

# Names of the click commands, whatever the script that starts them is called.
_STOCK_COMMANDS = {"mergekit-yaml": "mergekit-yaml", "mergekit-multimerge": "mergekit-multi"}


@dataclass(frozen=True)
class RecipeContext:
    """What ``run_merge`` is not told.

    Attributes:
        command: ``mergekit-yaml``, ``mergekit-multi``, or None in any other program.
        config_file: the recipe; relative paths of a ``compat:`` block start at its folder.
        intermediate_dir: where ``mergekit-multi`` puts a merge, in the folder of its name.
    """

    command: str | None = None
    config_file: Path | None = None
    intermediate_dir: Path | None = None


def recipe_context() -> RecipeContext:
    """From click's context, as the stock commands pass neither path to ``run_merge``."""
    context = click.get_current_context(silent=True)
    command = _STOCK_COMMANDS.get(context.command.name or "") if context else None
    if context is None or command is None:
        return RecipeContext()
    config_file, intermediate_dir = (
        context.params.get(key) for key in ("config_file", "intermediate_dir")
    )
    return RecipeContext(
        command=command,
        config_file=Path(config_file) if config_file else None,
        intermediate_dir=Path(intermediate_dir) if intermediate_dir else None,
    )
