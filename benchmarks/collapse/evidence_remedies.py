"""What the actions of `on_violation` made of merges that collapsed."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from merge_rows import read_table

WHAT = {
    "reweight": "`reweight` for minimax (`rule: weights`)",
    "protect": "`reweight` to protect (`rule: weights`)",
    "drop": "`drop`",
    "substitute": "`substitute` another expert of the same task",
    "karcher": "`karcher`",
    "split": "`split`",
}


def remedies() -> Iterator[str]:
    """One row an action: how often it found something, and what that did."""
    rows = read_table("remedies.csv")
    done: Mapping[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        done[row["action"]].append(row)
    count = len({row["merge"] for row in rows})
    yield f"{count} merges whose worst task lost more than 20 %, each given to the gate with each"
    yield "action; what the gate would merge instead was merged and measured:"
    yield ""
    yield (
        "| action | changed | experts kept | worst loss before | the same before | after"
        " | still beyond 20 % |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for action, label in WHAT.items():
        mine = done.get(action, [])
        changed = [r for r in mine if r["worst_after"]]
        if not mine:
            continue
        if not changed:
            yield f"| {label} | 0 of {len(mine)} | | | | | |"
            continue
        before = np.array([float(r["worst_before"]) for r in changed])
        after = np.array([float(r["worst_after"]) for r in changed])
        kept = sum(int(r["kept"]) for r in changed) / sum(int(r["experts"]) for r in changed)
        cells = (
            f"{len(changed)} of {len(mine)}",
            f"{kept:.0%}",
            f"{np.median(before):+.0f} %",
            _median([float(r["kept_before"]) for r in changed if r["kept_before"]]),
            f"{np.median(after):+.0f} %",
            f"{(after < -20).sum()} of {len(after)}",
        )
        yield f"| {label} | {' | '.join(cells)} |"
    yield ""


def _median(values: list[float]) -> str:
    return f"{np.median(values):+.0f} %" if values else ""
