"""The models that a pool names, and the recipe that would merge some of them."""

from collections.abc import Sequence
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.pool.pool_file import PoolFile
from mergekit_collapse.recipe.groups import identity
from mergekit_collapse.recipe.recipe import Recipe, build_recipe


def references_of(pool: PoolFile) -> list[ModelReference]:
    """Every candidate, in the order of the pool.

    Raises:
        InvalidRecipeError: no reference, a model twice, or the base itself.
    """
    found: dict[Any, ModelReference] = {}
    base = pool.keys.base_model
    root = identity(_parse(pool, "base_model", base)) if base is not None else None
    for index, candidate in enumerate(pool.keys.candidates):
        reference = _parse(pool, f"candidates[{index}]", candidate.model)
        key = identity(reference)
        if key == root:
            raise InvalidRecipeError(
                f"{pool.path}: candidates[{index}]: {reference} is the base_model itself; remove it"
            )
        if (first := found.setdefault(key, reference)) is not reference:
            raise InvalidRecipeError(
                f"{pool.path}: candidates[{index}]: {reference} is the same model as {first}; "
                "name each once"
            )
    return list(found.values())


def _parse(pool: PoolFile, where: str, text: str) -> ModelReference:
    try:
        return ModelReference.parse(text)
    except (ValueError, RuntimeError) as error:
        raise InvalidRecipeError(
            f"{pool.path}: {where}: {text!r} is no model reference: {error}"
        ) from None


def names_of(pool: PoolFile, references: Sequence[ModelReference]) -> tuple[str, ...]:
    """The pool's own names, and for the others the end of their path.

    Raises:
        InvalidRecipeError: two are the same.
    """
    short = pool_recipe(pool, references).names
    given = [candidate.name for candidate in pool.keys.candidates]
    names = tuple(name or end for name, end in zip(given, short, strict=True))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidRecipeError(
            f"{pool.path}: two candidates would be called {twice[0]!r}; rename one"
        )
    return names


def indices_of(
    pool: PoolFile,
    key: str,
    wanted: Sequence[str],
    references: Sequence[ModelReference],
    names: Sequence[str],
) -> tuple[int, ...]:
    """Candidates by name, or as the model is written.

    Raises:
        InvalidRecipeError: one is no candidate.
    """
    keys = [identity(reference) for reference in references]
    found = []
    for text in wanted:
        if text in names:
            found.append(names.index(text))
        elif (known := identity(_parse(pool, f"choose.{key}", text))) in keys:
            found.append(keys.index(known))
        else:
            raise InvalidRecipeError(
                f"{pool.path}: choose.{key}: {text} is no candidate; "
                f"there are {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
            )
    return tuple(dict.fromkeys(found))


def pool_recipe(
    pool: PoolFile, references: Sequence[ModelReference], *, base_first: bool = False
) -> Recipe:
    """A recipe that merges these candidates evenly, for measuring them.

    Args:
        pool: the base, dtype and block; tasks of other candidates are left out of it.
        references: candidates.
        base_first: the base leads, so that the preflight compares everything with it.
    """
    keys = pool.keys
    models = [str(r) for r in references]
    if base_first and keys.base_model is not None:
        models.insert(0, keys.base_model)
    raw = {
        "merge_method": "linear" if keys.base_model is None else "task_arithmetic",
        "models": [{"model": m, "parameters": {"weight": 1 / len(models)}} for m in models],
        "base_model": keys.base_model,
        "dtype": keys.dtype,
        "tokenizer_source": keys.tokenizer_source,
    }
    block = compat_of(pool, references)
    return build_recipe(configuration(pool, raw), block, source=pool.text, path=pool.path)


def configuration(pool: PoolFile, raw: dict[str, Any]) -> MergeConfiguration:
    """MergeKit's record of a recipe.

    Raises:
        InvalidRecipeError: MergeKit does not accept it.
    """
    try:
        return MergeConfiguration.model_validate({k: v for k, v in raw.items() if v is not None})
    except (ValueError, RuntimeError, TypeError) as error:
        raise InvalidRecipeError(f"{pool.path}: MergeKit does not accept this: {error}") from None


def compat_of(pool: PoolFile, references: Sequence[ModelReference]) -> dict[str, Any]:
    """The pool's block without the tasks of candidates that are not among ``references``."""
    block = dict(pool.keys.compat or {})
    tasks = pool.compat.probes.tasks
    if not tasks:
        return block
    known = {identity(reference) for reference in references}
    every = {identity(reference) for reference in references_of(pool)}
    kept = []
    for raw, task in zip(block["probes"]["tasks"], tasks, strict=True):
        owner = None if task.model is None else identity(_parse(pool, "compat", task.model))
        # A model that is no candidate at all stays, for the recipe to refuse it by name.
        if owner is None or owner in known or owner not in every:
            kept.append(raw)
    block["probes"] = {**block["probes"], "tasks": kept}
    if not kept:
        del block["probes"]["tasks"]
    return block
