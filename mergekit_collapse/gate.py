"""The gate: a recipe is assessed, its report is written, and only what is allowed is merged."""

import errno
import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from mergekit_collapse import __version__
from mergekit_collapse.assessment import assess
from mergekit_collapse.errors import CompatError, EvaluationError, MergeRefusedError
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.recipe.context import recipe_context
from mergekit_collapse.recipe.recipe import Recipe, build_recipe, read_recipe
from mergekit_collapse.report import terminal
from mergekit_collapse.report.card import add_to_card
from mergekit_collapse.report.document import write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.staging import publish, require_usable, staged
from mergekit_collapse.switch import SWITCH, gate_mode

LOG = logging.getLogger(__name__)


def check(
    recipe: str | Path, options: MergeOptions | None = None, report: Path | None = None
) -> Report:
    """Measure and judge the recipe in a file, and write its report.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        options: MergeKit's own, of which device, caches and trust matter here.
        report: folder for ``report.json``; by default the block's, else ``RECIPE-STEM.compat``.

    Raises:
        CompatError: the recipe is invalid, or could not be measured. A refusal raises nothing:
            it is the report's verdict.
    """
    recipe = Path(recipe)
    read = read_recipe(recipe)
    found = assess(read, options or MergeOptions())
    default = recipe.resolve().parent / f"{recipe.stem}.compat"
    return write_report(found, report or _report_folder(read, default))


def run(recipe: str | Path, out: str | Path, options: MergeOptions | None = None) -> Report | None:
    """Merge the recipe in a file if the gate allows it; MergeKit need not be hooked.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        out: the merged model's folder.
        options: MergeKit's own.

    Returns and raises as ``gated_merge``.
    """
    read = read_recipe(Path(recipe))
    merge = _Merge(
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

    call = _Merge(merge, config, Path(out_path), options, config_source)
    return _gate(recipe, call)


@dataclass(frozen=True)
class _Merge:
    """A call of MergeKit's ``run_merge``, held back until the gate has decided."""

    merge: Callable[..., Any]
    config: MergeConfiguration
    out: Path
    options: MergeOptions
    source: str | None

    def into(self, folder: Path) -> None:
        self.merge(self.config, str(folder), self.options, self.source)


def _gate(read: Callable[[], Recipe], merge: _Merge) -> Report | None:
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
        report = assess(recipe, merge.options, merging=True)
        if mode == "warn":
            report = report.as_warning()
        report = write_report(report, folder)
    except CompatError as error:
        if mode != "warn":
            raise
        _say(f"mergekit-collapse: NOT MEASURED, merging all the same: {error}")
        merge.into(merge.out)
        return None
    if not merge.options.quiet:
        _say(terminal.readings(report))
    ending = terminal.ending(report)
    if report.verdict.decision == "refuse":
        raise MergeRefusedError(ending, report)
    _say(ending)
    _merge_and_publish(report, merge)
    return report


def _merge_and_publish(report: Report, merge: _Merge) -> None:
    try:
        with staged(merge.out) as folder:
            merge.into(folder)
            add_to_card(report, folder)
            publish(folder, merge.out)
    except CompatError:
        raise
    except Exception as error:
        # Any class at all: MergeKit and what it calls have no family of their own.
        LOG.info("MergeKit's own error", exc_info=error)
        if _is_full_disk(error):
            raise EvaluationError(
                f"{merge.out}: the disk is full; free some, or merge to another disk. "
                "Nothing was left behind"
            ) from error
        raise EvaluationError(
            f"{merge.out}: the gate allowed the merge, but MergeKit could not make it: "
            f"{type(error).__name__}: {first_line(error)}. Mend the recipe, or see all of it "
            "with -v. Nothing was left behind"
        ) from error


def _is_full_disk(error: Exception) -> bool:
    """safetensors has an exception of its own, which holds the number as text."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    told = any(f"os error {number})" in str(error) for number in numbers)
    return told or getattr(error, "errno", None) in numbers


def _report_folder(recipe: Recipe, default: Path) -> Path:
    return recipe.folder / recipe.compat.report if recipe.compat.report else default


def _say(text: str) -> None:
    """To standard error, since standard output is MergeKit's; quiet runs hear it too."""
    click.echo(text, err=True)
