"""A recipe over its budget, changed as its block says and judged again."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.errors import InvalidRecipeError, MergeRefusedError
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.yaml_edit import yaml_diff
from mergekit_collapse.rehearsing import is_due, may_be_overruled
from mergekit_collapse.repair.before_and_after import members_of, reading_of
from mergekit_collapse.repair.change import Change, NoRemedyError, told
from mergekit_collapse.repair.fewer import with_fewer
from mergekit_collapse.repair.method import with_karcher
from mergekit_collapse.repair.remeasured import Assess
from mergekit_collapse.repair.split_recipes import SPLIT_FILE, shown, split_recipes
from mergekit_collapse.repair.substitute_pool import substitute_pool
from mergekit_collapse.repair.substitutes import with_substitutes
from mergekit_collapse.repair.weights import reweighted
from mergekit_collapse.report.remedy import Action, Remedy
from mergekit_collapse.report.report import Report
from mergekit_collapse.verdict import Reason, Verdict

_ACTIONS: Mapping[Action, Callable[[Assessment, Assess], Change]] = {
    "reweight": reweighted,
    "drop": with_fewer,
    "karcher": with_karcher,
    "substitute": with_substitutes,
}
_ELSE = "Raise the limit, or choose another on_violation"


def require_possible(recipe: Recipe) -> None:
    """Say before anything is measured that an action could never be taken.

    Raises:
        InvalidRecipeError: the weights cannot all have ``reweight.floor``, or a model of
            ``substitute.pool`` does not exist or stands under no expert of the recipe.
    """
    block, count = recipe.compat, len(recipe.experts)
    if block.on_violation == "substitute":
        substitute_pool(recipe)
    if block.on_violation == "reweight" and not count * block.reweight.floor <= 1 + 1e-9:
        raise InvalidRecipeError(
            f"compat.reweight.floor is {block.reweight.floor:g}, and {count} experts with at "
            f"least that share each would need {count * block.reweight.floor:g} in all, which is "
            f"more than 1; give at most {1 / count:.3g}"
        )


def remedied(assessment: Assessment, assess: Assess, folder: Path) -> Assessment:
    """What is to be merged instead of a refused recipe, where its block names an action.

    A changed recipe inside its limits has the decision ``modified``; else the recipe stays
    refused, and the reasons say what was tried. Where a rehearsal may still allow the recipe as
    it is written, only ``remedy_reason`` says it.

    Args:
        assessment: of the recipe as it was written.
        assess: measures a recipe from the start.
        folder: of the report, where ``split.yml`` will lie.

    Raises:
        EvaluationError: the changed recipe cannot be measured.
    """
    report = assessment.report
    action = report.recipe.compat.on_violation
    if report.verdict.decision != "refuse" or action == "abort" or action == "warn":  # noqa: PLR1714
        return assessment
    try:
        if action == "split":
            return replace(assessment, report=_split(assessment, assess, folder))
        change = _ACTIONS[action](assessment, assess)
        if change.still_over:
            raise NoRemedyError(f"the changed recipe is still over: {told(change.still_over)}")
    except (NoRemedyError, InvalidRecipeError) as error:
        return replace(assessment, report=_in_vain(report, action, str(error)))
    return _modified(report, change, action)


def require_action(recipe: Recipe) -> None:
    """``--fix`` writes what an action made of the recipe.

    Raises:
        InvalidRecipeError: the block names none that changes the recipe.
    """
    if recipe.compat.on_violation not in _ACTIONS:
        raise InvalidRecipeError(
            f"--fix: compat.on_violation is {recipe.compat.on_violation}, which changes no "
            f"recipe; set it to {', '.join(_ACTIONS)}"
        )


def _modified(before: Report, change: Change, action: Action) -> Assessment:
    after = change.assessment.report
    remedy = Remedy(
        action=action,
        source_sha256=before.recipe.sha256,
        over=before.verdict.reasons,
        diff=yaml_diff(before.recipe.source, after.recipe.source, _name(before.recipe)),
        effective=after.recipe.source,
        members=members_of(before, after),
        reading_before=reading_of(before),
        reading_after=reading_of(after),
        notes=change.notes,
    )
    verdict = Verdict("modified", 0, change.knowingly_over)
    report = replace(after, verdict=verdict, remedy=remedy, remedy_reason=None)
    return replace(change.assessment, report=report)


def _split(assessment: Assessment, assess: Assess, folder: Path) -> Report:
    report = assessment.report
    found = split_recipes(assessment, assess, folder)
    groups = shown(report.recipe, found.groups)
    remedy = Remedy(
        action="split",
        source_sha256=report.recipe.sha256,
        over=report.verdict.reasons,
        diff=None,
        effective=None,
        members=tuple(
            replace(member, weight_after=None, predicted_after=None)
            for member in members_of(report, report)
        ),
        reading_before=reading_of(report),
        reading_after=None,
        notes=(groups, *found.notes),
        split=found.text,
    )
    reason = Reason(
        rule="remedy",
        reading=f"one merge cannot hold these experts, but {groups} can be merged apart",
        subject="on_violation: split",
        value=None,
        value_reason="not a number",
        limit=None,
        advice=f"Run mergekit-multi on {folder / SPLIT_FILE}",
    )
    verdict = Verdict("refuse", MergeRefusedError.exit_code, (*report.verdict.reasons, reason))
    return replace(report, verdict=verdict, remedy=remedy, remedy_reason=None)


def _in_vain(report: Report, action: Action, tried: str) -> Report:
    report = replace(report, remedy_reason=f"{action}: {tried}")
    if is_due(report) and may_be_overruled(report):
        return report
    reason = Reason(
        rule="remedy",
        reading=tried,
        subject=f"on_violation: {action}",
        value=None,
        value_reason="not a number",
        limit=None,
        advice=_ELSE,
    )
    reasons = (*report.verdict.reasons, reason)
    return replace(report, verdict=replace(report.verdict, reasons=reasons))


def _name(recipe: Recipe) -> str:
    return recipe.path.name if recipe.path is not None else "recipe.yml"
