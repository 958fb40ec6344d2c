"""Write docs/evidence.md and its figures from the committed tables.

python benchmarks/collapse/evidence.py
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from evidence_outcomes import outcome_tables
from evidence_rules import rule_tables
from evidence_signals import signal_tables
from merge_rows import MergeRow, merge_rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "evidence.md"


def document(rows: Sequence[MergeRow]) -> Iterator[str]:
    """The lines of the document."""
    yield "# Does the gate refuse the merges that collapse?"
    yield ""
    yield from outcome_tables(rows)
    seen = [row for row in rows if not row.unseen]
    yield "## Signals side by side"
    yield ""
    yield from signal_tables(seen)
    yield "## The default"
    yield ""
    yield from rule_tables(seen)


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    arguments = parser.parse_args()
    text = "\n".join(document(merge_rows()))
    arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
