"""The verdict as a person reads it in a terminal, and what was held against what."""

import math
from collections.abc import Iterator

from mergekit_collapse.errors import MergeRefusedError, MergeRejectedError
from mergekit_collapse.evaluation.known_losses import applied
from mergekit_collapse.evaluation.own_answers import unscored_tasks
from mergekit_collapse.findings import printable
from mergekit_collapse.judging import deciding_distortion
from mergekit_collapse.report.hint import hint
from mergekit_collapse.report.remedy import summary
from mergekit_collapse.report.report import Report, cell

_HEADS = {
    MergeRefusedError.exit_code: "REFUSED",
    MergeRejectedError.exit_code: "REJECTED: the merge was made, and is over its limits",
}


def verdict_lines(report: Report) -> Iterator[str]:
    """The decision, and each reason or what was held against what."""
    decision = report.verdict.decision
    if report.measurement is None and decision == "allow":
        yield "ALLOWED: every slice has one source, so no two models are merged with one another."
    elif decision == "allow" and report.made_before:
        shown = ", ".join(_merged_within(report))
        yield f"ACCEPTED: {shown or 'every check of the merged model passed'}."
    elif decision == "allow":
        shown = ", ".join([*_within(report), *_merged_within(report)])
        yield f"ALLOWED: {shown or 'no limit is set'}."
    elif decision == "modified" and report.remedy is not None:
        yield f"CHANGED ({report.remedy.action}): {printable(summary(report.remedy))}"
        yield from (f"  - given up: {printable(str(r))}" for r in report.verdict.reasons)
        within = [] if report.verdict.reasons else [*_within(report), *_merged_within(report)]
        shown = ", ".join(within)
        yield f"ALLOWED: {shown or 'all others are within the limits'}."
    else:
        yield _head(report)
        yield from (f"  - {printable(str(reason))}" for reason in report.verdict.reasons)
    if (advice := hint(report)) is not None:
        yield f"  {advice}"


def _head(report: Report) -> str:
    code, monitor = report.verdict.exit_code, report.monitor
    # One that only warned has stopped nothing.
    fatal = monitor is not None and monitor.verdict.exit_code == MergeRejectedError.exit_code
    if monitor is not None and fatal and monitor.stopped_at is not None:
        return f"REJECTED: stopped at layer {monitor.stopped_at}; nothing was written"
    if code == 0 and report.made_before:
        return "WARNING, over the limits of compat.evaluate"
    return _HEADS.get(code, "WARNING, over budget; merging all the same")


def _within(report: Report) -> list[str]:
    """What was held against what, so that an allowed merge is no bare yes."""
    budget, geometry, reading = report.recipe.compat.budget, report.deciding, report.difficulty
    assert geometry is not None
    assert reading is not None
    parts = []
    if budget.distortion is not None:
        where = " on own tasks" if budget.over == "own_task" else ""
        value = deciding_distortion(geometry, budget, report.recipe.names)
        what = f"{budget.space} distortion ({budget.rule}{where})"
        held = _held(what, value, budget.distortion)
        overruled = not value <= budget.distortion and report.rehearsal is not None
        parts.append(f"{held}, but the rehearsal decides" if overruled else held)
    if budget.mds is not None:
        # Where it is infinite there is no score.
        worst = max(math.inf if score is None else score for score in reading.mds)
        parts.append(_held(f"worst MDS ({reading.reading})", worst, budget.mds))
    return parts


def _held(what: str, value: float, limit: float, unit: str = "") -> str:
    """A reading beside its limit; one that is no number is not within it."""
    side = "within" if value <= limit else "over"
    shown = "∞" if math.isinf(value) else cell(value)
    return f"{what} {shown}{unit} is {side} {limit:g}{unit}"


def _merged_within(report: Report) -> Iterator[str]:
    """The same of the merged model, as far as it was judged."""
    found, block = report.evaluation or report.rehearsal, report.recipe.compat
    if found is None:
        return
    measured = found.predictive if block.budget.space == "predictive" else found.hidden
    limits = applied(block.evaluate, found, len(report.recipe.experts))
    if limits.max_distortion is not None and measured is not None:
        own = block.budget.over == "own_task"
        value = measured.own_task_worst if own else measured.worst
        if value is not None:
            yield _held("measured distortion", value, limits.max_distortion)
    losses = [-task.loss_percent for task in found.tasks if task.loss_percent is not None]
    if limits.max_merging_loss is not None and losses:
        yield _held("worst merging loss", max(0.0, *losses), limits.max_merging_loss, " %")
    if limits.max_own_distortion is not None and found.predictive is not None:
        own_tasks = unscored_tasks(found.predictive, found)
        if known := [task.distortion for task in own_tasks if task.distortion is not None]:
            yield _held("distortion of answers", max(known), limits.max_own_distortion)
