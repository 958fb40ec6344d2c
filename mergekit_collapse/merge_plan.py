"""A merge that the gate is about to make, and how it may end."""

import errno
import logging
from collections.abc import Callable
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
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.report import terminal
from mergekit_collapse.report.report import Report
from mergekit_collapse.verdict import Reason, Verdict
from mergekit_collapse.watch.watch import MergeStopped

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeCall:
    """A call of MergeKit's ``run_merge``, held back until the gate has decided."""

    merge: Callable[..., Any]
    config: MergeConfiguration
    out: Path
    options: MergeOptions
    source: str | None

    def of(self, recipe: Recipe) -> "MergeCall":
        """The same call for a recipe that was changed; MergeKit's planner rewrites what it gets."""
        return replace(self, config=recipe.config.model_copy(deep=True), source=recipe.source)

    def into(self, folder: Path) -> None:
        """Make it now.

        Raises:
            EvaluationError: MergeKit cannot.
        """
        try:
            self.merge(self.config, str(folder), self.options, self.source)
        except (CompatError, MergeStopped):
            raise
        except Exception as error:
            # Any class at all: MergeKit and what it calls have no family of their own.
            LOG.info("MergeKit's own error", exc_info=error)
            raise _failed(self.out, error) from error


@dataclass(frozen=True)
class MergePlan:
    """What is merged, and what decides on it.

    Attributes:
        assessment: what the gate found.
        rehearsal_due: whether what the watch sees decides as a rehearsal does.
        never_block: whatever limit is passed, it warns.
        keep: writes the report, and returns it with its path.
    """

    assessment: Assessment
    call: MergeCall
    rehearsal_due: bool
    never_block: bool
    keep: Callable[[Report], Report]

    @property
    def report(self) -> Report:
        """What is known before the merge."""
        return self.assessment.report

    @property
    def block(self) -> CompatBlock:
        """Of the recipe."""
        return self.report.recipe.compat

    @property
    def gate_warns(self) -> bool:
        """Whether what is passed before the merge only warns."""
        return self.never_block or self.block.on_violation == "warn"


def ended(error: type[MergeRefusedError | MergeRejectedError], report: Report) -> CompatError:
    """The error that ends a merge, as every way in shows it."""
    return error(terminal.ending(report), report)


def worse(before: Verdict, after: Verdict) -> Verdict:
    """The verdict on the merged model, and what was only warned of before, if that is all."""
    if after.decision == "refuse":
        return after  # the gate's own is in the report beside it
    lasting = before if before.decision == "warn" else after
    return replace(lasting, reasons=(*before.reasons, *after.reasons))


def unevaluated(report: Report, error: CompatError) -> Report:
    """The report of a merge that ended with an error."""
    advice = "Mend what it names, and merge again."
    reason = Reason("check", str(error), "merge", None, "it ended with an error", None, advice)
    verdict = Verdict("refuse", error.exit_code, (*report.verdict.reasons, reason))
    return replace(report, verdict=verdict)


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
