"""A stored report as a whole: its parts, and that they are all about the same experts."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from mergekit_collapse.report.stored import (
    NOT_GIVEN,
    Number,
    Part,
    StoredBudget,
    StoredCoefficients,
    StoredExpert,
    StoredPlan,
    StoredProbes,
    StoredRecipe,
    StoredVerdict,
    StoredWarning,
)
from mergekit_collapse.report.stored_evaluation import StoredEvaluation, StoredParameters
from mergekit_collapse.report.stored_geometry import StoredGeometry, StoredGrouping
from mergekit_collapse.report.stored_remedy import StoredRemedy

# Ordering and mapping take N³; a merge has two to a few dozen.
MOST_EXPERTS = 500

SpaceName = Literal["hidden", "predictive"]
SPACES: tuple[SpaceName, SpaceName] = ("hidden", "predictive")


class StoredSpaces(Part):
    """The spaces that were measured."""

    hidden: StoredGeometry | None = None
    predictive: StoredGeometry | None = None


class StoredReport(Part):
    """A ``report.json``. A key that is missing reads as one that says nothing.

    Raises:
        pydantic.ValidationError: a value has the wrong type, or a list is not as long as there
            are experts, or an index is of none of them.
    """

    format_version: Annotated[int, Strict(), Field(ge=1)]
    verdict: StoredVerdict
    gate: StoredVerdict | None = None
    hint: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    timing: dict[str, Number] = Field(default_factory=dict)
    budget: StoredBudget = StoredBudget()
    recipe: StoredRecipe = StoredRecipe()
    plan: StoredPlan | None = None
    experts: Annotated[tuple[StoredExpert, ...], Field(max_length=MOST_EXPERTS)]
    base: str | None = None
    coefficients: StoredCoefficients | None = None
    warnings: tuple[StoredWarning, ...] = ()
    probes: StoredProbes | None = None
    forward: dict[str, Any] | None = None
    geometry: StoredSpaces = StoredSpaces()
    mds: dict[str, dict[str, tuple[Number | str | None, ...]]] = Field(default_factory=dict)
    groups: tuple[StoredGrouping, ...] = ()
    remedy: StoredRemedy | None = None
    rehearsal: StoredEvaluation | None = None
    monitor: StoredEvaluation | None = None
    evaluation: StoredEvaluation | None = None
    parameters: StoredParameters | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the experts, in the order of the recipe."""
        return tuple(expert.name for expert in self.experts)

    @property
    def spaces(self) -> tuple[tuple[SpaceName, StoredGeometry], ...]:
        """Those that were measured, the deciding one first."""
        found = [(n, g) for n in SPACES if (g := getattr(self.geometry, n)) is not None]
        return tuple(sorted(found, key=lambda pair: pair[0] != self.budget.space))

    @property
    def deciding(self) -> StoredGeometry | None:
        """The space that the budget names."""
        return dict(self.spaces).get(self.budget.space)  # type: ignore[call-overload,no-any-return]

    @property
    def evaluations(self) -> tuple[tuple[str, StoredEvaluation], ...]:
        """What was measured of a merged model, the finished one first."""
        found = {key: getattr(self, key) for key in ("evaluation", "monitor", "rehearsal")}
        return tuple((key, one) for key, one in found.items() if one is not None)

    def scores(self, space: str) -> tuple[tuple[float | None, str], ...]:
        """MDS of every expert in the reading that decides, each with the reason where it is None.

        Empty where the report has none.
        """
        reading = self.budget.similarity
        found: dict[str, Any] = self.mds.get(space, {})
        values = found.get(reading, ())
        reasons = found.get(f"{reading}_reason", (None,) * len(values))
        return tuple((v, r or NOT_GIVEN) for v, r in zip(values, reasons, strict=True))

    @model_validator(mode="after")
    def _about_the_same_experts(self) -> "StoredReport":
        if problem := next(_misfits(self), None):
            raise ValueError(problem)
        return self


def _misfits(report: StoredReport) -> Iterator[str]:
    """Lists of another length than there are experts, and indices of none of them."""
    count = len(report.experts)
    for name, geometry in report.spaces:
        where = f"geometry.{name}"
        if count < 2:
            yield f"{where}: distances between {count} experts"
        yield from _square(f"{where}.squared_distance", geometry.squared_distance, count)
        yield from _long(f"{where}.center", geometry.center, (count,))
        yield from _long(f"{where}.predicted_distortion", geometry.predicted_distortion, (count,))
        yield from _indices(f"{where}.diameter_pair", geometry.diameter_pair or (), count)
        if geometry.to_base is not None:
            to_base = geometry.to_base.squared_distance
            yield from _long(f"{where}.to_base.squared_distance", to_base, (count,))
        for task, own in geometry.own_task.items():
            place = f"{where}.own_task.{task}"
            yield from _indices(f"{place}.owner", () if own.owner is None else (own.owner,), count)
            if own.squared_distance is not None:
                yield from _square(f"{place}.squared_distance", own.squared_distance, count)
        for reading, intervals in geometry.confidence.mds.items():
            yield from _long(f"{where}.confidence.mds.{reading}", intervals, (count,))
    if report.coefficients is not None:
        yield from _long("coefficients.alpha", report.coefficients.alpha, (count, count + 1))
    for space, readings in report.mds.items():
        yield from _scores(f"mds.{space}", readings, count)
    for point in report.groups:
        members = [index for group in point.groups for index in group]
        yield from _indices(f"groups (k = {point.k})", members, count)
    if report.parameters is not None:
        for metric, pairs in report.parameters.metrics().items():
            yield from _square(f"parameters.{metric}", pairs, count)
    for key, evaluation in report.evaluations:
        yield from _evaluation(key, evaluation, count)


def _evaluation(key: str, evaluation: StoredEvaluation, count: int) -> Iterator[str]:
    for space in SPACES:
        measured = evaluation.space(space)
        if measured is None:
            continue
        yield from _long(f"{key}.{space}.distortion", measured.distortion, (0, count))
        predicted = measured.predicted_distortion
        yield from _long(f"{key}.{space}.predicted_distortion", predicted, (count,))
        owners = [own.owner for own in measured.own_task.values() if own.owner is not None]
        yield from _indices(f"{key}.{space}.own_task", owners, count)
    for layer in evaluation.layers:
        where = f"{key}.layers (layer {layer.layer}).distortion"
        yield from _long(where, layer.distortion, (0, count))
    owners = [task.owner for task in evaluation.tasks if task.owner is not None]
    yield from _indices(f"{key}.tasks", owners, count)


def _long(where: str, values: Sequence[Any] | None, allowed: tuple[int, ...]) -> Iterator[str]:
    if values is not None and len(values) not in allowed:
        yield f"{where}: {len(values)} entries for {allowed[-1]}"


def _square(where: str, matrix: Sequence[Sequence[Any]], count: int) -> Iterator[str]:
    if len(matrix) != count or any(len(row) != count for row in matrix):
        yield f"{where}: not {count} rows of {count} numbers for {count} experts"


def _indices(where: str, indices: Sequence[int], count: int) -> Iterator[str]:
    if wrong := [index for index in indices if index >= count]:
        yield f"{where}: names expert {wrong[0] + 1} of {count}"


def _scores(where: str, readings: dict[str, Any], count: int) -> Iterator[str]:
    """``mds`` holds lists of numbers and lists of reasons side by side."""
    for reading, values in readings.items():
        kind = str if reading.endswith("_reason") else float
        if len(values) != count or any(not isinstance(v, kind) for v in values if v is not None):
            yield f"{where}.{reading}: not {count} entries, one for each expert"
