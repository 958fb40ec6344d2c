"""What the zoo is, and what became of its merges."""

from collections.abc import Iterator, Sequence

import numpy as np
from evidence_words import CUT
from merge_rows import MergeRow, read_table
from merged_sets import every_merge, merges
from rows import HELD_OUT

MAKES = {
    "natural": "adapters of different tasks, trained alike",
    "seed": "two of the same task, or another learning rate",
    "long": "one or more adapters trained longer and at three times the rate",
    "full": "full fine-tunes, or one and an adapter",
    "conflict apart": "one with contradicting answers, and a task that it does not contradict",
    "conflict": "two that give the same prompts contradicting answers, and perhaps others",
    "hot": "one or more trained far from the base",
}


def outcome_tables(rows: Sequence[MergeRow]) -> Iterator[str]:
    """Counts of merges and of collapses, by make and by method."""
    yield f"{len(rows)} merges of {len({r.members for r in rows})} sets of experts."
    yield ""
    yield from _counts("members", {v: [r for r in rows if r.makes == k] for k, v in MAKES.items()})
    metrics = {
        "accuracy of all tasks": [r for r in rows if r.metric == "accuracy"],
        "likelihood of one task or more": [r for r in rows if r.metric == "likelihood"],
    }
    yield from _counts("score", metrics)
    methods = list(dict.fromkeys(r.method for r in rows))
    yield from _counts("method", {f"`{m}`": [r for r in rows if r.method == m] for m in methods})
    yield from _counts(
        "size",
        {str(n): [r for r in rows if len(r.members) == n] for n in range(2, 9)},
    )


def cut() -> str:
    """What the benchmark leaves out."""
    return CUT.format(planned=len(every_merge()), made=len(merges()), held_out=HELD_OUT)


def experts() -> Iterator[str]:
    """Every expert, and what it and the base score on its task."""
    yield "| expert | trained | its score | the base's | guessing |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for expert in read_table("experts.csv"):
        how = f"{expert['kind']}, {expert['group']}, {float(expert['rate']):g} × {expert['steps']}"
        scores = (f"{float(expert[key]):.2f}" for key in ("own", "base", "chance"))
        yield f"| {expert['expert']} | {how} | {' | '.join(scores)} |"
    yield ""


def _counts(head: str, parts: dict[str, list[MergeRow]]) -> Iterator[str]:
    yield f"| {head} | merges | median of the worst loss | beyond 20 % | beyond 30 % |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, part in parts.items():
        if part:
            worst = np.array([r.worst for r in part])
            shares = " | ".join(f"{(worst < -limit).mean():.0%}" for limit in (20, 30))
            yield f"| {name} | {len(part)} | {np.median(worst):+.0f} % | {shares} |"
    yield ""
