"""A plan that is followed: its inputs verified, and its verdict found again."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit.options import MergeOptions

from mergekit_collapse.assessment import Assessment, library_versions
from mergekit_collapse.errors import InvalidRecipeError, MergeRefusedError
from mergekit_collapse.findings import printable
from mergekit_collapse.recipe.recipe import Recipe, parse_recipe
from mergekit_collapse.repair.before_and_after import reading_of
from mergekit_collapse.report.report import FollowedPlan, Report, cell
from mergekit_collapse.saved_plan.changes import input_changes, version_changes
from mergekit_collapse.saved_plan.found_inputs import FoundInputs, find_inputs
from mergekit_collapse.saved_plan.input_files import inputs_of
from mergekit_collapse.saved_plan.options import contradictions, with_planned
from mergekit_collapse.saved_plan.plan_file import OpenedPlan
from mergekit_collapse.saved_plan.record import SavedPlan
from mergekit_collapse.verdict import Reason, Verdict


@dataclass(frozen=True)
class Following:
    """A plan whose inputs are as they were.

    Attributes:
        recipe: the effective one, which is merged.
        options: the planned ones, and what the command line says of devices and caches.
        verified: the inputs.
    """

    opened: OpenedPlan
    recipe: Recipe
    options: MergeOptions
    verified: FoundInputs

    @property
    def token_digest(self) -> str | None:
        """Of the probes, as they must be again; None where nothing is measured."""
        probes = self.opened.plan.probes
        return probes.digest if probes is not None else None

    def settled(self, assessment: Assessment) -> Assessment:
        """The effective recipe as the plan has it, with no further change.

        It is refused where its geometry is not judged as it was.

        Args:
            assessment: of the effective recipe, measured anew.
        """
        plan, report = self.opened.plan, assessment.report
        report = replace(report, plan=FollowedPlan(self.opened.path, self.opened.sha256))
        if not _alike(plan.gate, report.verdict):
            return replace(assessment, report=_judged_otherwise(self.opened, report))
        if plan.remedy is not None:
            report = replace(report, remedy=plan.remedy, remedy_reason=None)
            if report.verdict.decision == "allow" or _knowingly_over(report):
                verdict = Verdict("modified", 0, report.verdict.reasons)
                report = replace(report, verdict=verdict)
        return replace(assessment, report=report)


def follow(opened: OpenedPlan, options: MergeOptions, given: Collection[str]) -> Following:
    """Verify every input of a plan; nothing is measured or written.

    Args:
        opened: the plan.
        options: MergeKit's own, as they were given now.
        given: names of those that were given.

    Raises:
        MergeRefusedError: the plan is of a refusal.
        InvalidRecipeError: something changed; names each change.
        EvaluationError: an input is there and cannot be read.
    """
    plan = opened.plan
    if plan.refused:
        raise MergeRefusedError("\n".join(_refusal(opened)))
    changes = [
        *contradictions(plan.options, options, given),
        *version_changes(plan.versions, library_versions()),
    ]
    own = with_planned(options, plan.options)
    try:
        recipe = _planned_recipe(opened)
        verified = _found(plan, recipe, own)
        changes += input_changes(plan, verified)
    except InvalidRecipeError as error:
        if not changes:
            raise
        # Another version of MergeKit may not take the recipe at all.
        changes.append(str(error))
    if changes:
        raise InvalidRecipeError("\n".join(_changed(opened, changes)))
    return Following(opened, recipe, own, verified)


def _planned_recipe(opened: OpenedPlan) -> Recipe:
    plan = opened.plan
    recipe = parse_recipe(
        plan.recipe.effective, Path(plan.recipe.path), folder=Path(plan.recipe.folder)
    )
    if [str(model) for model in recipe.experts] != [expert.model for expert in plan.experts]:
        raise InvalidRecipeError(
            f"{opened.path}: experts: are not those of its recipe. The plan was changed by hand; "
            "make it again with `mergekit-collapse check RECIPE --plan FILE`"
        )
    rehearsal = plan.rehearsal
    # One that was due is due again, wherever rounding puts the reading now.
    wanted = "always" if rehearsal.due else rehearsal.wanted
    return replace(
        recipe,
        compat=recipe.compat.model_copy(update={"rehearse": wanted}),
        names=tuple(expert.name for expert in plan.experts),
    )


def _found(plan: SavedPlan, recipe: Recipe, options: MergeOptions) -> FoundInputs:
    return find_inputs(
        inputs_of(recipe),
        cache_dir=options.transformers_cache,
        # Only to list the files of code: none is run before all is verified.
        trust_remote_code=options.trust_remote_code,
        progress=not options.quiet,
        local=[key for key, one in plan.by_key.items() if one.commit is None],
    )


def _alike(planned: Verdict, found: Verdict) -> bool:
    """The same decision about the same limits; the readings may differ in their last digits."""
    told = [
        {(reason.rule, reason.reading, reason.subject) for reason in verdict.reasons}
        for verdict in (planned, found)
    ]
    return planned.decision == found.decision and told[0] == told[1]


def _judged_otherwise(opened: OpenedPlan, report: Report) -> Report:
    plan, now = opened.plan, report.verdict
    was = plan.readings.distortion if plan.readings is not None else None
    is_now = reading_of(report) if report.deciding is not None else None
    reason = Reason(
        rule="plan",
        reading=(
            f"its geometry was judged {_told(plan.gate)} (distortion {cell(was)}), and is now "
            f"judged {_told(now)} (distortion {cell(is_now)})"
        ),
        subject=f"plan {opened.path}",
        value=None,
        value_reason="not a number",
        limit=None,
        advice="Another device may round otherwise; run `mergekit-collapse check --plan` here.",
    )
    verdict = Verdict("refuse", MergeRefusedError.exit_code, (*now.reasons, reason))
    return replace(report, verdict=verdict)


def _told(verdict: Verdict) -> str:
    subjects = ", ".join(f"{reason.rule} of {reason.subject}" for reason in verdict.reasons)
    return f"{verdict.decision} for {subjects}" if subjects else verdict.decision


def _knowingly_over(report: Report) -> bool:
    """Whether ``goal: protect`` is what leaves experts over the limit of distortion."""
    block = report.recipe.compat
    protects = block.on_violation == "reweight" and block.reweight.goal == "protect"
    return protects and all(reason.rule == "distortion" for reason in report.verdict.reasons)


def _refusal(opened: OpenedPlan) -> Iterator[str]:
    plan, path = opened.plan, opened.path
    yield f"REFUSED when the plan was made: {path} plans no merge"
    yield from (f"  - {printable(str(reason))}" for reason in plan.verdict.reasons)
    written = printable(plan.recipe.path)
    yield f"Mend {written}, and run `mergekit-collapse check {written} --plan {path}` again"


def _changed(opened: OpenedPlan, changes: list[str]) -> Iterator[str]:
    plan, path = opened.plan, opened.path
    count = "1 thing is" if len(changes) == 1 else f"{len(changes)} things are"
    yield f"{path}: {count} not as the plan has it, and nothing was merged:"
    yield from (f"  - {change}" for change in changes)
    written = printable(plan.recipe.path)
    where = printable(plan.recipe.working_directory)
    here = "" if os.path.realpath(where) == os.getcwd() else f" in {where}"
    yield (
        f"Undo the changes, or run `mergekit-collapse check {written} --plan {path}` again{here}"
    )
