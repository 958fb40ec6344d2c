"""Charts of a report as inline SVG, drawn by matplotlib where it is installed (an extra)."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from markupsafe import Markup

from mergekit_collapse.page.inline_svg import inline_svg

# Drawn in these, shown in the page's own, which differ in light and in dark.
SERIES = tuple(f"#0000{value:02x}" for value in range(1, 9))
MERGED, QUIET, LIMIT = "#000101", "#000102", "#000103"
_COLOURS = {
    **{drawn: f"var(--series-{i + 1})" for i, drawn in enumerate(SERIES)},
    MERGED: "var(--ink)",
    QUIET: "var(--rule)",
    LIMIT: "var(--limit)",
}
_DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mergekit-collapse",
    "svg.id": None,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": False,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
}
WIDTH, HEIGHT = 4.6, 2.9


def charts_available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def profile_chart(
    layers: Sequence[int],
    lines: Mapping[str, Sequence[float | None]],
    *,
    prefix: str,
    title: str,
    description: str,
    limits: Mapping[str, float] | None = None,
) -> Markup:
    """Lines over layers, each marked at its end.

    Args:
        layers: numbers of the layers, ascending.
        lines: by the mark at their end; None leaves a gap.
        prefix: of the ids.
        title, description: for those who cannot see it.
        limits: horizontal lines, by their text.
    """
    marks = {mark: placeholder(i, mark) for i, mark in enumerate(lines)}

    def draw(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        ends: list[tuple[float, int, str]] = []
        for index, (mark, values) in enumerate(lines.items()):
            known = [(x, y) for x, y in zip(layers, values, strict=True) if y is not None]
            shape = "o" if len(known) < 3 else None
            heights = [float("nan") if y is None else y for y in values]
            dashes = _DASHES[index // len(SERIES) % len(_DASHES)]
            axes.plot(
                layers, heights, color=series_colour(index), lw=1.5, ls=dashes, marker=shape, ms=4
            )
            if known:
                ends.append((known[-1][1], index, marks[mark]))
        for value in (limits or {}).values():
            axes.axhline(value, color=LIMIT, lw=1, ls="--")
        top = max([y for y, _, _ in ends] + [axes.get_ylim()[1]])
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), top)
        last = layers[-1]
        for height, index, mark in _spread(ends, axes.get_ylim()):
            axes.annotate(
                mark,
                (last, height),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=series_colour(index),
                annotation_clip=False,
            )

    texts = {token: mark for mark, token in marks.items()}
    return render(draw, prefix=prefix, title=title, description=description, texts=texts)


def groups_chart(
    radii: Mapping[int, float], limit: float | None, *, prefix: str, description: str
) -> Markup:
    """The K curve: smallest worst r² by the number of merged models."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.plot(list(radii), list(radii.values()), color=SERIES[0], marker="o", ms=5, lw=1.5)
        if limit is not None:
            axes.axhline(limit, color=LIMIT, lw=1, ls="--")
            axes.annotate(
                f"limit {limit:g}",
                (1, limit),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=LIMIT,
            )
        axes.set_xlabel("merged models, K")
        axes.set_ylabel("worst ball r²")
        axes.set_ylim(bottom=0)

    title = "Worst distortion by the number of merged models"
    return render(draw, prefix=prefix, title=title, description=description, texts={})


def render(
    draw: Callable[[Any], None],
    *,
    prefix: str,
    title: str,
    description: str,
    texts: Mapping[str, str],
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> Markup:
    """What ``draw`` puts on a figure of this size, in inches, as an element of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    # A drawing of absurd numbers may be cramped; that is nothing for the reader's terminal.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        known = {key: value for key, value in _STYLE.items() if key in matplotlib.rcParams}
        matplotlib.rcParams.update(known)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return inline_svg(
        file.getvalue(),
        prefix=prefix,
        title=title,
        description=description,
        colours=_COLOURS,
        texts=texts,
    )


def series_colour(index: int) -> str:
    """What an expert's line or point is drawn in."""
    return SERIES[index % len(SERIES)]


def placeholder(index: int, text: str) -> str:
    """As long as the text it stands for, and of letters that every font has."""
    return f"n{index}".ljust(len(text), "n")


def _spread(
    ends: Sequence[tuple[float, int, str]], span: tuple[float, float]
) -> list[tuple[float, int, str]]:
    """The marks moved apart, upwards, until none covers another."""
    gap = 0.06 * (span[1] - span[0])
    placed: list[tuple[float, int, str]] = []
    for height, index, mark in sorted(ends):
        lowest = placed[-1][0] + gap if placed else height
        placed.append((max(height, lowest), index, mark))
    return placed
