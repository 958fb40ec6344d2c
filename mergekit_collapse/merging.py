"""An allowed merge: made aside, watched, judged, and only then put where it belongs."""

import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    MergeRefusedError,
    MergeRejectedError,
    UnevaluatedMergeError,
)
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.evaluation.own_answers import unjudged
from mergekit_collapse.finished_merge import check_folder, evaluate_folder
from mergekit_collapse.foreign_errors import first_line, told_as_evaluation_error
from mergekit_collapse.formats.card import add_to_card
from mergekit_collapse.merge_options import load_options
from mergekit_collapse.merge_plan import MergePlan, ended, unevaluated, worse
from mergekit_collapse.report.document import to_document, write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.staging import publish, reject, rejected_place
from mergekit_collapse.staging_folder import staged
from mergekit_collapse.watched_merge import make_watched

LOG = logging.getLogger(__name__)


def merge_and_judge(plan: MergePlan) -> Report:
    """Make the merge, watch and evaluate it, and publish it if it is inside its limits.

    The report is written before the model is where it belongs, and says so if that fails.

    Raises:
        MergeRefusedError: the rehearsal is over a limit; nothing was published.
        MergeRejectedError: the merge was stopped, or the merged model is over a limit.
        EvaluationError: MergeKit could not make it, or it could not be evaluated.
    """
    out = plan.call.out
    try:
        with staged(out) as folder:
            report, found = make_watched(plan, folder)
            report = evaluate_made(plan, report, folder, found)
            add_to_card(to_document(report), folder)
            report = _kept(plan, report)
            publish(folder, out)
            return report
    except (MergeRefusedError, MergeRejectedError, UnevaluatedMergeError):
        raise  # with the report
    except CompatError as error:
        _keep_failure(plan, error)
        raise
    except Exception as error:
        LOG.info("not MergeKit's error", exc_info=error)
        failure = EvaluationError(
            f"{out}: mergekit-collapse itself failed: {type(error).__name__}: "
            f"{first_line(error)}. See all of it with -v, and report it. Nothing was left behind"
        )
        _keep_failure(plan, failure)
        raise failure from error


def evaluate_made(
    plan: MergePlan, report: Report, folder: Path, found: Evaluation | None
) -> Report:
    """Judge the finished merge; a rejected one is moved aside with its report.

    Args:
        report: what is known up to here.
        folder: of the merge.
        found: what was read from it already, if it was.

    Raises:
        MergeRejectedError: the merge is over a limit.
        EvaluationError: it cannot be evaluated; it is put aside all the same.
    """
    material, limits = plan.assessment.material, plan.block.evaluate
    if not limits.enabled:
        return replace(report, evaluation_reason="it was switched off")
    try:
        if material is None:
            found = check_folder(folder, report.recipe, load_options(plan.call.options))
            # With no experts there is nothing else to be read.
            limits = limits.model_copy(update={"max_distortion": None, "max_own_distortion": None})
        elif found is None:
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
            stop_at=plan.block.monitor.stop_at if material and report.monitor is None else None,
            given_up=plan.report.given_up,
        )
    except CompatError as error:
        if plan.never_block:
            return replace(report, evaluation_reason=str(error))
        report = unevaluated(replace(report, evaluation_reason=str(error)), error)
        place = _put_aside(plan, report, folder)
        text = f"the merge was made, but could not be evaluated, and is at {place}: {error}"
        raise UnevaluatedMergeError(text, _kept(plan, report)) from error
    found = replace(found, verdict=verdict, notes=(*found.notes, *unjudged(found, limits)))
    report = replace(report, evaluation=found, evaluation_reason=None)
    if verdict.decision == "allow":
        return report
    report = replace(report, verdict=worse(report.verdict, verdict))
    if verdict.decision != "refuse":
        return report
    place = rejected_place(plan.call.out)
    report = replace(report, evaluation=replace(found, model=str(place)))
    _put_aside(plan, report, folder)
    raise ended(MergeRejectedError, _kept(plan, report))


def _put_aside(plan: MergePlan, report: Report, folder: Path) -> Path:
    """With the report inside, so that the folder says by itself what is wrong with it."""
    place = rejected_place(plan.call.out)
    try:
        add_to_card(to_document(report), folder)
        write_report(report, folder)
    except EvaluationError as error:
        LOG.warning("%s", error)
    reject(folder, place)
    return place


def _kept(plan: MergePlan, report: Report) -> Report:
    """The report, written; what could not be written must not change how the merge ends."""
    try:
        return plan.keep(report)
    except EvaluationError as error:
        if report.verdict.exit_code == 0 and not plan.never_block:
            raise
        LOG.warning("%s", error)
        return report


def _keep_failure(plan: MergePlan, error: CompatError) -> None:
    """Or the report from before the merge would go on saying that all is well."""
    with suppress(EvaluationError):
        plan.keep(unevaluated(plan.report, error))
