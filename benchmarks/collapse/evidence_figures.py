"""The figures of docs/evidence.md, as SVG that comes out the same every time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from merge_rows import MergeRow, column
from signal_quality import Quality

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mergekit-collapse",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

COLOURS = {
    "natural": "#4477aa",
    "seed": "#66ccee",
    "long": "#777777",
    "full": "#228833",
    "conflict apart": "#ccbb44",
    "conflict": "#ee6677",
    "hot": "#aa3377",
}


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, saved without a date; whatever settings the reader has."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_signals(
    parts: Mapping[str, Sequence[Quality | None]], names: Mapping[str, str], path: Path
) -> None:
    """AUROC of each signal with its interval, one colour for each part of the merges."""
    with drawn(path, 7, 0.28 * len(names) + 1) as figure:
        axes = figure.subplots()
        places = {name: -i for i, name in enumerate(names)}
        for offset, (part, found) in enumerate(parts.items()):
            known = [q for q in found if q is not None]
            y = [places[q.name] - 0.22 * offset for q in known]
            values = [q.auroc.value for q in known]
            low = [
                v - (q.auroc.interval.low if q.auroc.interval else v)
                for v, q in zip(values, known, strict=True)
            ]
            high = [
                (q.auroc.interval.high if q.auroc.interval else v) - v
                for v, q in zip(values, known, strict=True)
            ]
            axes.errorbar(values, y, xerr=[low, high], fmt="o", ms=3, lw=1, label=part)
        axes.axvline(0.5, color="#999999", lw=0.8)
        axes.set_yticks(list(places.values()), list(names.values()))
        axes.set_xlabel("AUROC: chance that a merge that collapsed has the higher signal")
        axes.set_xlim(0, 1.02)
        axes.legend(loc="lower left", frameon=False)


def draw_losses(rows: Sequence[MergeRow], names: Mapping[str, str], path: Path) -> None:
    """The worst task's loss against some signals."""
    with drawn(path, 3.4 * len(names), 3.2) as figure:
        every = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        worst = np.array([r.worst for r in rows])
        for axes, (name, label) in zip(every, names.items(), strict=True):
            for make, colour in COLOURS.items():
                mine = np.array([r.makes == make for r in rows])
                axes.plot(
                    column(rows, name)[mine],
                    worst[mine],
                    "o",
                    ms=2.5,
                    alpha=0.6,
                    color=colour,
                    label=make,
                )
            axes.set_xscale("log")
            axes.axhline(-20, color="#999999", lw=0.8)
            axes.set_xlabel(label)
        every[0].set_ylabel("loss of the worst task, percent")
        every[0].legend(frameon=False, fontsize=7)


def draw_nonlinearity(layers: Sequence[int], parts: Mapping[str, np.ndarray], path: Path) -> None:
    """Median and middle 80 % over merges of the distance from linearity after each layer."""
    with drawn(path, 5.5, 3) as figure:
        axes = figure.subplots()
        for label, values in parts.items():
            low, middle, high = np.percentile(values, [10, 50, 90], axis=0)
            axes.plot(layers, middle, "o-", ms=3, label=label)
            axes.fill_between(layers, low, high, alpha=0.2)
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.set_ylabel("share of the displacement")
        axes.legend(frameon=False)
