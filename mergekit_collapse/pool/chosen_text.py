"""The recipe of the chosen candidates as a YAML file, ready to run."""

import copy
from pathlib import Path

import yaml

from mergekit_collapse.findings import printable
from mergekit_collapse.pool.pool_models import compat_of
from mergekit_collapse.pool.selection import Selection
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.repair.moved_block import moved


def recipe_text(selection: Selection, folder: Path | None = None) -> str:
    """The YAML, with even weights and a comment that has those of the ball's centre.

    Args:
        selection: what was chosen.
        folder: where the file will lie, from which probe files and the like are named; the
            pool's if None.
    """
    block = compat_of(selection.pool, selection.recipe.experts)
    if folder is not None:
        block = moved(copy.deepcopy(block), selection.recipe, folder)
    document = {**selection.settings, FIELD: block}
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in _comments(selection)) + body


def _comments(selection: Selection) -> list[str]:
    names = [printable(name) for name in selection.recipe.names]
    choice, geometry = selection.choice, selection.geometry
    total = len(selection.states.squared)
    lines = [
        f"Chosen from {printable(selection.pool.path.name)}: "
        f"{len(choice.members)} of {total} candidates.",
        f"The ball's r² is {geometry.ball.radius_squared:.3g} ({geometry.space} space); "
        f"the gate says {selection.verdict.decision}.",
        "The weights below are even. Nearest to all of them, as far as states mix like weights:",
    ]
    for name, weight in zip(names, geometry.ball.weights.tolist(), strict=True):
        lines.append(f"  {name}: {weight:.4f}")
    if any(model.lora is not None for model in selection.recipe.models):
        lines.append("It merges adapters: give mergekit-yaml --lora-merge-cache FOLDER.")
    return lines
