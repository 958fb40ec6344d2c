"""A recipe with fewer experts, or with another in the place of one."""

import copy
from collections.abc import Collection, Sequence
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.tokenizer.config import TokenizerConfig

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.groups import identity
from mergekit_collapse.recipe.places import UnchangeableRecipeError, places, resolved
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.reweighted import with_weights


def without(config: MergeConfiguration, dropped: Collection[ModelReference]) -> MergeConfiguration:
    """The recipe without some of its experts; the others keep their weights.

    Only where these have to sum to 1, and did, are they stretched so that they do again. The
    ``compat:`` block is not looked at: see `block_without`.

    Raises:
        UnchangeableRecipeError: one of them is a base or gives the tokenizer, a slice would
            be empty, the method takes no fewer, or fewer than two experts would be left.
        InvalidRecipeError: one of them is no expert of this recipe.
    """
    before = resolved(config)
    gone = set(dropped)
    for model in dropped:
        _require_expert(model, before)
        if model in {place.group.base for place in places(config)} | {config.base_model}:
            raise UnchangeableRecipeError(
                f"{model} is a base_model of this recipe and cannot be dropped; name another base, "
                "or change its weight"
            )
        if model in _tokenizer_models(config):
            raise UnchangeableRecipeError(
                f"{model} gives tokens to the merged tokenizer and cannot be dropped; "
                "change the recipe's tokenizer first"
            )
    if len(left := [str(m) for m in before.experts if m not in gone]) < 2:
        raise UnchangeableRecipeError(
            f"dropping {_listed(dropped)} leaves {_listed(left) or 'no expert'}, "
            "and a merge takes two"
        )
    config = config.model_copy(deep=True)
    for place in places(config):
        place.sources[:] = [source for source in place.sources if source.model not in gone]
    _require_contract(config, dropped)
    after = resolved(config)
    if after.experts != (kept := tuple(m for m in before.experts if m not in gone)):
        raise UnchangeableRecipeError(
            f"without {_listed(dropped)} a slice has one source only, so that the recipe merges "
            f"{_listed(after.experts) or 'nothing'} instead of {_listed(kept)}"
        )
    return _summing_to_one(before, after)


def with_replaced(
    config: MergeConfiguration, old: ModelReference, new: ModelReference
) -> MergeConfiguration:
    """The recipe with another model wherever an expert stood, with the same weights.

    Raises:
        UnchangeableRecipeError: the new model is in the recipe already.
        InvalidRecipeError: the old model is no expert of this recipe.
    """
    _require_expert(old, resolved(config))
    if identity(new) in {identity(model) for model in config.referenced_models()}:
        raise UnchangeableRecipeError(f"{new} cannot replace {old}: the recipe has it already")
    config = config.model_copy(deep=True)
    for place in places(config):
        for source in place.sources:
            if source.model == old:
                source.model = new
    for holder in (config, *(part for place in places(config) if (part := place.owner))):
        if getattr(holder, "base_model", None) == old:
            holder.base_model = new
    if config.tokenizer_source == old:
        config.tokenizer_source = new
    if old in _tokenizer_models(config):
        # Frozen records in frozen records: change what they are written as.
        written = config.tokenizer.model_dump(mode="json", exclude_defaults=True)
        config.tokenizer = TokenizerConfig.model_validate(_swapped(written, str(old), str(new)))
    return config


def block_without(compat: Any, owners: Sequence[int | None], dropped: Collection[int]) -> Any:
    """The ``compat:`` block without the tasks of dropped experts, which nobody answers for.

    Args:
        compat: the block as the recipe has it.
        owners: ``Recipe.owners``.
        dropped: indices of the dropped experts.
    """
    block = copy.deepcopy(compat)
    if tasks := _tasks(block):
        kept = [t for t, owner in zip(tasks, owners, strict=True) if owner not in dropped]
        block["probes"]["tasks"] = kept
        if not kept:
            del block["probes"]["tasks"]
            if block["probes"].get("builtin") is False:
                raise UnchangeableRecipeError(
                    "every task belongs to a dropped expert, and builtin: false leaves no probes"
                )
    return block


def block_with_owner(
    compat: Any, owners: Sequence[int | None], index: int, model: ModelReference
) -> Any:
    """The ``compat:`` block with the tasks of expert ``index`` given to its replacement."""
    block = copy.deepcopy(compat)
    for task, owner in zip(_tasks(block), owners, strict=False):
        if owner == index:
            task["model"] = str(model)
    return block


def _tasks(block: Any) -> list[Any]:
    probes = block.get("probes") if isinstance(block, dict) else None
    tasks = probes.get("tasks") if isinstance(probes, dict) else None
    return tasks if isinstance(tasks, list) else []


def _require_expert(model: ModelReference, recipe: Recipe) -> None:
    if model not in recipe.experts:
        raise InvalidRecipeError(
            f"{model} is no expert of this recipe; these are {_listed(recipe.experts)}"
        )


def _require_contract(config: MergeConfiguration, dropped: Collection[ModelReference]) -> None:
    """What MergeKit would say when it plans, said now."""
    contract = merge_methods.get(config.merge_method).spec.contract
    for place in places(config):
        models, label = place.group.models, place.group.label
        try:
            if not place.sources:
                raise ValueError("no source is left")
            contract.validate_ids(models, place.group.base)
        except ValueError as problem:
            raise UnchangeableRecipeError(
                f"{label}: {config.merge_method} cannot do without {_listed(dropped)}: {problem}"
            ) from None


def _summing_to_one(before: Recipe, after: Recipe) -> MergeConfiguration:
    """Weights that nothing normalises still stand for a combination, if they did."""
    was, now = recipe_coefficients(before).alpha, recipe_coefficients(after).alpha
    if was is None or now is not None:
        return after.config
    shares = {m: float(was[before.experts.index(m)]) for m in after.experts}
    if not (total := sum(shares.values())) > 1e-9:
        raise UnchangeableRecipeError(
            f"the weights of {_listed(after.experts)} sum to {total:g}, which nothing normalises"
        )
    return with_weights(after.config, {m: share / total for m, share in shares.items()})


def _tokenizer_models(config: MergeConfiguration) -> set[ModelReference]:
    """Models that the table of tokens names, from whose embeddings MergeKit takes rows."""
    tokens = (config.tokenizer.tokens if config.tokenizer is not None else None) or {}
    sources = [token.source for token in tokens.values()]
    named = {s for s in sources if isinstance(s, ModelReference)}
    return named | {s.model for s in sources if hasattr(s, "token_id")}


def _swapped(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _swapped(each, old, new) for key, each in value.items()}
    return new if value == old else value


def _listed(models: Collection[object]) -> str:
    return ", ".join(map(str, models))
