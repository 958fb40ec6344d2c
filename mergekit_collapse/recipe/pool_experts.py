"""The experts that a ``substitute.pool`` names, each with the models that may take its place."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import printable
from mergekit_collapse.recipe.recipe import Recipe, expert_named


def expert_called(text: str, recipe: Recipe) -> int:
    """Index of the expert that is called so, by its name, its model or a task that it owns.

    Args:
        text: a key of the pool; a model is found from wherever ``tasks.model`` is.
        recipe: the pool is its.

    Returns:
        Into ``recipe.experts``.

    Raises:
        InvalidRecipeError: none is, or two are.
    """
    where = f"compat.substitute.pool: {printable(text)}"
    owned = _owned(recipe)
    found = {i for i, name in enumerate(recipe.names) if name == text}
    found |= {owned[text]} if text in owned else set()
    with suppress(ValueError, RuntimeError):  # it is no model reference
        model = expert_named(text, recipe.experts, recipe.folders)
        found |= set() if model is None else {model}
    if len(found) == 1:
        return found.pop()
    if found:
        which = " and ".join(str(recipe.experts[i]) for i in sorted(found))
        raise InvalidRecipeError(f"{where} may be {which}; name the expert by its model")
    known = [*recipe.names, *owned, *(str(model) for model in recipe.experts)]
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
    guess = f"did you mean {printable(near[0])!r}? " if near else ""
    raise InvalidRecipeError(
        f"{where} is no expert of this recipe, nor a task of one; {guess}"
        f"Its experts are {', '.join(map(printable, recipe.names))}"
    )


def renamed_experts(old: Recipe, new: Recipe) -> Mapping[str, str]:
    """How each key of the pool has to read in a recipe with other models in the same places.

    A task keeps its name; so does an expert that stays, unless its name means another now.

    Args:
        old: the pool is its.
        new: with its experts under the names that they have when it is read anew.
    """
    pool = old.compat.substitute.pool
    keys = {}
    for key in pool if isinstance(pool, dict) else ():
        index = expert_called(key, old)
        try:
            stays = key in _owned(new) or old.experts[index] == new.experts[index]
            kept = stays and expert_called(key, new) == index
        except InvalidRecipeError:
            kept = False
        keys[key] = key if kept else str(new.experts[index])
    return keys


def named_from_anywhere(recipe: Recipe) -> Mapping[str, str]:
    """How each key of the pool has to read where the recipe lies in another folder."""
    owned, pool = _owned(recipe), recipe.compat.substitute.pool
    keys = {}
    for key in pool if isinstance(pool, dict) else ():
        keys[key] = key
        if key not in owned and key not in recipe.names:
            with suppress(InvalidRecipeError):  # of a pool that nobody has looked at
                keys[key] = str(recipe.experts[expert_called(key, recipe)])
    return keys


def with_renamed(pool: Any, keys: Mapping[str, str]) -> Any:
    """A pool under other keys.

    Args:
        pool: of ``substitute``, as it is written or as it was read; a list stays what it is.
        keys: by each key the one in its place, as of `renamed_experts` or `named_from_anywhere`;
            one that is not among them stays.

    Returns:
        The pool. What two keys name comes under one, in a list; models of a key that stayed alone
        stand as they did, be it as a list or as a text.
    """
    if not isinstance(pool, dict):
        return pool
    found: dict[str, Any] = {}
    for key, models in pool.items():
        name = keys.get(key, key)
        found[name] = [*_listed(found[name]), *_listed(models)] if name in found else models
    return found


def _listed(models: str | Sequence[str]) -> Sequence[str]:
    return [models] if isinstance(models, str) else models


def _owned(recipe: Recipe) -> dict[str, int]:
    """The expert of every task that has one, by the task's name."""
    tasks = zip(recipe.compat.probes.tasks, recipe.owners, strict=True)
    return {task.name: owner for task, owner in tasks if owner is not None}
