"""The encoder's merges, with the quality that the other signals are given."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from evidence_signals import shown
from merge_rows import read_table
from signal_quality import Told, quality_of

SIGNALS = {
    "hidden_r2": "r², own probes",
    "builtin_hidden_r2": "r², shipped probes",
    "hidden_mds_unrelated": "MDS `unrelated`, own probes",
    "hidden_own_predicted": "own-task distortion predicted",
    "measured_hidden_own": "own-task distortion measured",
    "measured_hidden_pooled": "distortion measured",
    "norm": "‖θ − θ₀‖",
    "base_score": "score of the base",
}


def encoder() -> Iterator[str]:
    """AUROC by merge."""
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_table("encoder_outcomes.csv"):
        losses[row["members"], row["method"]].append(float(row["loss_percent"]))
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in read_table("encoder_predictors.csv"):
        if row["value"]:
            key = row["predictor"], row["members"], row["method"]
            values[key].append(float(row["value"]))
    names = [name for name in SIGNALS if any(key[0] == name for key in values)]
    sets = [tuple(members.split("+")) for members, _ in losses]
    worst = np.array([min(each) for each in losses.values()])
    yield (
        f"{len(losses)} merges of {len(set(sets))} sets; {(worst < -20).sum()} lost more than 20 %"
        " on a task."
    )
    yield ""
    yield "| signal | merges | AUROC, beyond 20 % | Spearman |"
    yield "| --- | ---: | ---: | ---: |"
    for name in names:
        score = np.array([_largest(values, name, *key) for key in losses])
        families = [frozenset(e.partition("-")[0] for e in members) for members in sets]
        found = quality_of(Told(score, worst, sets, families), name, 20.0)
        if found is not None:
            cells = str(found.rows), shown(found.auroc), shown(found.spearman)
            yield f"| {SIGNALS[name]} | {' | '.join(cells)} |"
    yield ""


def _largest(
    values: dict[tuple[str, str, str], list[float]], name: str, members: str, method: str
) -> float:
    found = values.get((name, members, method)) or values.get((name, members, ""))
    return max(found) if found else np.nan
