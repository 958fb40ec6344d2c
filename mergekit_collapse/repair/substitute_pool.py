"""The models of ``substitute.pool``, and the places that the recipe has for each."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelPath, ModelReference

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import printable
from mergekit_collapse.recipe.groups import identity
from mergekit_collapse.recipe.pool_experts import expert_called
from mergekit_collapse.recipe.recipe import Recipe


@dataclass(frozen=True)
class SubstitutePool:
    """The candidates that the recipe does not merge already.

    Attributes:
        models: each once.
        may_take: for each expert, the models (by index) that may take its place.
        named: the recipe says so for each expert, and is taken at its word where there is no
            score; else every model may take any place where its score tells that it does the
            work.
    """

    models: tuple[ModelReference, ...]
    may_take: tuple[tuple[int, ...], ...]
    named: bool


def substitute_pool(recipe: Recipe) -> SubstitutePool:
    """Find the models of a pool, be it one list or a list for each expert.

    Raises:
        InvalidRecipeError: a path does not exist, or a list is under no expert of the recipe.
    """
    known = {identity(model) for model in recipe.config.referenced_models()}
    found: dict[Hashable, ModelReference] = {}
    places: dict[Hashable, set[int]] = {}
    for where, path, experts in _entries(recipe):
        model = _found(path, recipe.folder, where)
        key = identity(model)
        if key not in known:
            found.setdefault(key, model)
            places.setdefault(key, set()).update(experts)
    may_take = tuple(
        tuple(index for index, key in enumerate(found) if expert in places[key])
        for expert in range(len(recipe.experts))
    )
    named = isinstance(recipe.compat.substitute.pool, dict)
    return SubstitutePool(tuple(found.values()), may_take, named)


def _entries(recipe: Recipe) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Where a model stands in the block, what is written there, and for which experts."""
    pool = recipe.compat.substitute.pool
    if isinstance(pool, dict):
        for name, paths in pool.items():
            expert = expert_called(name, recipe)
            for index, path in enumerate(paths):
                yield f"compat.substitute.pool.{printable(name)}[{index}]", path, (expert,)
        return
    every = tuple(range(len(recipe.experts)))
    for index, path in enumerate(pool):
        yield f"compat.substitute.pool[{index}]", path, every


def _found(text: str, folder: Path, where: str) -> ModelReference:
    try:
        model = ModelReference.parse(text)
    except (ValueError, RuntimeError) as error:
        raise InvalidRecipeError(f"{where}: {text!r} is no model reference: {error}") from None
    placed = {"model": _placed(model.model, folder, where)}
    if model.lora is not None:
        placed["lora"] = _placed(model.lora, folder, where)
    return model.model_copy(update=placed)


def _placed(path: ModelPath, folder: Path, where: str) -> ModelPath:
    """Beside the recipe, else as MergeKit finds the models of the recipe itself."""
    beside = folder / path.path
    if beside.exists():
        return path.model_copy(update={"path": str(beside)})
    if path.path.startswith(("/", ".", "~")) and not Path(path.path).exists():
        raise InvalidRecipeError(f"{where}: {beside}: no such folder; mend the path")
    return path
