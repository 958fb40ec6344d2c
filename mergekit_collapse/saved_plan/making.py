"""From a checked recipe to its plan."""

import hashlib
import os
from pathlib import Path

from mergekit.options import MergeOptions
from pydantic import ValidationError

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.findings import printable
from mergekit_collapse.json_file import first_problem
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.rehearsing import is_due
from mergekit_collapse.repair.before_and_after import reading_of
from mergekit_collapse.report.report import Report
from mergekit_collapse.saved_plan.found_inputs import FoundInputs, find_inputs
from mergekit_collapse.saved_plan.input_files import inputs_of
from mergekit_collapse.saved_plan.options import planned_options
from mergekit_collapse.saved_plan.plan_file import require_place
from mergekit_collapse.saved_plan.record import (
    PLAN_VERSION,
    PlannedExpert,
    PlannedProbes,
    PlannedRecipe,
    PlannedRehearsal,
    Readings,
    SavedPlan,
)
from mergekit_collapse.watch.substitution import may_draw


def require_plannable(
    recipe: Recipe, options: MergeOptions, path: Path, fix: Path | None = None
) -> None:
    """Say before anything is measured that no plan can be made.

    Args:
        path: of the plan.
        fix: the file that the changed recipe goes to, if any.

    Raises:
        InvalidRecipeError: the method draws random numbers and has no seed, an option cannot be,
            or the file would lie where it must not.
    """
    planned_options(options)
    method = recipe.config.merge_method
    if may_draw(recipe.config) and options.random_seed is None:
        raise InvalidRecipeError(
            f"--plan: {method} may draw random numbers, so that without a seed no two merges are "
            "the same; give --random-seed N"
        )
    models = recipe.config.referenced_models()
    parts = [part for model in models for part in (model.model, model.lora) if part is not None]
    require_place(path, [part.path for part in parts])
    if fix is not None and os.path.realpath(fix) == os.path.realpath(recipe.path or ""):
        raise InvalidRecipeError(
            f"--fix {fix}: would change the recipe that the plan is made of; name another file, "
            "or check the changed recipe afterwards"
        )


def plan_of(report: Report, options: MergeOptions) -> SavedPlan:
    """All that the merge of a checked recipe will do.

    Args:
        report: of the check.
        options: MergeKit's own.

    Raises:
        EvaluationError: an input cannot be read or held fast, or was changed meanwhile.
    """
    recipe = report.recipe
    assert recipe.path is not None
    found = find_inputs(
        inputs_of(recipe),
        cache_dir=options.transformers_cache,
        trust_remote_code=options.trust_remote_code,
        progress=not options.quiet,
    )
    if found.problems:
        raise EvaluationError("; ".join(found.problems.values()))
    sha256 = report.remedy.source_sha256 if report.remedy is not None else recipe.sha256
    _require_unchanged(recipe.path, sha256, found)
    try:
        return _record(report, options, sha256, found)
    except ValidationError as error:  # such as a file's name that is no text
        raise EvaluationError(f"the plan cannot be made: {first_problem(error, 'plan')}") from None


def _record(report: Report, options: MergeOptions, sha256: str, found: FoundInputs) -> SavedPlan:
    recipe = report.recipe
    assert recipe.path is not None
    return SavedPlan(
        plan_version=PLAN_VERSION,
        verdict=report.verdict,
        gate=report.geometry_verdict or report.verdict,
        readings=_readings(report),
        recipe=PlannedRecipe(
            path=os.path.abspath(recipe.path),
            sha256=sha256,
            folder=str(recipe.folder),
            working_directory=os.getcwd(),
            effective=recipe.source,
        ),
        experts=tuple(
            PlannedExpert(name=name, model=str(model))
            for name, model in zip(recipe.names, recipe.experts, strict=True)
        ),
        rehearsal=PlannedRehearsal(wanted=recipe.compat.rehearse, due=is_due(report)),
        remedy=report.remedy,
        options=planned_options(options),
        probes=_probes(report),
        versions=dict(report.versions),
        inputs=tuple(found.inputs.values()),
    )


def plan_line(report: Report, path: Path) -> str:
    """What to say of a plan that was written.

    Args:
        report: of the check.
    """
    shown = printable(str(path))
    if report.verdict.exit_code != 0:
        return f"Plan: {shown} holds the refusal; no merge is planned"
    return f"Plan: {shown}"


def _readings(report: Report) -> Readings | None:
    geometry, difficulty = report.deciding, report.difficulty
    if geometry is None or difficulty is None:
        return None
    limited = report.recipe.compat.budget.mds is not None
    return Readings(
        space=geometry.space,
        ball_radius_squared=geometry.ball.radius_squared,
        distortion=reading_of(report),
        mds=tuple(difficulty.mds) if limited else (),
    )


def _probes(report: Report) -> PlannedProbes | None:
    if (measured := report.measurement) is None:
        return None
    return PlannedProbes(text_digest=measured.probe_set.digest, digest=measured.token_digest)


def _require_unchanged(path: Path, sha256: str, found: FoundInputs) -> None:
    """What was measured is what is written down.

    Raises:
        EvaluationError: it is not.
    """
    found.require_untouched("check again when nobody writes there")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise EvaluationError(f"{path}: cannot be read any more: {error}; check again") from error
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise EvaluationError(f"{path}: was changed while it was being checked; check again")
