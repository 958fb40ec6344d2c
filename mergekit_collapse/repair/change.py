"""What an action comes to: a changed recipe that was measured again, or that there is none."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.predicted import SUM_TOLERANCE
from mergekit_collapse.report.report import Report
from mergekit_collapse.shapes import Float64
from mergekit_collapse.verdict import Reason, concerns


class NoRemedyError(Exception):
    """The action does not bring the recipe inside its limits; the message says what was tried."""


@dataclass(frozen=True)
class Change:
    """A changed recipe.

    Attributes:
        assessment: of the changed recipe, judged like any other.
        notes: what else is to be known of the change.
        given_up: names of experts that ``goal: protect`` leaves over the limit of distortion.
    """

    assessment: Assessment
    notes: tuple[str, ...]
    given_up: tuple[str, ...] = ()

    @property
    def knowingly_over(self) -> tuple[Reason, ...]:
        """The limits that the experts given up are still over."""
        return tuple(r for r in self.assessment.report.verdict.reasons if self._is_given_up(r))

    @property
    def still_over(self) -> tuple[Reason, ...]:
        """The others, for which the change is refused."""
        return tuple(r for r in self.assessment.report.verdict.reasons if not self._is_given_up(r))

    def _is_given_up(self, reason: Reason) -> bool:
        return reason.rule == "distortion" and concerns(reason, self.given_up)


def deciding(report: Report) -> Geometry:
    """The geometry that decides, of a recipe that was refused by it."""
    assert report.deciding is not None
    return report.deciding


def usable_alpha(report: Report) -> Float64[np.ndarray, " model"] | None:
    """The recipe's α where a combination of states stands for it, which needs the sum 1."""
    alpha = None if report.coefficients is None else report.coefficients.alpha
    if alpha is None or not abs(float(alpha.sum()) - 1) <= SUM_TOLERANCE:
        return None
    return alpha


def told(reasons: Iterable[Reason]) -> str:
    """Reasons without their advice, which was for the recipe as it was written."""
    return ", ".join(
        f"{r.rule} of {r.subject} {r.value_reason if r.value is None else f'{r.value:.3g}'}"
        + (f" over {r.limit:g}" if r.limit is not None else "")
        for r in reasons
    )
