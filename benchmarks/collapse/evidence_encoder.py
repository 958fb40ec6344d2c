"""The encoder's merges, with the quality that the other signals are given."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from encoder_summary import Outcome, by_merge, read_tables
from evidence_signals import shown
from merge_rows import RESULTS
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
    outcomes, values = read_tables(RESULTS)
    merges: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        merges[one.members, one.method].append(one)
    sets = [tuple(members.split("+")) for members, _ in merges]
    worst = np.array([min(one.loss for one in each) for each in merges.values()])
    yield (
        f"{len(merges)} merges of {len(set(sets))} sets; {(worst < -20).sum()} lost more than 20 %"
        " on a task."
    )
    yield ""
    yield "| signal | merges | AUROC, beyond 20 % | Spearman |"
    yield "| --- | ---: | ---: | ---: |"
    for name, label in SIGNALS.items():
        told = [next(by_merge(each, values, name), (np.nan,)) for each in merges.values()]
        score = np.array([largest for largest, *_ in told])
        families = [frozenset(e.partition("-")[0] for e in members) for members in sets]
        found = quality_of(Told(score, worst, sets, families), name, 20.0)
        if found is not None:
            cells = str(found.rows), shown(found.auroc), shown(found.spearman)
            yield f"| {label} | {' | '.join(cells)} |"
    yield ""
