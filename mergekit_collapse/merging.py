"""An allowed merge: made aside, watched, judged, and only then put where it belongs."""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    MergeRefusedError,
    MergeRejectedError,
)
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.finished_merge import evaluate_folder
from mergekit_collapse.foreign_errors import first_line, told_as_evaluation_error
from mergekit_collapse.formats.card import add_to_card
from mergekit_collapse.material import Material
from mergekit_collapse.rehearsing import as_rehearsal, with_rehearsal
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import to_document, write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.staging import publish, reject, staged
from mergekit_collapse.verdict import Verdict
from mergekit_collapse.watch.substitution import may_reorder, planned_with
from mergekit_collapse.watch.watch import MergeStopped, Watch

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeCall:
    """A call of MergeKit's ``run_merge``, held back until the gate has decided."""

    merge: Callable[..., Any]
    config: MergeConfiguration
    out: Path
    options: MergeOptions
    source: str | None

    def into(self, folder: Path) -> None:
        """Make it now."""
        self.merge(self.config, str(folder), self.options, self.source)


def merge_and_judge(
    assessment: Assessment,
    call: MergeCall,
    *,
    rehearsal_due: bool,
    never_block: bool,
    keep: Callable[[Report], Report],
) -> Report:
    """Make the merge, watch and evaluate it, and publish it if it is inside its limits.

    Args:
        assessment: what the gate allowed.
        rehearsal_due: whether what the watch saw decides as a rehearsal does.
        never_block: whatever limit is passed, it warns.
        keep: writes the report, and returns it with its path.

    Raises:
        MergeRefusedError: the rehearsal is over a limit; nothing was published.
        MergeRejectedError: the merge was stopped, or the merged model is over a limit.
        EvaluationError: MergeKit could not make it, or it could not be evaluated.
    """
    merging = _Merging(assessment, call, rehearsal_due, never_block, keep)
    try:
        with staged(call.out) as folder:
            report = merging.make(folder)
            report = merging.evaluate(report, folder)
            add_to_card(to_document(report), folder)
            publish(folder, call.out)
            return keep(report)
    except CompatError:
        raise
    except Exception as error:
        # Any class at all: MergeKit and what it calls have no family of their own.
        LOG.info("MergeKit's own error", exc_info=error)
        raise _failed(call.out, error) from error


class _Merging:
    def __init__(
        self,
        assessment: Assessment,
        call: MergeCall,
        rehearsal_due: bool,
        never_block: bool,
        keep: Callable[[Report], Report],
    ) -> None:
        self._report, self._material = assessment.report, assessment.material
        self._call, self._rehearsal_due = call, rehearsal_due
        self._never_block, self._keep = never_block, keep
        self._block = assessment.report.recipe.compat
        self._gate_warns = never_block or self._block.on_violation == "warn"

    def make(self, folder: Path) -> Report:
        """Merge into ``folder``, watched where that is wanted and can be."""
        material = self._material
        if material is None or not (self._block.monitor.enabled or self._rehearsal_due):
            self._call.into(folder)
            reason = "it was switched off" if material is not None else self._nothing
            return replace(self._report, monitor_reason=reason)
        watch = self._watch(material)
        try:
            with self._watching(watch):
                self._call.into(folder)
        except MergeStopped:
            raise self._stopped(watch) from None
        if not self._rehearsal_due:
            return self._monitored(watch)
        try:
            report = self._rehearsed(watch, folder, material)
        except EvaluationError as error:
            if not self._never_block:
                raise
            LOG.warning("the merge was not rehearsed: %s", error)
            report = replace(self._report, rehearsal_reason=str(error))
        report = replace(report, monitor_reason="what was watched is the rehearsal")
        if report.verdict.decision == "refuse":
            raise _ended(MergeRefusedError, self._keep(report))
        return report

    def _monitored(self, watch: Watch) -> Report:
        if watch.blind is not None:
            return replace(self._report, monitor_reason=watch.blind)
        try:
            found = watch.evaluation()
        except EvaluationError as error:
            # No layer ended the merge, and what becomes of it is for the evaluation to say.
            return replace(self._report, monitor_reason=str(error))
        verdict = self._report.verdict
        if found.verdict.decision != "allow":
            verdict = _worse(verdict, found.verdict)
        return replace(self._report, monitor=found, monitor_reason=None, verdict=verdict)

    def _rehearsed(self, watch: Watch, folder: Path, material: Material) -> Report:
        if watch.blind is None:
            found = watch.evaluation()
        else:
            found = as_rehearsal(evaluate_folder(folder, material), watch.blind)
        return with_rehearsal(self._report, found, warn_only=self._gate_warns)

    def evaluate(self, report: Report, folder: Path) -> Report:
        """Judge the finished merge; a rejected one is moved aside with its report."""
        material, limits = self._material, self._block.evaluate
        if material is None or not limits.enabled:
            reason = "it was switched off" if material is not None else self._nothing
            return replace(report, evaluation_reason=reason)
        try:
            with told_as_evaluation_error(f"the merge {self._call.out}", "see all of it with -v"):
                found = evaluate_folder(folder, material)
            # Where it is going to be.
            found = replace(found, model=os.path.abspath(self._call.out))
            verdict = judge_merged(
                found,
                limits,
                self._block.budget,
                report.recipe.names,
                exit_code=MergeRejectedError.exit_code,
                warn_only=self._never_block or limits.on_collapse == "warn",
            )
        except CompatError as error:
            if self._never_block:
                return replace(report, evaluation_reason=str(error))
            place = reject(folder, self._call.out)
            report = replace(report, evaluation_reason=str(error))
            write_report(report, place)  # by which a later one knows that it may be replaced
            self._keep(report)
            raise EvaluationError(
                f"the merge was made, but could not be evaluated, and is at {place}: {error}"
            ) from error
        evaluation = replace(found, verdict=verdict)
        report = replace(report, evaluation=evaluation, evaluation_reason=None)
        if verdict.decision == "allow":
            return report
        if verdict.decision == "warn":
            return replace(report, verdict=_worse(report.verdict, verdict))
        place = reject(folder, self._call.out)
        evaluation = replace(evaluation, model=str(place))
        report = replace(report, evaluation=evaluation, verdict=_worse(report.verdict, verdict))
        write_report(report, place)  # so that the folder says by itself what is wrong with it
        raise _ended(MergeRejectedError, self._keep(report))

    _nothing = "every slice has one source, so no two models are merged"

    def _watch(self, material: Material) -> Watch:
        due = self._rehearsal_due
        if due:
            material.own_scores.complete()
        watch = Watch(
            material,
            "rehearsal" if due else "monitor",
            stop_at=self._block.monitor.stop_at,
            blocking=not (self._gate_warns if due else self._never_block),
            exit_code=MergeRefusedError.exit_code if due else MergeRejectedError.exit_code,
        )
        if self._call.options.multi_gpu:
            watch.blind = "--multi-gpu merges the layers in no order"
        return watch

    def _watching(self, watch: Watch) -> AbstractContextManager[None]:
        if watch.blind is not None:
            LOG.warning("the merge is not watched: %s", watch.blind)
            return nullcontext()
        in_order = may_reorder(self._report.recipe.config, self._call.options)
        return planned_with(watch.plan, in_layer_order=in_order)

    def _stopped(self, watch: Watch) -> CompatError:
        found = watch.evaluation()
        report = replace(self._report, verdict=_worse(self._report.verdict, found.verdict))
        reason = "the merge was stopped before it was finished"
        report = replace(report, evaluation_reason=reason)
        if self._rehearsal_due:
            report = replace(report, rehearsal=found, rehearsal_reason=None)
            return _ended(MergeRefusedError, self._keep(report))
        report = replace(report, monitor=found, monitor_reason=None)
        return _ended(MergeRejectedError, self._keep(report))


def _ended(error: type[MergeRefusedError | MergeRejectedError], report: Report) -> CompatError:
    return error(terminal.ending(report), report)


def _worse(before: Verdict, after: Verdict) -> Verdict:
    """What was passed before the merge is still to be read after it."""
    return replace(after, reasons=(*before.reasons, *after.reasons))


def _failed(out: Path, error: Exception) -> EvaluationError:
    if _is_full_disk(error):
        return EvaluationError(
            f"{out}: the disk is full; free some, or merge to another disk. Nothing was left behind"
        )
    return EvaluationError(
        f"{out}: the gate allowed the merge, but MergeKit could not make it: "
        f"{type(error).__name__}: {first_line(error)}. Mend the recipe, or see all of it "
        "with -v. Nothing was left behind"
    )


def _is_full_disk(error: Exception) -> bool:
    """safetensors has an exception of its own, which holds the number as text."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    told = any(f"os error {number})" in str(error) for number in numbers)
    return told or getattr(error, "errno", None) in numbers
