"""A merge that was made before, held against the recipe that it was made by."""

from dataclasses import replace
from pathlib import Path

from mergekit.options import MergeOptions

from mergekit_collapse.assessment import assess
from mergekit_collapse.errors import InvalidRecipeError, MergeRejectedError
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.finished_merge import evaluate_folder
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.report.report import Report


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
        evaluation=replace(found, verdict=verdict),
        evaluation_reason=None,
        monitor_reason="the merge was made before",
        rehearsal_reason="the merge was made before",
    )
