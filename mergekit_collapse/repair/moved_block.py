"""A recipe's block as it has to read in another folder."""

import os
from pathlib import Path
from typing import Any

from mergekit.common import ModelPath, ModelReference

from mergekit_collapse.evaluation.lm_eval_tasks import local_path
from mergekit_collapse.probes.files import FILE_KINDS
from mergekit_collapse.recipe.pool_experts import named_from_anywhere, with_renamed
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.repair.changed_recipe import written_block


def moved_block(recipe: Recipe, folder: Path) -> Any:
    """The recipe's block as `moved` has it."""
    return moved(written_block(recipe), recipe, folder)


def moved(block: Any, recipe: Recipe, folder: Path) -> Any:
    """A block as plain data, with probe files, pool and lm-eval's files named from ``folder``.

    The models of tasks are named as the recipe names its experts. Where the folder is the
    recipe's own, the block is as it was written.

    Args:
        block: what ``recipe.compat`` was read from; it is changed in place.
        recipe: in its own folder.
        folder: where the recipe will lie.
    """
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
        substitute["pool"] = _pool(recipe, old, new)
    if "lm_eval" in (evaluate := _mapping(block.get("evaluate"))):
        listed = recipe.compat.evaluate.lm_eval
        evaluate["lm_eval"] = [_task(old, task, new) for task in listed]
    return block


def _pool(recipe: Recipe, old: Path, new: Path) -> Any:
    """One list or one for each expert, whose model is named as the recipe names it."""
    pool = recipe.compat.substitute.pool
    if not isinstance(pool, dict):
        return [_reference(old, path, new) for path in pool]
    listed = {key: [_reference(old, path, new) for path in paths] for key, paths in pool.items()}
    return with_renamed(listed, named_from_anywhere(recipe))


def _mapping(value: Any) -> dict[str, Any]:
    """``evaluate: false`` has no keys."""
    return value if isinstance(value, dict) else {}


def _reference(old: Path, text: str, new: Path) -> str:
    """A model, and its adapter, where they are found beside the recipe."""
    try:
        model = ModelReference.parse(text)
    except (ValueError, RuntimeError):
        return text  # of a pool that nobody has looked at
    placed: dict[str, ModelPath] = {}
    for key, part in (("model", model.model), ("lora", model.lora)):
        if part is not None and (old / part.path).exists():
            placed[key] = part.model_copy(update={"path": _way(old, part.path, new)})
    return str(model.model_copy(update=placed)) if placed else text


def _task(old: Path, task: str, new: Path) -> str:
    """A task file beside the recipe; lm-eval's own tasks have names, and no place."""
    if local_path(task, old) is None or task.startswith("~"):
        return task
    moved = _way(old, task, new)
    return moved if moved.startswith((".", "/")) else f"./{moved}"


def _way(old: Path, path: str, new: Path) -> str:
    """A path that was relative to one folder as one that is relative to another."""
    if Path(path).is_absolute():
        return path
    try:
        return Path(os.path.relpath(old / path, new)).as_posix()
    except ValueError:  # another drive of Windows
        return str(old / path)
