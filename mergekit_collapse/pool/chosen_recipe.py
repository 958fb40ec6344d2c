"""The recipe that merges the chosen candidates."""

import math
from dataclasses import replace
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference

from mergekit_collapse.pool.pool_file import PoolFile
from mergekit_collapse.pool.pool_models import compat_of, configuration
from mergekit_collapse.recipe.recipe import Recipe, build_recipe


def chosen_recipe(
    pool: PoolFile, every: Recipe, members: tuple[int, ...]
) -> tuple[dict[str, Any], Recipe]:
    """The recipe of some candidates: MergeKit's keys, and the same resolved.

    Args:
        pool: method, base, parameters and block.
        every: the recipe of all candidates.
        members: indices of its experts.

    Raises:
        InvalidRecipeError: MergeKit does not accept it.
    """
    models = [every.experts[i] for i in members]
    keys = pool.keys
    settings: dict[str, Any] = {
        "merge_method": pool.merge_method,
        "models": [_model(pool.merge_method, model, len(models)) for model in models],
        "base_model": keys.base_model,
        "parameters": keys.parameters or None,
        "dtype": keys.dtype,
        "tokenizer_source": keys.tokenizer_source,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    block = compat_of(pool, models)
    recipe = build_recipe(configuration(pool, settings), block, source=pool.text, path=pool.path)
    named = {every.experts[i]: every.names[i] for i in members}
    names = tuple(named.get(m, n) for m, n in zip(recipe.experts, recipe.names, strict=True))
    return settings, replace(recipe, names=names)


def _model(method: str, model: ModelReference, count: int) -> dict[str, Any]:
    """Even weights that sum to 1, rounded down where they do not come out even."""
    if not any(p.name == "weight" for p in merge_methods.get(method).spec.parameters):
        return {"model": str(model)}
    return {"model": str(model), "parameters": {"weight": math.floor(1e6 / count) / 1e6}}
