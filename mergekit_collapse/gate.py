"""The gate: a recipe is assessed, its report is written, and only what is allowed is merged."""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from mergekit_collapse import __version__
from mergekit_collapse.assessment import assess, with_parameters
from mergekit_collapse.errors import CompatError, MergeRefusedError, MergeRejectedError
from mergekit_collapse.evaluating import evaluate_finished
from mergekit_collapse.evaluation.merged_files import require_merge
from mergekit_collapse.findings import printable
from mergekit_collapse.formats.announcement import announce
from mergekit_collapse.merge_plan import MergeCall, MergePlan
from mergekit_collapse.merging import merge_and_judge
from mergekit_collapse.recipe.context import recipe_context
from mergekit_collapse.recipe.recipe import Recipe, build_recipe, read_recipe
from mergekit_collapse.rehearsing import is_due, may_be_overruled, rehearse_apart
from mergekit_collapse.remedying import remedied, require_action, require_possible
from mergekit_collapse.repair.changed_files import write_fixed, write_split
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.staging import require_usable
from mergekit_collapse.switch import SWITCH, gate_mode


def check(
    recipe: str | Path,
    options: MergeOptions | None = None,
    report: Path | None = None,
    *,
    rehearse: bool = False,
    parameters: bool = False,
    fix: Path | None = None,
) -> Report:
    """Measure and judge the recipe in a file, and write its report.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        options: MergeKit's own, of which device, caches and trust matter here.
        report: folder for ``report.json``; by default the block's, else ``RECIPE-STEM.compat``.
        rehearse: as ``rehearse: always`` in the block.
        parameters: also the conflict of the experts' weights, which no limit is about.
        fix: the file for the recipe as the block's action changed it, if it did.

    Raises:
        CompatError: the recipe is invalid, or could not be measured. A refusal raises nothing:
            it is the report's verdict.
    """
    recipe, options = Path(recipe), options or MergeOptions()
    read = read_recipe(recipe)
    if rehearse:
        read = replace(read, compat=read.compat.model_copy(update={"rehearse": "always"}))
    require_possible(read)
    if fix is not None:
        require_action(read)
    wanted = read.compat.rehearse
    measured = partial(
        assess, options=options, profile=wanted != "never", scores=wanted == "always"
    )
    folder = report or _report_folder(read, recipe.resolve().parent / f"{recipe.stem}.compat")
    assessment = remedied(measured(read), measured, folder)
    found = assessment.report
    if assessment.material is not None and is_due(found):
        merge = inspect.unwrap(run_merge)
        found = rehearse_apart(found, assessment.material, options, merge)
    if parameters:
        found = with_parameters(found, options)
    write_split(found, folder)
    found = write_report(found, folder)
    if fix is not None:
        write_fixed(found, fix)
    return _announced(found)


def evaluate(
    recipe: str | Path,
    merged: str | Path,
    options: MergeOptions | None = None,
    report: Path | None = None,
) -> Report:
    """Hold a finished merge against the recipe that it was made by, and write the report.

    Nothing is moved or removed.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        merged: folder of the merged model.
        options: MergeKit's own, of which device, caches and trust matter here.
        report: folder for ``report.json``; by default the block's, else ``MERGED.evaluation``.

    Raises:
        CompatError: the recipe is invalid, the folder is no model, or the experts could not be
            measured. A model over its limits raises nothing: it is the report's verdict.
    """
    read, merged = read_recipe(Path(recipe)), Path(merged)
    require_merge(merged)
    found = evaluate_finished(read, merged, options or MergeOptions())
    out = Path(os.path.abspath(merged))
    # Not the folder of the gate's own report, which says how the merge came about.
    folder = report or _report_folder(read, out.parent / f"{out.name}.evaluation")
    return _announced(write_report(found, folder))


def run(recipe: str | Path, out: str | Path, options: MergeOptions | None = None) -> Report | None:
    """Merge the recipe in a file if the gate allows it; MergeKit need not be hooked.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        out: the merged model's folder.
        options: MergeKit's own.

    Returns and raises as ``gated_merge``.
    """
    read = read_recipe(Path(recipe))
    merge = MergeCall(
        inspect.unwrap(run_merge), read.config, Path(out), options or MergeOptions(), read.source
    )
    return _gate(lambda: read, merge)


def gated_merge(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    config_source: str | None = None,
    *,
    merge: Callable[..., Any],
) -> Report | None:
    """Merge only what the gate allows: what stands in the place of ``run_merge``.

    Args:
        config: MergeKit's record, its ``compat`` field holding the block.
        out_path: the merged model's folder, which is touched only when the merge is whole.
        options: MergeKit's own.
        config_source: the YAML text, where the caller has it.
        merge: MergeKit's own ``run_merge``.

    Returns:
        The report; None where ``MERGEKIT_COLLAPSE`` let a merge pass that was not measured.

    Raises:
        MergeRefusedError: a limit is passed; nothing is at ``out_path`` that was not before.
            Its ``report`` is the one that would have been returned.
        MergeRejectedError: the merge was stopped, or the merged model is over a limit and is at
            ``OUT.rejected``. Its ``report`` likewise.
        InvalidRecipeError: the recipe or its block is wrong.
        EvaluationError: the models or probes cannot be measured.
    """

    def recipe() -> Recipe:
        context = recipe_context()
        return build_recipe(
            config,
            config.compat.value,
            source=config_source,
            path=context.config_file,
            merges=context.intermediate_dir,
        )

    call = MergeCall(merge, config, Path(out_path), options, config_source)
    return _gate(recipe, call)


def _gate(read: Callable[[], Recipe], merge: MergeCall) -> Report | None:
    mode = gate_mode()
    if mode == "0":
        # Not through logging: a program that silences it would merge ungated without a word.
        _say(f"mergekit-collapse: {SWITCH}=0: the compat: block is IGNORED, merging ungated")
        merge.into(merge.out)
        return None
    try:
        recipe = read()
        out = Path(os.path.abspath(merge.out))  # `.` has no name
        folder = _report_folder(recipe, out.parent / f"{out.name}.compat")
        require_usable(merge.out, [m.model.path for m in recipe.models], folder)
        _say(
            f"mergekit-collapse {__version__}: checking the recipe before {merge.out.name} is made"
        )
        require_possible(recipe)
        block = recipe.compat
        scores = block.evaluate.enabled or block.rehearse == "always"
        measured = partial(assess, options=merge.options, merging=True, profile=True, scores=scores)
        assessment = remedied(measured(recipe), measured, folder)
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
        raise MergeRefusedError(terminal.ending(_announced(report)), report)
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
    except (MergeRefusedError, MergeRejectedError) as error:
        _show_merged(error.report, merge)
        _announced(error.report)
        raise
    _show_merged(report, merge)
    _say(terminal.ending(report))
    return _announced(report)


def _show_merged(report: Report, merge: MergeCall) -> None:
    if not merge.options.quiet and (text := terminal.merged(report)):
        _say(text)


def _announced(report: Report) -> Report:
    try:
        announce(report)
    except CompatError as error:
        # The decision has fallen, and its exit code must not depend on a tracker.
        _say(f"mergekit-collapse: {error}")
    return report


def _report_folder(recipe: Recipe, default: Path) -> Path:
    return recipe.folder / recipe.compat.report if recipe.compat.report else default


def _say(text: str) -> None:
    """To standard error, since standard output is MergeKit's; quiet runs hear it too."""
    # Its names are strangers': nothing in a line may be obeyed by the terminal.
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)
