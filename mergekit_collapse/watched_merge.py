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
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.findings import printable
from mergekit_collapse.finished_merge import NOTHING_MERGED, evaluate_folder
from mergekit_collapse.material import Material
from mergekit_collapse.merge_plan import MergePlan, ended, worse
from mergekit_collapse.rehearsing import as_rehearsal, with_rehearsal
from mergekit_collapse.report.report import Report
from mergekit_collapse.watch.substitution import may_reorder, planned_with
from mergekit_collapse.watch.watch import MergeStopped, Watch

LOG = logging.getLogger(__name__)


def make_watched(plan: MergePlan, folder: Path) -> tuple[Report, Evaluation | None]:
    """Merge into ``folder``, watched where that is wanted and can be.

    Returns:
        The report, and what was read from the folder already, if it was.

    Raises:
        MergeRefusedError: the rehearsal that this merge is was over a limit.
        MergeRejectedError: a layer ended the merge.
        EvaluationError: MergeKit cannot make it, or its rehearsal cannot be measured.
    """
    material = plan.assessment.material
    if material is None or not (plan.block.monitor.enabled or plan.rehearsal_due):
        plan.call.into(folder)
        reason = "it was switched off" if material is not None else NOTHING_MERGED
        return replace(plan.report, monitor_reason=reason), None
    watch = _watch(plan, material)
    try:
        with _watching(plan, watch):
            plan.call.into(folder)
    except MergeStopped:
        raise _stopped(plan, watch) from None
    if not plan.rehearsal_due:
        return _monitored(plan, watch), None
    whole = None
    try:
        if watch.blind is None:
            found = watch.evaluation()
        else:
            whole = evaluate_folder(folder, material)
            found = as_rehearsal(whole, watch.blind)
        report = with_rehearsal(
            plan.report, found, warn_only=plan.gate_warns, watched=watch.blind is None
        )
    except EvaluationError as error:
        if not plan.never_block:
            raise
        LOG.warning("the merge was not rehearsed: %s", printable(str(error)))
        report = replace(plan.report, rehearsal_reason=str(error))
    report = replace(report, monitor_reason="what was watched is the rehearsal")
    if report.verdict.decision == "refuse":
        raise ended(MergeRefusedError, plan.keep(report))
    return report, whole


def _monitored(plan: MergePlan, watch: Watch) -> Report:
    if watch.blind is not None:
        if plan.block.monitor.stop_at is not None and not plan.block.evaluate.enabled:
            problem = (
                f"monitor.stop_at is set, but the merge could not be watched ({watch.blind}), and "
                "evaluate is switched off; switch it on, or remove stop_at"
            )
            if not plan.never_block:
                raise EvaluationError(problem)
            LOG.warning("%s", problem)
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


def _watch(plan: MergePlan, material: Material) -> Watch:
    if plan.rehearsal_due:
        try:
            material.own_scores.complete()
        except EvaluationError as error:
            if not plan.never_block:
                raise
            LOG.warning("experts were not scored: %s", error)
    watch = Watch(
        material,
        "rehearsal" if plan.rehearsal_due else "monitor",
        stop_at=plan.block.monitor.stop_at,
        blocking=not plan.never_block,
        exit_code=_ending_of(plan).exit_code,
    )
    if plan.call.options.multi_gpu:
        watch.blind = "--multi-gpu merges the layers in no order"
    return watch


def _watching(plan: MergePlan, watch: Watch) -> AbstractContextManager[None]:
    if watch.blind is not None:
        LOG.warning("the merge is not watched: %s", printable(watch.blind))
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
    else:
        report = replace(report, monitor=found, monitor_reason=None)
    return ended(_ending_of(plan), plan.keep(report))


def _ending_of(plan: MergePlan) -> type[MergeRefusedError | MergeRejectedError]:
    """How a merge ends that is stopped: one that was allowed is no more refused."""
    refuses = plan.rehearsal_due and not plan.gate_warns
    return MergeRefusedError if refuses else MergeRejectedError
