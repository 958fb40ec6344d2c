"""``on_violation: drop``: fewer experts, until the rest is inside the limits."""

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.recipe.members import without
from mergekit_collapse.recipe.places import UnchangeableRecipeError
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.remedy.dropping import Dropping, drop
from mergekit_collapse.repair.change import Change, NoRemedyError, deciding, usable_alpha
from mergekit_collapse.repair.changed_recipe import changed_recipe
from mergekit_collapse.repair.group_limits import group_limits
from mergekit_collapse.repair.remeasured import Assess, remeasured


def with_fewer(assessment: Assessment, assess: Assess) -> Change:
    """Drop as few experts as possible.

    The rest is measured in its own scale and on its own probes; where it is then over a limit
    all the same, dropping goes on from there.

    Raises:
        NoRemedyError: no choice of ``drop.min_experts`` or more is inside.
        InvalidRecipeError: the recipe cannot do without them.
        EvaluationError: a distance is NaN, or the deciding reading is undefined.
    """
    notes: list[str] = []
    tried: list[str] = []
    while True:
        report = assessment.report
        recipe, geometry = report.recipe, deciding(report)
        limits = group_limits(geometry, recipe.compat.budget, usable_alpha(report))
        staying = _staying(recipe)
        found = drop(limits, fewest=recipe.compat.drop.min_experts, keep=staying)
        names = [recipe.names[i] for i in found.dropped]
        if not found.dropped:
            raise NoRemedyError(_why(found, recipe, staying, tried))
        config = without(recipe.config, [recipe.experts[i] for i in found.dropped])
        changed = changed_recipe(recipe, config, found.dropped)
        notes += [changed.note] if changed.note else []
        notes.append(_how(found, recipe))
        tried += names
        assessment = remeasured(assessment, changed.recipe, assess)
        if assessment.report.verdict.decision != "refuse":
            return Change(assessment, tuple(dict.fromkeys(notes)))


def _staying(recipe: Recipe) -> list[int]:
    """Experts that the recipe cannot lose, such as a base that is merged."""
    if len(recipe.experts) < 3:
        return []
    found = []
    for index, model in enumerate(recipe.experts):
        try:
            without(recipe.config, [model])
        except UnchangeableRecipeError:
            found.append(index)
    return found


def _how(found: Dropping, recipe: Recipe) -> str:
    count = len(recipe.experts)
    if found.exact:
        return f"of all ways to drop experts, this drops the fewest of {count}"
    return f"of {count} experts, the worst were dropped one by one, so others might have done"


def _why(found: Dropping, recipe: Recipe, staying: list[int], tried: list[str]) -> str:
    parts = [f"dropped {', '.join(tried)}, and the rest is still over when measured by itself"]
    parts = parts if tried else []
    parts.append(found.reason or "the rest is over by the rounding of its readings")
    if staying:
        parts.append(f"the recipe cannot do without {', '.join(recipe.names[i] for i in staying)}")
    return "; ".join(parts)
