"""``on_violation: karcher``: the same experts and weights, averaged as directions."""

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.recipe.other_method import with_method
from mergekit_collapse.repair.change import Change, NoRemedyError, told
from mergekit_collapse.repair.changed_recipe import changed_recipe
from mergekit_collapse.repair.remeasured import Assess, remeasured

METHOD = "weighted_karcher"


def with_karcher(assessment: Assessment, assess: Assess) -> Change:
    """Switch the method to ``weighted_karcher``.

    Raises:
        NoRemedyError: it is the method already, or the limit that is passed is not about it.
        InvalidRecipeError: the recipe cannot be averaged.
        EvaluationError: the deciding reading is undefined for the new method.
    """
    report = assessment.report
    recipe, budget = report.recipe, report.recipe.compat.budget
    if recipe.config.merge_method == METHOD:
        raise NoRemedyError(f"the recipe merges by {METHOD} already")
    if others := [r for r in report.verdict.reasons if r.rule != "distortion"]:
        raise NoRemedyError(f"no method changes these readings: {told(others)}")
    if budget.rule != "weights":
        raise NoRemedyError(
            f"budget.rule: {budget.rule} judges the experts whatever the method is: "
            f"{told(report.verdict.reasons)}; set budget.rule: weights to have the recipe's own "
            "combination judged"
        )
    changed = changed_recipe(recipe, with_method(recipe.config, METHOD))
    notes = () if changed.note is None else (changed.note,)
    return Change(remeasured(assessment, changed.recipe, assess), notes)
