"""Whether a merge is rehearsed, and what the rehearsal makes of the verdict."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mergekit.options import MergeOptions

from mergekit_collapse.errors import MergeRefusedError
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.evaluation.known_losses import ROWS, covers, limits_losses, losses_tell
from mergekit_collapse.evaluation.own_answers import unjudged
from mergekit_collapse.finished_merge import evaluate_folder
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.judging import is_borderline
from mergekit_collapse.material import Material
from mergekit_collapse.recipe.counted_reading import is_counted
from mergekit_collapse.report.report import Report
from mergekit_collapse.verdict import ALLOW, Reason, Verdict
from mergekit_collapse.watch.rehearsal import rehearse, scratch
from mergekit_collapse.watch.substitution import may_draw
from mergekit_collapse.watch.watch import Watch

Merge = Callable[..., Any]
_BY_LOSSES = (
    "what the tasks lost decided in the place of the default limit of r²; where the recipe is run, "
    "that needs `rehearse: always` in its block"
)


def is_due(report: Report) -> bool:
    """Whether the recipe wants this merge rehearsed.

    ``auto`` does where the deciding distortion is within its interval of the limit, so that
    the geometry cannot tell; a rehearsal can, for its distortion is that of the real merge.
    """
    wanted, geometry = report.recipe.compat.rehearse, report.deciding
    if geometry is None or wanted == "never":
        return False
    return wanted == "always" or is_borderline(geometry, report.recipe.compat.budget)


def may_be_overruled(report: Report) -> bool:
    """Whether a rehearsal could allow what the geometry refused.

    That is a distortion that is borderline, or over the default limit where the rehearsal will
    say what every expert's task loses: losses tell collapse better than any limit of r²
    (``docs/evidence.md``). A limit that the author wrote stands.
    """
    if not _decides_distortion(report) and not _losses_decide(report):
        return False
    return all(reason.rule == "distortion" for reason in report.verdict.reasons)


def with_rehearsal(
    report: Report, rehearsal: Evaluation, *, warn_only: bool, watched: bool = True
) -> Report:
    """The report with a rehearsal, judged: the limits of ``evaluate``, and exit code 3.

    Where the geometry is borderline the rehearsal decides in the place of its distortion. So it
    does where it allows a merge whose losses tell what it is worth to every expert, unless the
    author wrote the limit. A Merging Difficulty Score over its limit stands.

    Args:
        warn_only: a passed limit warns instead.
        watched: whether ``monitor.stop_at`` was held against each layer already.

    Raises:
        EvaluationError: a reading that a limit is about is undefined.
    """
    block = report.recipe.compat
    code = MergeRefusedError.exit_code
    found = judge_merged(
        rehearsal,
        block.evaluate,
        block.budget,
        report.recipe.names,
        exit_code=code,
        warn_only=warn_only,
        stop_at=None if watched else block.monitor.stop_at,
        given_up=report.given_up,
    )
    reasons = (*rehearsal.verdict.reasons, *found.reasons)
    if rehearsal.verdict.reasons or found.decision != "modified":
        found = _verdict(reasons, code, warn_only)
    notes = (*rehearsal.notes, *unjudged(rehearsal, block.evaluate))
    rehearsal = replace(rehearsal, verdict=found, notes=notes)
    told = losses_tell(rehearsal, block.evaluate, len(report.recipe.experts))
    by_losses = told and not reasons and may_be_overruled(report)
    if by_losses and report.verdict.reasons:
        rehearsal = replace(rehearsal, notes=(*rehearsal.notes, _BY_LOSSES))
    # One that was stopped has not measured it.
    decided = by_losses or (rehearsal.hidden is not None and _decides_distortion(report))
    standing = tuple(
        reason for reason in report.verdict.reasons if not (decided and reason.rule == "distortion")
    )
    verdict = _verdict((*standing, *reasons), code, warn_only)
    if report.verdict.decision == "modified" and found.decision in ("allow", "modified"):
        verdict = replace(report.verdict, reasons=(*report.verdict.reasons, *reasons))
    return replace(report, rehearsal=rehearsal, rehearsal_reason=None, verdict=verdict)


def rehearse_apart(
    report: Report, material: Material, options: MergeOptions, merge: Merge
) -> Report:
    """Rehearse a merge that is not going to be made now.

    A model that cannot be run layer by layer is merged into a temporary folder and read back
    from there if the recipe says ``always``; under ``auto`` the report says why it was not.

    Args:
        merge: MergeKit's own ``run_merge``.

    Raises:
        EvaluationError: MergeKit cannot make the merge, or it cannot be compared.
    """
    recipe = report.recipe
    material.own_scores.complete()
    code = MergeRefusedError.exit_code
    stop_at = recipe.compat.monitor.stop_at
    watch = Watch(material, "rehearsal", stop_at=stop_at, blocking=True, exit_code=code)
    quiet = options.model_copy(update={"quiet": True})
    mend = "mend the recipe, or see all of it with -v"
    with told_as_evaluation_error("rehearsal: MergeKit could not make the merge", mend):
        found = rehearse(recipe, quiet, watch, merge)
        if found is None and recipe.compat.rehearse == "always":
            with scratch(recipe, quiet) as (folder, own):
                merge(recipe.config.model_copy(deep=True), str(folder / "merged"), own)
                found = as_rehearsal(evaluate_folder(folder / "merged", material), watch.blind)
    if found is None:
        return replace(report, rehearsal_reason=watch.blind)
    if may_draw(recipe.config) and options.random_seed is None:
        note = f"{recipe.config.merge_method} may draw random numbers: the merge may differ"
        found = replace(found, notes=(*found.notes, note))
    warn_only = recipe.compat.on_violation == "warn"
    return with_rehearsal(report, found, warn_only=warn_only, watched=watch.blind is None)


def as_rehearsal(merged: Evaluation, blind: str | None) -> Evaluation:
    """A merge that was read back whole, in the place of one that was watched."""
    note = f"made whole and read back, since {blind}"
    return replace(merged, source="rehearsal", model=None, notes=(*merged.notes, note))


def _decides_distortion(report: Report) -> bool:
    """Whether the measured distortion, if it has a limit, goes before that of the geometry."""
    geometry, block = report.deciding, report.recipe.compat
    limited = block.evaluate.max_distortion is not None
    return limited and geometry is not None and is_borderline(geometry, block.budget)


def _losses_decide(report: Report) -> bool:
    """Whether ``rehearse: always`` will score every task of every expert, and r² is the default's.

    What it scores is as much as the losses that were held against outcomes.
    """
    block, measurement = report.recipe.compat, report.measurement
    if measurement is None or block.rehearse != "always" or not is_counted(block):
        return False
    if block.budget.wrote("distortion") or not limits_losses(block.evaluate):
        return False
    tasks = measurement.probe_set.tasks
    answered = {task.name for task in block.probes.tasks if task.target is not None}
    told = {task.name for task in tasks if task.name in answered and task.rows >= ROWS}
    return covers(((task.name, task.owner) for task in tasks), told, len(report.recipe.experts))


def _verdict(reasons: tuple[Reason, ...], code: int, warn_only: bool) -> Verdict:
    if not reasons:
        return ALLOW
    return Verdict("warn", 0, reasons) if warn_only else Verdict("refuse", code, reasons)
