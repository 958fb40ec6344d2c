"""What to do where the geometry cannot tell, whether it allowed a merge or refused it."""

from mergekit_collapse.judging import is_borderline
from mergekit_collapse.recipe.counted_reading import is_counted
from mergekit_collapse.recipe.schema import CompatBlock, ProbesBlock
from mergekit_collapse.report.report import Report


def hint(report: Report) -> str | None:
    """A sentence that advises a rehearsal; None where one was made, or nothing is near.

    Near is r² in the grey zone of the default limits, of which measured merges say how many
    collapse there, any r² over the default limit, which refuses good merges too, or any reading
    with its limit inside its interval.
    """
    geometry, block = report.deciding, report.recipe.compat
    if geometry is None or report.rehearsal is not None or report.evaluation is not None:
        return None
    if report.verdict.decision in ("allow", "modified"):
        radius = geometry.ball.radius_squared
        if (zone := _grey_zone(block)) is not None and zone[0] < radius <= zone[1]:
            return _in_zone(radius, block.probes)
    if not is_borderline(geometry, block.budget):
        return _over(report)
    # Under auto it was due, and could not be made layer by layer.
    which = "auto" if block.rehearse == "never" else "always"
    return (
        "The limit lies within the interval of the reading, so that the geometry cannot tell; "
        f"a rehearsal measures the real merge (`rehearse: {which}`)."
    )


def _grey_zone(block: CompatBlock) -> tuple[float, float] | None:
    """Where r² tells nothing, up to the limit; None where another reading decides than r² there."""
    budget = block.budget
    if budget.distortion is None or not is_counted(block):
        return None
    found = block.probes.default_limits
    return found.grey, min(budget.distortion, found.distortion)


def _over(report: Report) -> str | None:
    """What a refusal by the default limit is worth."""
    block, reasons = report.recipe.compat, report.verdict.reasons
    by_radius = reasons and all(reason.rule == "distortion" for reason in reasons)
    if not by_radius or block.budget.wrote("distortion") or not is_counted(block):
        return None
    if block.evaluate.max_merging_loss is None:
        return None
    found = block.probes.default_limits
    return (
        f"r² over {found.distortion:g} refuses {found.refuses}, of tasks that the limit was not "
        "chosen on (docs/evidence.md). With `rehearse: always`, and `model:` and `target:` of "
        "every expert's task, what the tasks lose decides."
    )


def _in_zone(radius_squared: float, probes: ProbesBlock) -> str:
    found = probes.default_limits
    if not probes.tasks:
        score = "and tasks of your own with a `target:` let it score them"
    elif any(task.target is None or task.model is None for task in probes.tasks):
        score = "and `model:` and `target:` of the tasks let it score them"
    else:
        score = "and scores your tasks"
    return (
        f"r² {radius_squared:.2f} is where geometry cannot tell: of the measured merges between "
        f"{found.grey:g} and {found.distortion:g}, {found.grey_share} collapsed "
        f"(docs/evidence.md). A rehearsal measures the real merge (`rehearse: always`), {score}."
    )
