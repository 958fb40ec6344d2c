"""Write docs/evidence.md and its figures from the committed tables.

python benchmarks/collapse/evidence.py
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from evidence_costs import costs
from evidence_encoder import encoder
from evidence_figures import draw_losses, draw_nonlinearity, draw_signals
from evidence_outcomes import cut, experts, outcome_tables
from evidence_remedies import remedies
from evidence_rules import by_radius, default_table, rule_tables
from evidence_signals import signal_tables
from evidence_summary import summary
from evidence_tasks import task_table
from evidence_theorem import linearity, theorem
from evidence_words import COSTS, ENCODER, MERGES, OPENING, REMEDIES, RULES, SIGNALS, TASKS, UNSEEN
from merge_rows import RESULTS, MergeRow, merge_rows
from signal_names import BEFORE, REHEARSED, RIVALS
from signal_quality import quality

DOCUMENT = Path(__file__).parents[2] / "docs" / "evidence.md"
DRAWN = {
    "gate.ball": "r², hidden, own and shipped probes",
    "measured.predictive_own": "own-task distortion, predictive, measured",
}


def draw(rows: Sequence[MergeRow], folder: Path) -> None:
    """The figures that the document shows."""
    seen = [row for row in rows if not row.unseen]
    names = {**BEFORE, **REHEARSED, **RIVALS}
    found = [q for name in names if (q := quality(seen, name, 20.0)) is not None]
    draw_signals(
        {"seen tasks": found}, {q.name: names[q.name] for q in found}, folder / "signals.svg"
    )
    draw_losses(seen, DRAWN, folder / "losses.svg")
    draw_nonlinearity(*linearity(), folder / "linearity.svg")


def document(rows: Sequence[MergeRow]) -> Iterator[str]:
    """The lines of the document."""
    seen = [row for row in rows if not row.unseen]
    yield OPENING
    yield from summary(rows)
    yield ""
    yield MERGES
    yield from outcome_tables(rows)
    yield SIGNALS
    yield from signal_tables(seen)
    yield COSTS
    yield from costs()
    yield TASKS
    yield from task_table(seen)
    yield RULES
    yield from rule_tables(seen)
    yield UNSEEN
    unseen = [row for row in rows if row.unseen]
    yield from default_table(unseen)
    yield from by_radius(unseen)
    yield "## What the theorem is worth\n"
    yield from theorem(rows)
    if (RESULTS / "remedies.csv").exists():
        yield REMEDIES
        yield from remedies()
    yield ENCODER
    yield from encoder()
    yield cut()
    yield "## The experts\n"
    yield from experts()


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    out = parser.parse_args().out
    rows = merge_rows()
    draw(rows, out.parent / "evidence")
    out.write_text("\n".join(document(rows)).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
