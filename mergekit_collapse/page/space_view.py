"""One space as tables and a map: distances, experts, predicted against measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mergekit_collapse.page.map_chart import map_chart
from mergekit_collapse.page.numerals import short, three
from mergekit_collapse.page.palette import STEPS, step
from mergekit_collapse.page.plane_map import PlaneMap, plane_map
from mergekit_collapse.page.seriation import order_by_similarity
from mergekit_collapse.report.stored_geometry import StoredGeometry
from mergekit_collapse.report.stored_report import SpaceName, StoredReport

# In variance units, and on the sphere of answers, two that have nothing in common are at 2.
UNRELATED = 2.0
# The names of more experts would hide the map; the table beside it has them.
NAMED = 6


@dataclass(frozen=True)
class HeatCell:
    """D² of one pair, and its shade."""

    text: str
    shade: int
    itself: bool


@dataclass(frozen=True)
class MeasuredRow:
    """One expert's distortion: as predicted, and as measured on a merged model."""

    expert: int
    predicted: float | None
    predicted_reason: str
    measured: float | None
    measured_reason: str


@dataclass(frozen=True)
class SpaceView:
    """All that the page shows of one space.

    Attributes:
        order: experts by similarity.
        cells: D², rows and columns in that order.
        top: D² of the darkest shade.
        legend: D² at which each shade begins.
        measured_by: name of the evaluation that the measured numbers are from, or empty.
        widest: the longest bar, in the units of D².
    """

    name: SpaceName
    geometry: StoredGeometry
    decides: bool
    order: tuple[int, ...]
    cells: tuple[tuple[HeatCell, ...], ...]
    top: float
    legend: tuple[str, ...]
    plane: PlaneMap
    chart: Markup | None
    rows: tuple[MeasuredRow, ...]
    measured_by: str
    widest: float


def space_view(
    report: StoredReport, name: SpaceName, geometry: StoredGeometry, *, charts: bool
) -> SpaceView:
    """Tables and map of one space; the map as a drawing too, where there are charts."""
    squared = np.array(geometry.squared_distance, dtype=np.float64)
    order = order_by_similarity(squared)
    natural = name == "predictive" or geometry.scale in ("variance", "unit")
    top = UNRELATED if natural else float(squared.max())
    plane = _plane(report, name, geometry, squared)
    labels = [str(i + 1) for i in range(len(order))]
    if len(labels) <= NAMED:
        labels = [f"{i + 1} {short(expert, 18)}" for i, expert in enumerate(report.names)]
    rows, measured_by = _rows(report, name, geometry)
    numbers = [n for row in rows for n in (row.predicted, row.measured) if n is not None]
    ball = geometry.ball_radius_squared
    return SpaceView(
        name=name,
        geometry=geometry,
        decides=name == report.budget.space,
        order=order,
        cells=_cells(squared, order, top),
        top=top,
        legend=tuple(three(top * (i / STEPS) ** 2) for i in range(STEPS)),
        plane=plane,
        chart=map_chart(plane, labels, prefix=f"map-{name}", kind=name) if charts else None,
        rows=rows,
        measured_by=measured_by,
        widest=max([*numbers, ball]) or 1.0,
    )


def _cells(
    squared: np.ndarray, order: Sequence[int], top: float
) -> tuple[tuple[HeatCell, ...], ...]:
    return tuple(
        tuple(
            HeatCell(three(value := float(squared[i, j])), step(value, top), i == j) for j in order
        )
        for i in order
    )


def _plane(
    report: StoredReport, name: SpaceName, geometry: StoredGeometry, squared: np.ndarray
) -> PlaneMap:
    others: dict[str, Sequence[float]] = {}
    if geometry.to_base is not None and geometry.to_base.squared_distance is not None:
        others["base"] = geometry.to_base.squared_distance
    for _, evaluation in report.evaluations:
        found = evaluation.space(name)
        known = [d for d in found.distortion if d is not None] if found is not None else []
        if known and len(known) == len(squared):
            others["merged"] = known
            break
    if geometry.predicted_distortion is not None:
        predicted = [d for d in geometry.predicted_distortion if d is not None]
        if len(predicted) == len(squared):
            others["predicted"] = predicted
    return plane_map(squared, others, geometry.center, geometry.ball_radius_squared)


def _rows(
    report: StoredReport, name: SpaceName, geometry: StoredGeometry
) -> tuple[tuple[MeasuredRow, ...], str]:
    """Predicted from the geometry; measured by the last that measured this space."""
    evaluations = [(k, e.space(name)) for k, e in report.evaluations]
    key, measured = next(((k, m) for k, m in evaluations if m and m.distortion), ("", None))
    rows = []
    for index in range(len(report.experts)):
        predicted = geometry.predicted_distortion
        value = measured.distortion[index] if measured is not None else None
        rows.append(
            MeasuredRow(
                index,
                predicted[index] if predicted is not None else None,
                geometry.why("predicted_distortion", index),
                value,
                measured.why("distortion", index) if measured is not None else "",
            )
        )
    return tuple(rows), key
