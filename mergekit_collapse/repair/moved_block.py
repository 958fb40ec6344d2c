"""A recipe's block as it has to read in another folder."""

import os
from pathlib import Path
from typing import Any

from mergekit_collapse.probes.files import FILE_KINDS
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.repair.changed_recipe import written_block


def moved_block(recipe: Recipe, folder: Path) -> Any:
    """The block as plain data, with probe files and the pool named from ``folder``.

    The models of tasks are named as the recipe names its experts. Where the folder is the
    recipe's own, the block is as it was written.
    """
    block = written_block(recipe)
    old, new = recipe.folder.resolve(), folder.resolve()
    if old == new or not isinstance(block, dict):
        return block
    for task, owner in zip(
        (block.get("probes") or {}).get("tasks") or [], recipe.owners, strict=True
    ):
        if Path(task["data"]).suffix.lower() in FILE_KINDS:
            task["data"] = _way(old, task["data"], new)
        if owner is not None:
            task["model"] = str(recipe.experts[owner])
    if "pool" in (substitute := block.get("substitute") or {}):
        listed = recipe.compat.substitute.pool
        substitute["pool"] = [
            _way(old, path, new) if (old / path).exists() else path for path in listed
        ]
    return block


def _way(old: Path, path: str, new: Path) -> str:
    """A path that was relative to one folder as one that is relative to another."""
    if Path(path).is_absolute():
        return path
    try:
        return Path(os.path.relpath(old / path, new)).as_posix()
    except ValueError:  # another drive of Windows
        return str(old / path)
