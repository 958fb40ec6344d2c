"""A merge that the gate is about to make, and how it may end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.errors import CompatError, MergeRefusedError, MergeRejectedError
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.report import terminal
from mergekit_collapse.report.report import Report
from mergekit_collapse.verdict import Verdict

NOTHING_MERGED = "every slice has one source, so no two models are merged"


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
    """What was passed before the merge is still to be read after it."""
    return replace(after, reasons=(*before.reasons, *after.reasons))
