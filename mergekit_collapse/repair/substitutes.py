"""``on_violation: substitute``: models of a pool in the place of the experts that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit.common import ModelPath, ModelReference

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.recipe.compat_source import CompatSource
from mergekit_collapse.recipe.groups import all_groups, identity
from mergekit_collapse.recipe.members import block_with_owner, with_replaced
from mergekit_collapse.recipe.places import resolved
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.schema import BudgetBlock, CompatBlock
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.recipe.yaml_edit import edit_yaml
from mergekit_collapse.remedy.replacing import Swap, replace_experts
from mergekit_collapse.repair.change import Change, NoRemedyError
from mergekit_collapse.repair.changed_recipe import Changed, written_block
from mergekit_collapse.repair.remeasured import Assess
from mergekit_collapse.repair.replacement_limits import Lineup, replacement_limits


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
        placed = {"model": _placed(model.model, recipe.folder, where)}
        if model.lora is not None:
            placed["lora"] = _placed(model.lora, recipe.folder, where)
        model = model.model_copy(update=placed)
        if identity(model) not in known:
            found.setdefault(identity(model), model)
    return tuple(found.values())


def _placed(path: ModelPath, folder: Path, where: str) -> ModelPath:
    """Beside the recipe, else as MergeKit finds the models of the recipe itself."""
    beside = folder / path.path
    if beside.exists():
        return path.model_copy(update={"path": str(beside)})
    if path.path.startswith(("/", ".", "~")) and not Path(path.path).exists():
        raise InvalidRecipeError(f"{where}: {beside}: no such folder; mend the path")
    return path


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
        measured = assess(joint)
    except EvaluationError as error:
        raise InvalidRecipeError(f"compat.substitute.pool cannot be measured: {error}") from error
    lineup = Lineup.of(len(recipe.experts), len(pool))
    limits = replacement_limits(measured, lineup, recipe.compat.budget)
    found = replace_experts(limits, lineup.experts, candidates=lineup.candidates)
    if not found.swaps:
        raise NoRemedyError(found.reason or "beside the pool the recipe is inside its limits")
    new = {swap.slot: joint.experts[lineup.model[swap.candidate]] for swap in found.swaps}
    changed = _replaced(recipe, new)
    notes = [_said(recipe, changed.recipe, swap) for swap in found.swaps]
    notes += [changed.note] if changed.note else []
    return Change(assess(changed.recipe), tuple(notes))


def _joint(recipe: Recipe, pool: tuple[ModelReference, ...]) -> Recipe:
    """Experts and candidates side by side, of which only the distances are looked at."""
    budget = BudgetBlock(space=recipe.compat.budget.space, mds=None)
    # Nothing is to be decided here, so that no limit may end the probes early.
    budget = budget.model_copy(update={"distortion": None})
    names = (*recipe.names, *(str(model) for model in pool))
    return replace(
        recipe,
        experts=(*recipe.experts, *pool),
        names=names,
        compat=recipe.compat.model_copy(update={"budget": budget}),
    )


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
    return recipe.compat.with_tasks(tasks)


def _said(before: Recipe, after: Recipe, swap: Swap) -> str:
    return (
        f"{after.names[swap.slot]} takes the place of {before.names[swap.slot]}: "
        f"{swap.before:.3g} → {swap.after:.3g}"
    )
