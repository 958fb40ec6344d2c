"""The numbers in a report that a limit can be set on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.geometry.merging_difficulty import INFINITE
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
from mergekit_collapse.recipe.values import SpaceName
from mergekit_collapse.report.stored import NOT_GIVEN, Part
from mergekit_collapse.report.stored_report import SPACES, StoredReport

# The number, infinite for a score that is over every limit; or why there is none.
Reading = float | str
Read = Callable[[StoredReport], Reading]
_MEASURES = "no model was measured there"


@dataclass(frozen=True)
class Signal:
    """One number of a merge; higher is worse.

    Attributes:
        name: of the space, then words of the block: what the limit is on.
        space: where it is measured.
        before: whether it is known before anything is merged.
        default: the limit of a block with tasks, without which no merge has a loss; None where that
            is switched off.
        block: the lines under ``compat:`` that make it alone decide, ``{limit}`` standing for
            the number.
        read: it, out of a report.
    """

    name: str
    space: SpaceName
    before: bool
    default: float | None
    block: str
    read: Read

    def lines(self, limit: float) -> str:
        """The block with a limit, as YAML reads numbers: with a point and no exponent."""
        number = np.format_float_positional(limit, trim="0")
        return self.block.replace("{limit}", number)


def _signals() -> Iterator[Signal]:
    budget, limit = BudgetBlock(), EvaluateBlock().max_distortion
    for space in SPACES:
        for over, rule, key in (
            ("pooled", "ball", "ball_radius_squared"),
            ("pooled", "corollary", "corollary"),
            ("pooled", "weights", "predicted_distortion"),
            ("own_task", "ball", "own_task_minimax"),
            ("own_task", "weights", "own_task_predicted_worst"),
        ):
            yield Signal(
                f"{space}.{rule}" if over == "pooled" else f"{space}.{over}.{rule}",
                space,
                True,
                budget.distortion,
                f"budget: {{distortion: {{limit}}, rule: {rule}, over: {over}, space: {space}, "
                "mds: null}",
                _geometry(space, key),
            )
        for reading in ("unrelated", "group_max", "group_minmax"):
            yield Signal(
                f"{space}.mds.{reading}",
                space,
                True,
                budget.mds,
                f"budget: {{mds: {{limit}}, similarity: {reading}, space: {space}, "
                "distortion: null}",
                _mds(space, reading),
            )
        for over, key in (("pooled", "worst"), ("own_task", "own_task_worst")):
            yield Signal(
                f"{space}.measured" if over == "pooled" else f"{space}.{over}.measured",
                space,
                False,
                limit,
                f"budget: {{over: {over}, space: {space}}}\n"
                "evaluate: {max_distortion: {limit}}",
                _measured(space, key),
            )


def _geometry(space: SpaceName, key: str) -> Read:
    def read(report: StoredReport) -> Reading:
        geometry = getattr(report.geometry, space)
        if geometry is None:
            return report.geometry.why(space)
        return _worst(geometry.bounds if key == "corollary" else geometry, key)

    return read


def _mds(space: SpaceName, reading: str) -> Read:
    def read(report: StoredReport) -> Reading:
        values = report.mds.get(space, {}).get(reading)
        if not values:
            return NOT_GIVEN
        reasons = report.mds[space].get(f"{reading}_reason", (None,) * len(values))
        if why := [r for v, r in zip(values, reasons, strict=True) if v is None and r != INFINITE]:
            return str(why[0] or NOT_GIVEN)
        return max(np.inf if value is None else float(value) for value in values)

    return read


def _measured(space: SpaceName, key: str) -> Read:
    """Of the finished model, else of one that was watched or rehearsed."""

    def read(report: StoredReport) -> Reading:
        for _, found in report.evaluations:
            if (measured := found.space(space)) is not None:
                return _worst(measured, key)
        return _MEASURES

    return read


def _worst(part: Part, key: str) -> Reading:
    """A number, or the largest of a list in which none is missing."""
    found = getattr(part, key)
    values = found if isinstance(found, tuple) else (found,)
    if not values or None in values:
        return part.why(key)
    return max(float(value) for value in values)


SIGNALS: tuple[Signal, ...] = tuple(_signals())
