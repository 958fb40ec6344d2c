"""``on_violation: substitute``: models of a pool in the place of the experts that do not fit."""

from dataclasses import replace
from typing import Any

import numpy as np
from mergekit.common import ModelReference

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.compat_source import CompatSource
from mergekit_collapse.recipe.groups import all_groups, identity
from mergekit_collapse.recipe.members import block_with_owner, with_replaced
from mergekit_collapse.recipe.places import resolved
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.schema import BudgetBlock, CompatBlock
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.recipe.yaml_edit import edit_yaml
from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.group_reading import (
    GroupReading,
    ball_reading,
    corollary_reading,
    own_task_reading,
    weights_reading,
)
from mergekit_collapse.remedy.replacing import Swap, replace_experts
from mergekit_collapse.repair.change import Change, NoRemedyError
from mergekit_collapse.repair.changed_recipe import Changed, written_block
from mergekit_collapse.repair.group_limits import owned_tasks
from mergekit_collapse.repair.remeasured import Assess


def pool_models(recipe: Recipe) -> tuple[ModelReference, ...]:
    """The models of ``substitute.pool`` that the recipe does not merge already.

    Raises:
        InvalidRecipeError: a path does not exist.
    """
    known = {identity(model) for model in recipe.config.referenced_models()}
    found: dict[Any, ModelReference] = {}
    for index, path in enumerate(recipe.compat.substitute.pool):
        where = f"compat.substitute.pool[{index}]"
        try:
            model = ModelReference.parse(path)
        except (ValueError, RuntimeError) as error:
            raise InvalidRecipeError(f"{where}: {path!r} is no model reference: {error}") from None
        beside = recipe.folder / model.model.path
        if beside.exists():
            moved = model.model.model_copy(update={"path": str(beside)})
            model = model.model_copy(update={"model": moved})
        elif model.model.path.startswith(("/", ".", "~")):
            raise InvalidRecipeError(f"{where}: {beside}: no such folder; mend the path")
        if identity(model) not in known:
            found.setdefault(identity(model), model)
    return tuple(found.values())


def with_substitutes(assessment: Assessment, assess: Assess) -> Change:
    """Replace the worst expert by the candidate that fits best, until the rest is inside.

    The candidates are run beside the experts; the recipe that comes of it is measured anew.

    Raises:
        NoRemedyError: no replacements bring the recipe inside.
        InvalidRecipeError: a candidate does not fit the experts, or the recipe.
        EvaluationError: the changed recipe cannot be measured.

    Source: arXiv 2603.09463, section 3.4.4.
    """
    recipe = assessment.report.recipe
    pool = pool_models(recipe)
    if not pool:
        raise NoRemedyError("every model of substitute.pool is merged already")
    joint = _joint(recipe, pool)
    try:
        measured = assess(joint).report.deciding
    except EvaluationError as error:
        raise InvalidRecipeError(f"compat.substitute.pool cannot be measured: {error}") from error
    assert measured is not None
    count, models = len(recipe.experts), len(joint.experts)
    # A row for every candidate in every place, since it takes over weight and tasks.
    rows = [*range(count), *(c for _ in range(count) for c in range(count, models))]
    places = [*range(count), *(slot for slot in range(count) for _ in pool)]
    criterion = _criterion(measured, recipe, joint, np.array(rows), np.array(places))
    candidates = {
        slot: range(count + slot * len(pool), count + (slot + 1) * len(pool))
        for slot in range(count)
    }
    found = replace_experts(criterion, count, candidates=candidates)
    if not found.swaps:
        raise NoRemedyError(found.reason or "no replacement was needed in the pool's own scale")
    new = {swap.slot: joint.experts[rows[swap.candidate]] for swap in found.swaps}
    changed = _replaced(recipe, new)
    notes = [_said(recipe, changed.recipe, swap) for swap in found.swaps]
    notes += [changed.note] if changed.note else []
    return Change(assess(changed.recipe), tuple(notes))


def _joint(recipe: Recipe, pool: tuple[ModelReference, ...]) -> Recipe:
    """Experts and candidates side by side, of which only the distances are looked at."""
    budget = BudgetBlock(space=recipe.compat.budget.space, mds=None)
    names = (*recipe.names, *(str(model) for model in pool))
    return replace(
        recipe,
        experts=(*recipe.experts, *pool),
        names=names,
        compat=recipe.compat.model_copy(update={"budget": budget}),
    )


def _criterion(
    geometry: Geometry, recipe: Recipe, joint: Recipe, rows: np.ndarray, places: np.ndarray
) -> Criterion:
    """As ``group_limits``, over the experts and every candidate in every place."""
    budget, part = recipe.compat.budget, np.ix_(rows, rows)
    squared = geometry.squared[part]
    difficulty = None
    if budget.mds is not None:
        chance = None if geometry.chance is None else geometry.chance[part]
        distance = geometry.distance[part]
        difficulty = DifficultyLimit(budget.mds, budget.similarity, distance, chance)
    reading = ball_reading(squared)
    if budget.over == "own_task" and budget.rule == "weights":
        raise NoRemedyError("over: own_task with rule: weights cannot be searched; use rule: ball")
    if budget.over == "own_task":
        tasks, owner = owned_tasks(geometry)
        reading = own_task_reading(tasks[:, rows][:, :, rows], owner, places)
    elif budget.rule == "corollary":
        reading = corollary_reading(squared, geometry.dimension)
    elif budget.rule == "weights":
        reading = _weights(geometry, joint, rows, places)
    return Criterion(squared, reading, budget.distortion, difficulty)


def _weights(
    geometry: Geometry, joint: Recipe, rows: np.ndarray, places: np.ndarray
) -> GroupReading:
    alpha = recipe_coefficients(joint).alpha
    if alpha is None:
        raise NoRemedyError("rule: weights needs a method whose weights are known")
    every, shares = list(rows), alpha[places]
    base = None
    if len(geometry.squared) > geometry.expert_count:
        base = len(every)
        every.append(geometry.expert_count)
        shares = np.append(shares, 0.0)
    return weights_reading(geometry.squared[np.ix_(every, every)], shares, base=base)


def _replaced(recipe: Recipe, new: dict[int, ModelReference]) -> Changed:
    config, block = recipe.config, written_block(recipe)
    for index, model in new.items():
        config = with_replaced(config, recipe.experts[index], model)
        block = block_with_owner(block, recipe.owners, index, model)
    now = resolved(config)
    config = now.config
    edited = edit_yaml(recipe.source, recipe.config, config, block)
    if getattr(config, FIELD, None) is not None:
        setattr(config, FIELD, CompatSource(block))
    names = tuple(now.names[i] if i in new else name for i, name in enumerate(recipe.names))
    changed = replace(
        recipe,
        source=edited.text,
        config=config,
        compat=_with_owners(recipe, new),
        groups=tuple(all_groups(config)),
        experts=now.experts,
        names=names if len(set(names)) == len(names) else now.names,
        base=now.base,
    )
    return Changed(changed, edited.note)


def _with_owners(recipe: Recipe, new: dict[int, ModelReference]) -> CompatBlock:
    tasks = tuple(
        task.model_copy(update={"model": str(new[owner])}) if owner in new else task
        for task, owner in zip(recipe.compat.probes.tasks, recipe.owners, strict=True)
    )
    probes = recipe.compat.probes.model_copy(update={"tasks": tasks})
    return recipe.compat.model_copy(update={"probes": probes})


def _said(before: Recipe, after: Recipe, swap: Swap) -> str:
    return (
        f"{after.names[swap.slot]} takes the place of {before.names[swap.slot]}: "
        f"{swap.before:.3g} → {swap.after:.3g} beside the pool"
    )
