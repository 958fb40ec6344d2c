"""What becomes of a merge, and every limit that it passes."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Decision = Literal["allow", "warn", "refuse", "modified"]
Rule = Literal[
    "distortion",
    "mds",
    "max_distortion",
    "max_merging_loss",
    "max_own_distortion",
    "min_variance_ratio",
    "min_rank_ratio",
    "stop_at",
    "finite",
    "check",
    "remedy",
    "plan",
]


@dataclass(frozen=True)
class Reason:
    """One limit that is passed.

    Attributes:
        rule: the limit's key in the block: ``distortion`` or ``mds`` of the budget, one of
            ``evaluate``, ``monitor.stop_at``; or ``check`` and ``finite``, which have no key,
            ``remedy``, which says what was tried in vain, and ``plan``, which says that a planned
            recipe is judged otherwise now.
        reading: what was held against it, such as ``ball, hidden space``.
        subject: the experts or the task that it is about.
        value: the reading; None where it is no finite number, with ``value_reason``.
        limit: the recipe's; None for those without a key, which pass or fail.
        advice: what the user could do.
    """

    rule: Rule
    reading: str
    subject: str
    value: float | None
    value_reason: str | None
    limit: float | None
    advice: str

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.subject}: {self.reading}. {self.advice}"
        shown = self.value_reason if self.value is None else f"{self.value:.3g}"
        over = f"{self.rule} of {self.subject} ({self.reading}) is {shown}, limit {self.limit:g}."
        return f"{over} {self.advice}"


@dataclass(frozen=True)
class Verdict:
    """What becomes of the merge.

    Attributes:
        decision: ``warn`` where a limit is passed and the recipe only wants to be told;
            ``modified`` where the recipe was changed so that it is inside its limits.
        exit_code: of every way in.
        reasons: one for each limit that is passed; none under ``allow``, and under ``modified``
            only those that the change knowingly leaves, of experts that were given up.
    """

    decision: Decision
    exit_code: int
    reasons: tuple[Reason, ...]


ALLOW = Verdict("allow", 0, ())


def concerns(reason: Reason, experts: Collection[str]) -> bool:
    """Whether a reason is about one of these experts, by itself or on a task of its own."""
    on_tasks = tuple(f"{name} on " for name in experts)
    return reason.subject in experts or reason.subject.startswith(on_tasks)


def passed(  # noqa: PLR0917  (the fields of a reason, in their order)
    rule: Rule, reading: str, subject: str, value: float, limit: float, advice: str
) -> Reason:
    """A limit that is passed, also by what is no number."""
    if math.isfinite(value):
        return Reason(rule, reading, subject, value, None, limit, advice)
    return Reason(rule, reading, subject, None, "not a finite number", limit, advice)
