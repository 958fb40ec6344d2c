"""An allowed merge: made aside, watched, judged, and only then put where it belongs."""

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

from mergekit_collapse.errors import CompatError, EvaluationError, MergeRejectedError
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.finished_merge import evaluate_folder
from mergekit_collapse.foreign_errors import first_line, told_as_evaluation_error
from mergekit_collapse.formats.card import add_to_card
from mergekit_collapse.merge_plan import NOTHING_MERGED, MergePlan, ended, worse
from mergekit_collapse.report.document import to_document, write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.staging import publish, reject
from mergekit_collapse.staging_folder import staged
from mergekit_collapse.watched_merge import make_watched

LOG = logging.getLogger(__name__)


def merge_and_judge(plan: MergePlan) -> Report:
    """Make the merge, watch and evaluate it, and publish it if it is inside its limits.

    Raises:
        MergeRefusedError: the rehearsal is over a limit; nothing was published.
        MergeRejectedError: the merge was stopped, or the merged model is over a limit.
        EvaluationError: MergeKit could not make it, or it could not be evaluated.
    """
    out = plan.call.out
    try:
        with staged(out) as folder:
            report = evaluate_made(plan, make_watched(plan, folder), folder)
            add_to_card(to_document(report), folder)
            publish(folder, out)
            return plan.keep(report)
    except CompatError:
        raise
    except Exception as error:
        # Any class at all: MergeKit and what it calls have no family of their own.
        LOG.info("MergeKit's own error", exc_info=error)
        raise _failed(out, error) from error


def evaluate_made(plan: MergePlan, report: Report, folder: Path) -> Report:
    """Judge the finished merge; a rejected one is moved aside with its report."""
    material, limits = plan.assessment.material, plan.block.evaluate
    if material is None or not limits.enabled:
        reason = "it was switched off" if material is not None else NOTHING_MERGED
        return replace(report, evaluation_reason=reason)
    try:
        with told_as_evaluation_error(f"the merge {plan.call.out}", "see all of it with -v"):
            found = evaluate_folder(folder, material)
        # Where it is going to be.
        found = replace(found, model=os.path.abspath(plan.call.out))
        verdict = judge_merged(
            found,
            limits,
            plan.block.budget,
            report.recipe.names,
            exit_code=MergeRejectedError.exit_code,
            warn_only=plan.never_block or limits.on_collapse == "warn",
        )
    except CompatError as error:
        if plan.never_block:
            return replace(report, evaluation_reason=str(error))
        place = reject(folder, plan.call.out)
        report = replace(report, evaluation_reason=str(error))
        write_report(report, place)  # by which a later one knows that it may be replaced
        plan.keep(report)
        raise EvaluationError(
            f"the merge was made, but could not be evaluated, and is at {place}: {error}"
        ) from error
    evaluation = replace(found, verdict=verdict)
    report = replace(report, evaluation=evaluation, evaluation_reason=None)
    if verdict.decision == "allow":
        return report
    if verdict.decision == "warn":
        return replace(report, verdict=worse(report.verdict, verdict))
    place = reject(folder, plan.call.out)
    evaluation = replace(evaluation, model=str(place))
    report = replace(report, evaluation=evaluation, verdict=worse(report.verdict, verdict))
    write_report(report, place)  # so that the folder says by itself what is wrong with it
    raise ended(MergeRejectedError, plan.keep(report))


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
