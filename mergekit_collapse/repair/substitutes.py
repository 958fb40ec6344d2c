"""``on_violation: substitute``: models of a pool in the place of the experts that do not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergekit.common import ModelReference

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.recipe.compat_source import CompatSource
from mergekit_collapse.recipe.groups import all_groups
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.recipe.members import block_with_owner, with_replaced
from mergekit_collapse.recipe.places import resolved
from mergekit_collapse.recipe.pool_experts import renamed_experts, with_renamed
from mergekit_collapse.recipe.recipe import Recipe, short_names
from mergekit_collapse.recipe.schema import CompatBlock, SubstituteBlock
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.recipe.yaml_edit import edit_yaml
from mergekit_collapse.remedy.replacing import Swap, Trial, replace_experts
from mergekit_collapse.remedy.same_tasks import OwnTask
from mergekit_collapse.repair.change import Change, NoRemedyError
from mergekit_collapse.repair.changed_recipe import Changed, written_block
from mergekit_collapse.repair.remeasured import Assess
from mergekit_collapse.repair.replacement_limits import Lineup, replacement_limits
from mergekit_collapse.repair.standing_in import loss_limit, open_places, own_tasks, standing_in
from mergekit_collapse.repair.substitute_pool import SubstitutePool, substitute_pool


def with_substitutes(assessment: Assessment, assess: Assess) -> Change:
    """Replace the worst expert by the candidate that fits best, until the rest is inside.

    A candidate fits only where it does the tasks of the expert that it replaces. Candidates are
    run beside the experts, and scored meanwhile; the recipe that comes of it is measured anew.

    Raises:
        NoRemedyError: no replacements bring the recipe inside.
        InvalidRecipeError: a candidate does not fit the experts, or the recipe.
        EvaluationError: the changed recipe cannot be measured.

    Source: arXiv 2603.09463, section 3.4.4.
    """
    recipe, material = assessment.report.recipe, assessment.material
    assert material is not None
    pool = substitute_pool(recipe)
    if not pool.models:
        raise NoRemedyError("every model of substitute.pool is merged already")
    places = open_places(material, pool)
    if not places:
        raise NoRemedyError("; ".join(_closed(recipe, pool, places)))
    joint = _joint(recipe, pool.models)
    count = len(recipe.experts)
    stand_ins = {
        count + index: [place for place in places if index in pool.may_take[place]]
        for index in range(len(pool.models))
    }
    try:
        measured = assess(joint, stand_ins=stand_ins)
        assert measured.material is not None
        measured.material.own_scores.complete()
    except EvaluationError as error:
        raise InvalidRecipeError(f"compat.substitute.pool cannot be measured: {error}") from error
    lineup = Lineup.of(count, len(pool.models))
    limits = replacement_limits(measured, lineup, recipe.compat.budget)
    tasks = own_tasks(measured.material)
    may = standing_in(
        pool,
        places,
        lineup,
        tasks=tasks,
        scores=measured.material.own_scores.of_stand_ins,
        max_loss=loss_limit(recipe.compat.evaluate),
    )
    found = replace_experts(limits, count, candidates=may.rows, unfit=may.unfit)
    open_now = [place for place in places if may.rows[place]]
    left_out = _left_out(joint, lineup, found.tried)
    closed = _closed(recipe, pool, open_now, tasks)
    if not found.swaps:
        reason = found.reason or "beside the pool the recipe is inside its limits"
        raise NoRemedyError("; ".join([reason, *left_out, *closed]))
    new = {swap.slot: joint.experts[lineup.model[swap.candidate]] for swap in found.swaps}
    changed = _replaced(recipe, new)
    notes = [_said(recipe, changed.recipe, swap) for swap in found.swaps] + left_out
    # Whom the recipe names no candidates for, its author knows.
    notes += [] if pool.named else closed
    notes += [changed.note] if changed.note else []
    return Change(assess(changed.recipe), tuple(notes))


def _joint(recipe: Recipe, pool: tuple[ModelReference, ...]) -> Recipe:
    """Experts and candidates side by side, of which only the distances are looked at."""
    budget = BudgetBlock(space=recipe.compat.budget.space, mds=None)
    # Nothing is to be decided here, so that no limit may end the probes early.
    budget = budget.model_copy(update={"distortion": None})
    names = (*recipe.names, *short_names((*recipe.experts, *pool))[len(recipe.experts) :])
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
    changed = replace(
        recipe,
        config=config,
        compat=_with_owners(recipe, new),
        groups=tuple(all_groups(config)),
        experts=now.experts,
        names=now.names,
        base=now.base,
    )
    keys = renamed_experts(recipe, changed)
    if keys:
        block["substitute"]["pool"] = with_renamed(block["substitute"]["pool"], keys)
        changed = replace(changed, compat=_with_pool(changed.compat, keys))
    edited = edit_yaml(recipe.source, recipe.config, config, block)
    if getattr(config, FIELD, None) is not None:
        setattr(config, FIELD, CompatSource(block))
    names = tuple(now.names[i] if i in new else name for i, name in enumerate(recipe.names))
    names = names if len(set(names)) == len(names) else now.names
    return Changed(replace(changed, source=edited.text, names=names), edited.note)


def _with_pool(block: CompatBlock, keys: Mapping[str, str]) -> CompatBlock:
    substitute = SubstituteBlock(pool=with_renamed(block.substitute.pool, keys))
    return block.model_copy(update={"substitute": substitute})


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


def _left_out(joint: Recipe, lineup: Lineup, tried: Sequence[Trial]) -> list[str]:
    """Candidates that were left out for their score, each once for every place."""
    return list(
        dict.fromkeys(
            f"{joint.names[lineup.model[trial.candidate]]} was not put in the place of "
            f"{joint.names[trial.slot]}: {trial.reason}"
            for trial in tried
            if trial.unfit
        )
    )


def _closed(
    recipe: Recipe, pool: SubstitutePool, places: Sequence[int], tasks: Sequence[OwnTask] = ()
) -> list[str]:
    """What is to be done for the experts that could not be replaced, if there are any.

    Args:
        places: those that are open.
        tasks: of the experts that were scored, as far as they were.
    """
    shut = [i for i in range(len(recipe.names)) if i not in places]
    if not shut:
        return []
    if pool.named:
        names = ", ".join(recipe.names[i] for i in shut)
        return [f"substitute.pool names no other model for {names}"]
    useless = [task for task in tasks if task.owner in shut and not task.asks]
    said = [
        f"no candidate can be held to what {task.owner_name} scores on {task.name}, "
        f"{task.score:.3g}; mend the task, or name the candidates under the expert in "
        "substitute.pool"
        for task in useless
    ]
    if names := ", ".join(recipe.names[i] for i in shut if i not in {t.owner for t in useless}):
        said.insert(
            0,
            f"nothing tells which candidates do the work of {names}: they own no task that is "
            "scored; add target: to one, or name the candidates under the expert in "
            "substitute.pool",
        )
    return said
