"""The ways in: what a recipe, a plan or a finished merge is asked for."""

import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from mergekit_collapse.assessment import assess, with_parameters
from mergekit_collapse.evaluating import evaluate_finished
from mergekit_collapse.evaluation.merged_files import require_merge
from mergekit_collapse.gating import announced, merge_if_allowed, report_folder
from mergekit_collapse.merge_plan import MergeCall
from mergekit_collapse.recipe.context import recipe_context
from mergekit_collapse.recipe.recipe import Recipe, build_recipe, read_recipe
from mergekit_collapse.rehearsing import is_due, rehearse_apart
from mergekit_collapse.remedying import remedied, require_action, require_possible
from mergekit_collapse.repair.changed_files import write_fixed, write_split
from mergekit_collapse.report.document import write_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.saved_plan.exact_merge import exact
from mergekit_collapse.saved_plan.following import follow
from mergekit_collapse.saved_plan.making import plan_of, require_plannable
from mergekit_collapse.saved_plan.options import given_in
from mergekit_collapse.saved_plan.plan_file import read_plan, write_plan


def check(
    recipe: str | Path,
    options: MergeOptions | None = None,
    report: Path | None = None,
    *,
    rehearse: bool = False,
    parameters: bool = False,
    fix: Path | None = None,
    plan: str | Path | None = None,
) -> Report:
    """Measure and judge the recipe in a file, and write its report.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        options: MergeKit's own, of which device, caches and trust matter here.
        report: folder for ``report.json``; by default the block's, else ``RECIPE-STEM.compat``.
        rehearse: as ``rehearse: always`` in the block.
        parameters: also the conflict of the experts' weights, which no limit is about.
        fix: the file for the recipe as the block's action changed it, if it did.
        plan: the file for all that the merge will do, for ``run_plan``; of a refused recipe it
            holds the refusal. All of ``options`` matters then that the merged model depends on.

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
    if plan is not None:
        require_plannable(read, options, Path(plan), fix)
    wanted = read.compat.rehearse
    measured = partial(
        assess, options=options, profile=wanted != "never", scores=wanted == "always"
    )
    folder = report or report_folder(read, recipe.resolve().parent / f"{recipe.stem}.compat")
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
    if plan is not None:
        write_plan(plan_of(found, options), Path(plan))
    return announced(found)


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
    folder = report or report_folder(read, out.parent / f"{out.name}.evaluation")
    return announced(write_report(found, folder))


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
    return merge_if_allowed(lambda: read, merge)


def run_plan(
    plan: str | Path,
    out: str | Path,
    options: MergeOptions | None = None,
    *,
    given: Collection[str] | None = None,
) -> Report | None:
    """Make the merge that ``check`` saved in a plan, and no other.

    Every input is verified before anything is measured. Then the merge is gated, watched and
    judged as by ``run``, with no further change of the recipe.

    Args:
        plan: its file.
        out: the merged model's folder.
        options: MergeKit's own about devices, caches and talk. Others are the plan's, and must
            not contradict it; remote code runs only where these options allow it as well.
        given: names of the options that count as given; by default those that were set.

    Returns and raises as ``gated_merge``.

    Raises:
        MergeRefusedError: also where the plan is of a refusal; its ``report`` is None then.
        InvalidRecipeError: also where something is not as the plan has it; names each change.
    """
    options = options or MergeOptions()
    following = follow(
        read_plan(Path(plan)), options, given_in(options) if given is None else given
    )
    recipe = following.recipe
    call = MergeCall(
        exact(inspect.unwrap(run_merge), following.verified),
        recipe.config,
        Path(out),
        following.options,
        recipe.source,
    )
    return merge_if_allowed(lambda: recipe, call, following)


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
    return merge_if_allowed(recipe, call)
