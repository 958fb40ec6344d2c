"""A recipe after a change, as if its author had written it so."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import yaml
from mergekit.config import MergeConfiguration

from mergekit_collapse.recipe.compat_source import CompatSource
from mergekit_collapse.recipe.groups import all_groups
from mergekit_collapse.recipe.members import block_without
from mergekit_collapse.recipe.places import resolved
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.recipe.yaml_edit import edit_yaml


@dataclass(frozen=True)
class Changed:
    """The recipe with its new YAML, and what was lost in the text, if anything was."""

    recipe: Recipe
    note: str | None


def written_block(recipe: Recipe) -> Any:
    """The value of ``compat:`` as plain data, as the recipe has it."""
    source = getattr(recipe.config, FIELD, None)
    if source is not None:
        return source.value
    return yaml.safe_load(recipe.source).get(FIELD)


def changed_recipe(
    recipe: Recipe, config: MergeConfiguration, dropped: Collection[int] = ()
) -> Changed:
    """The recipe that merges what ``config`` says, under the same names.

    Args:
        recipe: as it was.
        config: as it shall be; it merges the experts of ``recipe`` but for those dropped.
        dropped: indices of those, whose tasks leave the block.

    Raises:
        UnchangeableRecipeError: the block has no probes without them.
    """
    now = resolved(config)
    config = now.config
    kept = [i for i in range(len(recipe.experts)) if i not in dropped]
    if dropped:
        block = block_without(written_block(recipe), recipe.owners, dropped)
        edited = edit_yaml(recipe.source, recipe.config, config, block)
        if getattr(config, FIELD, None) is not None:
            setattr(config, FIELD, CompatSource(block))
    else:
        edited = edit_yaml(recipe.source, recipe.config, config)
    changed = replace(
        recipe,
        source=edited.text,
        config=config,
        compat=_without_tasks(recipe, dropped),
        groups=tuple(all_groups(config)),
        experts=now.experts,
        names=tuple(recipe.names[i] for i in kept),
        base=now.base,
        owners=tuple(
            None if owner is None else kept.index(owner)
            for owner in recipe.owners
            if owner not in dropped
        ),
    )
    return Changed(changed, edited.note)


def _without_tasks(recipe: Recipe, dropped: Collection[int]) -> CompatBlock:
    """Of the record itself, which the command line may have changed since it was read."""
    tasks = tuple(
        task
        for task, owner in zip(recipe.compat.probes.tasks, recipe.owners, strict=True)
        if owner not in dropped
    )
    return recipe.compat.with_tasks(tasks)
