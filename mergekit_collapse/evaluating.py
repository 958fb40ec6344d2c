"""A merge that was made before, held against the recipe that it was made by."""

from dataclasses import replace
from pathlib import Path

from mergekit.common import ModelReference
from mergekit.options import MergeOptions

from mergekit_collapse.assessment import assess
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError, MergeRejectedError
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.evaluation.own_answers import unjudged
from mergekit_collapse.finished_merge import evaluate_folder
from mergekit_collapse.merge_options import load_options
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.report.report import MADE_BEFORE, Report
from mergekit_collapse.states.forward import depth
from mergekit_collapse.states.loader import read_config


def evaluate_finished(recipe: Recipe, merged: Path, options: MergeOptions) -> Report:
    """Hold a finished merge against the limits of ``evaluate``; exit code 4 where it is over one.

    Args:
        recipe: what it was merged by.
        merged: its folder.
        options: MergeKit's own.

    Raises:
        InvalidRecipeError: the recipe or its block is wrong, or merges nothing.
        EvaluationError: the experts cannot be measured, or not be compared with the merge.
    """
    if recipe.merges_nothing:
        raise InvalidRecipeError(
            "every slice of this recipe has one source, so there are no experts that the merge "
            "could be held against"
        )
    _require_same_kind(recipe, merged, options)
    assessment = assess(recipe, options, profile=True, scores=True)
    report, material = assessment.report, assessment.material
    assert material is not None
    limits, budget = recipe.compat.evaluate, recipe.compat.budget
    found = evaluate_folder(merged, material)
    verdict = judge_merged(
        found,
        limits,
        budget,
        recipe.names,
        exit_code=MergeRejectedError.exit_code,
        warn_only=limits.on_collapse == "warn",
    )
    return replace(
        report,
        verdict=verdict,
        evaluation=replace(found, verdict=verdict, notes=(*found.notes, *unjudged(found, limits))),
        evaluation_reason=None,
        monitor_reason=MADE_BEFORE,
        rehearsal_reason=MADE_BEFORE,
    )


def _require_same_kind(recipe: Recipe, merged: Path, options: MergeOptions) -> None:
    """A merge of something else would be judged by what it was never made of."""
    load = load_options(options)
    reference = ModelReference.model_validate({"model": {"path": str(merged)}})
    try:
        made = read_config(reference, load)
    except EvaluationError:
        return  # the checks of the merged model say what is wrong with it
    due = read_config(recipe.experts[0], load)
    whole = not recipe.config.slices and not recipe.config.modules
    for what, found, wanted in (
        ("type", made.model_type, due.model_type),
        ("number of layers", depth(made), depth(due) if whole else depth(made)),
    ):
        if found != wanted:
            raise InvalidRecipeError(
                f"{merged}: has the {what} {found}, but this recipe makes {wanted}; name the "
                "recipe that it was merged by"
            )
