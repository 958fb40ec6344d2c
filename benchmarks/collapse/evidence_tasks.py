"""Signals of one expert, against what its own task lost."""

from collections.abc import Iterator, Sequence

from evidence_signals import shown
from merge_rows import MergeRow
from signal_quality import quality_by_task

SIGNALS = {
    "gate.mds_unrelated": "MDS `unrelated`",
    "gate.mds_group_max": "MDS `group_max`",
    "gate.mds_group_minmax": "MDS `group_minmax`",
    "gate.predicted": "distortion predicted for equal weights",
    "gate.own": "own-task distortion predicted",
    "predictive.own": "the same, predictive",
    "last_token.own": "the same, last token",
    "base_score": "score of the base on the task",
    "largest_norm": "‖θ − θ₀‖",
    "measured.hidden_own": "own-task distortion measured",
    "measured.predictive_own": "the same, predictive",
    "measured.last_token_own": "the same, last token",
}


def task_table(rows: Sequence[MergeRow]) -> Iterator[str]:
    """The paper's question: does an expert's own score tell whether its own task collapses?"""
    yield "| signal of the expert | rows | AUROC, beyond 20 % | without a task | Spearman |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, label in SIGNALS.items():
        found = quality_by_task(rows, name, 20.0)
        if found is None:
            yield f"| {label} | too few have it | | | |"
            continue
        left = found.without_a_task
        cells = (
            str(found.rows),
            shown(found.auroc),
            f"{left.low:.2f} to {left.high:.2f}",
            shown(found.spearman),
        )
        yield f"| {label} | {' | '.join(cells)} |"
    yield ""
