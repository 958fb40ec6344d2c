"""The map of the experts as a drawing."""

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from mergekit_collapse.page.charts import (
    LIMIT,
    MERGED,
    WIDTH,
    placeholder,
    render,
    series_colour,
)
from mergekit_collapse.page.plane_map import Place, PlaneMap

_HEIGHT = 3.9
_MARKERS = {"base": ("s", "none"), "merged": ("D", MERGED), "predicted": ("X", "none")}
_MARGIN = 0.14
# A label in points: width of a letter, height of a line, and where it can stand by its point.
_LETTER, _LINE = 4.9, 10.5
_SIDES = (("left", 7, 4), ("right", -7, 4), ("left", 7, -9), ("right", -7, -9), ("left", 7, 14))

Box = tuple[float, float, float, float]


def map_chart(plane: PlaneMap, labels: Sequence[str], *, prefix: str, kind: str) -> Markup:
    """Experts, what is known by its distances to them, and the ball.

    Args:
        plane: the places.
        labels: of the experts.
        prefix: of the ids.
        kind: the name of the space.
    """
    texts = {placeholder(i, label): label for i, label in enumerate(labels)}
    disc = ""
    if plane.center is not None:
        disc = f" The dashed circle is the ball, r = {plane.radius:.3g}."
    others = "".join(f" {name.capitalize()} is marked too." for name in plane.others)
    return render(
        lambda figure: _draw(figure, plane, list(texts)),
        prefix=prefix,
        title=f"Map of the experts, {kind} space",
        description=(
            f"{len(labels)} experts in two dimensions, which keep {plane.kept:.0%} of the squared "
            f"distance between them.{disc}{others} The table beside it has the numbers."
        ),
        texts=texts,
        size=(WIDTH, _HEIGHT),
    )


def _draw(figure: Any, plane: PlaneMap, labels: Sequence[str]) -> None:
    from matplotlib.patches import Circle

    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7.5)
    center, radius = plane.center, plane.radius
    if center is not None:
        rim = Circle((center.x, center.y), radius, fill=False, ec=LIMIT, lw=1, ls="--")
        axes.add_patch(rim)
        axes.plot(center.x, center.y, marker="+", color=LIMIT, ms=7, ls="")
    points: list[tuple[Place, str]] = []
    for index, (place, label) in enumerate(zip(plane.experts, labels, strict=True)):
        axes.plot(place.x, place.y, marker="o", ms=6, color=series_colour(index), ls="")
        points.append((place, label))
    for name, place in plane.others.items():
        marker, face = _MARKERS.get(name, ("D", "none"))
        axes.plot(place.x, place.y, marker=marker, ms=6, mfc=face, mec=MERGED, ls="")
        points.append((place, name))
    xs, ys = zip(*((place.x, place.y) for place, _ in points), strict=True)
    if center is not None:
        xs += (center.x - radius, center.x + radius)
        ys += (center.y - radius, center.y + radius)
    span = max(max(xs) - min(xs), max(ys) - min(ys)) * (1 + _MARGIN) or 1.0
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    axes.set_xlim(middle[0] - span / 2, middle[0] + span / 2)
    axes.set_ylim(middle[1] - span / 2, middle[1] + span / 2)
    unit = 72 * min(WIDTH, _HEIGHT) * 0.9 / span  # points of the page by unit of √D²
    for (place, text), side in zip(points, _sides(points, unit), strict=True):
        align, right, up = side
        axes.annotate(
            text, (place.x, place.y), xytext=(right, up), textcoords="offset points", ha=align
        )


def _sides(points: Sequence[tuple[Place, str]], unit: float) -> Iterator[tuple[str, int, int]]:
    """For each label the first side where it covers least of the points and of other labels."""
    taken = [
        (place.x * unit - 3, place.y * unit - 3, place.x * unit + 3, place.y * unit + 3)
        for place, _ in points
    ]
    for place, text in points:
        boxes = {side: _box(place, text, side, unit) for side in _SIDES}
        best = min(_SIDES, key=lambda side: sum(_shared(boxes[side], box) for box in taken))
        taken.append(boxes[best])
        yield best


def _box(place: Place, text: str, side: tuple[str, int, int], unit: float) -> Box:
    align, right, up = side
    width = _LETTER * len(text)
    left = place.x * unit + right - (width if align == "right" else 0)
    bottom = place.y * unit + up
    return left, bottom, left + width, bottom + _LINE


def _shared(one: Box, other: Box) -> float:
    """Area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
