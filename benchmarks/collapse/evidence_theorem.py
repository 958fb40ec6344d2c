"""What the bounds are worth: measured distortions of real merges against r² and predictions."""

from collections.abc import Iterator, Sequence

import numpy as np
from merge_rows import MergeRow, column, numbers, read_table

WIDTH = 576
"""Features of a state."""


def of_different_tasks(rows: Sequence[MergeRow]) -> list[MergeRow]:
    """Where two members share their prompts, r² counts these twice and the measurement once."""
    return [row for row in rows if len(row.families) == len(row.members)]


def lower_bound(rows: Sequence[MergeRow]) -> tuple[int, np.ndarray]:
    """How many merges have a worst distortion below r², and by merge how many times r² it is."""
    over = column(rows, "measured.hidden_pooled") / column(rows, "hidden32.ball")
    return int((over < 1 - 1e-3).sum()), over


def theorem(rows: Sequence[MergeRow]) -> Iterator[str]:
    """Bounds, predictions and cross-task linearity, layer by layer."""
    rows = of_different_tasks(rows)
    below, over = lower_bound(rows)
    yield (
        f"**The lower bound.** Of {len(rows)} merges of different tasks by"
        f" {len({r.method for r in rows})} methods, {below} have a worst distortion below r² on the"
        f" same probes. It is {_quantiles(over)} times r² (median, and the middle 80 %)."
    )
    yield ""
    yield (
        "The upper bounds promise a merge whose worst distortion is at most Δ² d / (2 (d + 1))"
        " (Corollary 1) and Δ² (N − 1) / (2 N) (Jung), if states mix as parameters do; not that it"
        " is this one."
    )
    yield ""
    yield (
        "| method | merges | worst distortion / r² | / predicted for equal weights"
        " | under Corollary 1 | under Jung |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for method in dict.fromkeys(r.method for r in rows):
        mine = [r for r in rows if r.method == method]
        real = column(mine, "measured.hidden_pooled")
        alike = method in ("linear", "slerp", "karcher", "weighted_karcher")
        foretold = _quantiles(real / column(mine, "hidden32.predicted")) if alike else ""
        ratio = _quantiles(real / column(mine, "hidden32.ball"))
        diameter = column(mine, "hidden32.diameter")
        count = np.array([len(r.members) for r in mine])
        corollary = (real <= diameter * WIDTH / (2 * (WIDTH + 1))).mean()
        jung = (real <= diameter * (count - 1) / (2 * count)).mean()
        cells = f"{ratio} | {foretold} | {corollary:.0%} | {jung:.0%}"
        yield f"| `{method}` | {len(mine)} | {cells} |"
    yield ""
    yield from _layers()


def linearity() -> tuple[list[int], dict[str, np.ndarray]]:
    """Layers, and by method a row a merge with the share of each layer."""
    table = read_table("nonlinearity.csv")
    layers = sorted(int(k.removeprefix("layer")) for k in table[0] if k.startswith("layer"))
    parts = {}
    for method in ("linear", "task_arithmetic"):
        mine = [numbers(r, ["members", "method"]) for r in table if r["method"] == method]
        label = f"{method} ({len(mine)} merges)"
        parts[label] = np.array([[r[f"layer{k}"] for k in layers] for r in mine])
    return layers, parts


def _layers() -> Iterator[str]:
    layers, parts = linearity()
    yield (
        "**Cross-task linearity.** How far a merge's states are from the same mixture of its"
        " experts' states, which the upper bounds take to be 0, as a share of how far that mixture"
        " is from the experts: E‖h − Σ α h‖² / mean of E‖hᵢ − Σ α h‖²."
    )
    yield ""
    yield "![Distance from linearity by layer](evidence/linearity.svg)"
    yield ""
    yield f"| merges | {' | '.join(f'layer {k}' for k in layers[::4] + layers[-1:])} |"
    yield f"| --- |{' ---: |' * len(layers[::4] + layers[-1:])}"
    for label, values in parts.items():
        shown = [values[:, layers.index(k)] for k in layers[::4] + layers[-1:]]
        yield f"| {label} | {' | '.join(_quantiles(v) for v in shown)} |"
    yield ""


def _quantiles(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values[np.isfinite(values)], [10, 50, 90])
    return f"{middle:.2g} ({low:.2g} to {high:.2g})"
