"""Signals side by side on the same merges."""

from collections.abc import Iterator, Sequence

from merge_rows import MergeRow
from mergekit_collapse.study.estimate import Estimate
from signal_quality import Quality, quality


def signal_tables(rows: Sequence[MergeRow]) -> Iterator[str]:
    """All signals on the tasks that were looked at, then on the others."""
    names = list(dict.fromkeys(name for row in rows for name in row.readings))
    names = [n for n in names if not n.endswith("seconds")]
    for title, part in (
        ("tasks looked at", [r for r in rows if not r.unseen]),
        ("a task unseen", [r for r in rows if r.unseen]),
    ):
        yield f"## {title}"
        yield ""
        yield from _table(part, names)


def _table(rows: Sequence[MergeRow], names: Sequence[str]) -> Iterator[str]:
    found = [q for name in names if (q := quality(rows, name, 20.0)) is not None]
    yield "| signal | merges | collapsed | AUROC | without a task | Spearman | beyond 30 % |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for one in sorted(found, key=lambda q: -q.auroc.value):
        more = quality(rows, one.name, 30.0)
        yield _line(one, more)
    yield ""


def _line(one: Quality, more: Quality | None) -> str:
    left = one.without_a_task
    cells = (
        one.name,
        str(one.merges),
        str(one.collapsed),
        shown(one.auroc),
        f"{left.low:.2f} to {left.high:.2f}",
        shown(one.spearman),
        shown(more.auroc) if more else "",
    )
    return f"| {' | '.join(cells)} |"


def shown(found: Estimate) -> str:
    """A number and its interval."""
    if found.interval is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f})"
