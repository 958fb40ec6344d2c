"""The gate itself: what is measured, decided, merged and said, whoever asks for a merge."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from mergekit_collapse import __version__
from mergekit_collapse.assessment import assess
from mergekit_collapse.errors import (
    CompatError,
    MergeRefusedError,
    MergeRejectedError,
    UnevaluatedMergeError,
)
from mergekit_collapse.findings import printable
from mergekit_collapse.formats.announcement import announce
from mergekit_collapse.merge_plan import MergeCall, MergePlan
from mergekit_collapse.merging import merge_and_judge
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.rehearsing import is_due, may_be_overruled
from mergekit_collapse.remedying import remedied, require_possible
from mergekit_collapse.repair.changed_files import write_split
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.saved_plan.following import Following
from mergekit_collapse.staging import require_usable
from mergekit_collapse.switch import SWITCH, gate_mode


def merge_if_allowed(
    read: Callable[[], Recipe], merge: MergeCall, following: Following | None = None
) -> Report | None:
    """Measure, judge, and make the merge if that allows it.

    Args:
        read: gives the recipe, or says what is wrong with it.
        merge: the call that waits.
        following: the plan that the recipe is of, whose verdict must be found again.

    Returns and raises as ``gate.gated_merge``.
    """
    mode = gate_mode()
    if mode == "0":
        # Not through logging: a program that silences it would merge ungated without a word.
        _say(f"mergekit-collapse: {SWITCH}=0: the compat: block is IGNORED, merging ungated")
        merge.into(merge.out)
        return None
    try:
        recipe = read()
        out = Path(os.path.abspath(merge.out))  # `.` has no name
        folder = report_folder(recipe, out.parent / f"{out.name}.compat")
        require_usable(merge.out, [m.model.path for m in recipe.models], folder)
        what = "the recipe" if following is None else f"the recipe of {following.opened.path}"
        _say(f"mergekit-collapse {__version__}: checking {what} before {merge.out.name} is made")
        block = recipe.compat
        scores = block.evaluate.enabled or block.rehearse == "always"
        measured = partial(assess, options=merge.options, merging=True, profile=True, scores=scores)
        if following is None:
            require_possible(recipe)
            assessment = remedied(measured(recipe), measured, folder)
        else:
            tokens = following.token_digest
            assessment = following.settled(measured(recipe, token_digest=tokens))
        if mode == "warn":
            assessment = replace(assessment, report=assessment.report.as_warning())
        write_split(assessment.report, folder)
        report = write_report(assessment.report, folder)
    except CompatError as error:
        if mode != "warn":
            raise
        _say(f"mergekit-collapse: NOT MEASURED, merging all the same: {error}")
        merge.into(merge.out)
        return None
    if not merge.options.quiet:
        _say(terminal.readings(report))
    if report.remedy is not None:
        _say(terminal.change(report))
    if report.verdict.decision == "modified":
        merge = merge.of(report.recipe)
    rehearsal_due = is_due(report)
    if report.verdict.decision == "refuse" and not (rehearsal_due and may_be_overruled(report)):
        raise MergeRefusedError(terminal.ending(announced(report)), report)
    if not rehearsal_due:
        _say(terminal.verdict(report))
    try:
        plan = MergePlan(
            replace(assessment, report=report),
            merge,
            rehearsal_due,
            never_block=mode == "warn",
            keep=lambda found: write_report(found, folder),
        )
        report = merge_and_judge(plan)
    except (MergeRefusedError, MergeRejectedError, UnevaluatedMergeError) as error:
        _show_merged(error.report, merge)
        announced(error.report)
        raise
    _show_merged(report, merge)
    _say(terminal.ending(report))
    return announced(report)


def _show_merged(report: Report, merge: MergeCall) -> None:
    if not merge.options.quiet and (text := terminal.merged(report)):
        _say(text)


def announced(report: Report) -> Report:
    """The report, once it has shown itself where it is wanted besides its folder."""
    try:
        announce(report)
    except CompatError as error:
        # The decision has fallen, and its exit code must not depend on a tracker.
        _say(f"mergekit-collapse: {error}")
    return report


def report_folder(recipe: Recipe, default: Path) -> Path:
    """Where the block wants the report, else ``default``."""
    return recipe.folder / recipe.compat.report if recipe.compat.report else default


def _say(text: str) -> None:
    """To standard error, since standard output is MergeKit's; quiet runs hear it too."""
    # Its names are strangers': nothing in a line may be obeyed by the terminal.
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)
