"""The merge itself: made by MergeKit into a folder, and watched meanwhile."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    MergeRefusedError,
    MergeRejectedError,
)
from mergekit_collapse.finished_merge import evaluate_folder
from mergekit_collapse.material import Material
from mergekit_collapse.merge_plan import NOTHING_MERGED, MergePlan, ended, worse
from mergekit_collapse.rehearsing import as_rehearsal, with_rehearsal
from mergekit_collapse.report.report import Report
from mergekit_collapse.watch.substitution import may_reorder, planned_with
from mergekit_collapse.watch.watch import MergeStopped, Watch

LOG = logging.getLogger(__name__)


def make_watched(plan: MergePlan, folder: Path) -> Report:
    """Merge into ``folder``, watched where that is wanted and can be."""
    material = plan.assessment.material
    if material is None or not (plan.block.monitor.enabled or plan.rehearsal_due):
        plan.call.into(folder)
        reason = "it was switched off" if material is not None else NOTHING_MERGED
        return replace(plan.report, monitor_reason=reason)
    watch = _watch(plan, material)
    try:
        with _watching(plan, watch):
            plan.call.into(folder)
    except MergeStopped:
        raise _stopped(plan, watch) from None
    if not plan.rehearsal_due:
        return _monitored(plan, watch)
    try:
        report = _rehearsed(plan, watch, folder, material)
    except EvaluationError as error:
        if not plan.never_block:
            raise
        LOG.warning("the merge was not rehearsed: %s", error)
        report = replace(plan.report, rehearsal_reason=str(error))
    report = replace(report, monitor_reason="what was watched is the rehearsal")
    if report.verdict.decision == "refuse":
        raise ended(MergeRefusedError, plan.keep(report))
    return report


def _monitored(plan: MergePlan, watch: Watch) -> Report:
    if watch.blind is not None:
        return replace(plan.report, monitor_reason=watch.blind)
    try:
        found = watch.evaluation()
    except EvaluationError as error:
        # No layer ended the merge, and what becomes of it is for the evaluation to say.
        return replace(plan.report, monitor_reason=str(error))
    verdict = plan.report.verdict
    if found.verdict.decision != "allow":
        verdict = worse(verdict, found.verdict)
    return replace(plan.report, monitor=found, monitor_reason=None, verdict=verdict)


def _rehearsed(plan: MergePlan, watch: Watch, folder: Path, material: Material) -> Report:
    if watch.blind is None:
        found = watch.evaluation()
    else:
        found = as_rehearsal(evaluate_folder(folder, material), watch.blind)
    return with_rehearsal(plan.report, found, warn_only=plan.gate_warns)


def _watch(plan: MergePlan, material: Material) -> Watch:
    due = plan.rehearsal_due
    if due:
        material.own_scores.complete()
    watch = Watch(
        material,
        "rehearsal" if due else "monitor",
        stop_at=plan.block.monitor.stop_at,
        blocking=not (plan.gate_warns if due else plan.never_block),
        exit_code=MergeRefusedError.exit_code if due else MergeRejectedError.exit_code,
    )
    if plan.call.options.multi_gpu:
        watch.blind = "--multi-gpu merges the layers in no order"
    return watch


def _watching(plan: MergePlan, watch: Watch) -> AbstractContextManager[None]:
    if watch.blind is not None:
        LOG.warning("the merge is not watched: %s", watch.blind)
        return nullcontext()
    in_order = may_reorder(plan.report.recipe.config, plan.call.options)
    return planned_with(watch.plan, in_layer_order=in_order)


def _stopped(plan: MergePlan, watch: Watch) -> CompatError:
    found = watch.evaluation()
    report = replace(plan.report, verdict=worse(plan.report.verdict, found.verdict))
    reason = "the merge was stopped before it was finished"
    report = replace(report, evaluation_reason=reason)
    if plan.rehearsal_due:
        report = replace(report, rehearsal=found, rehearsal_reason=None)
        return ended(MergeRefusedError, plan.keep(report))
    report = replace(report, monitor=found, monitor_reason=None)
    return ended(MergeRejectedError, plan.keep(report))
