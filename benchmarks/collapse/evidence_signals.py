"""Signals side by side on the same merges."""

from collections.abc import Iterator, Mapping, Sequence

from merge_rows import MergeRow
from signal_names import BEFORE, REHEARSED, RIVALS
from signal_quality import Quality, quality

from mergekit_collapse.study.estimate import Estimate
from mergekit_collapse.study.left_out import LeftOutAuroc

BLOCKS = {
    "Before the merge, from the experts' states": BEFORE,
    "Of the merged model on the probes: a rehearsal": REHEARSED,
    "What others go by": RIVALS,
}
HEAD = (
    "| signal | merges | AUROC, beyond 20 % | beyond 30 % | pairs | groups | without a task "
    "| without a set | Spearman | Pearson |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)
# Of two experts they are infinite, or undefined: over all merges they would tell pairs from groups.
OF_GROUPS = ("mds_group_max", "mds_group_minmax")


def signal_tables(rows: Sequence[MergeRow]) -> Iterator[str]:
    """A table for each kind of signal."""
    for title, names in BLOCKS.items():
        yield f"**{title}**"
        yield ""
        yield from _table(rows, names)
        yield ""


def _table(rows: Sequence[MergeRow], names: Mapping[str, str]) -> Iterator[str]:
    yield from HEAD
    pairs = [row for row in rows if len(row.members) == 2]
    groups = [row for row in rows if len(row.members) > 2]
    for name, label in names.items():
        some = groups if name.endswith(OF_GROUPS) else rows
        one = quality(some, name, 20.0)
        if one is None:
            yield f"| {label} | too few | | | | | | | | |"
            continue
        cells = (
            str(one.rows),
            shown(one.auroc),
            _auroc(quality(some, name, 30.0)),
            _auroc(quality(pairs, name, 20.0)),
            _auroc(quality(groups, name, 20.0)),
            _range(one.without_a_task),
            _range(one.without_a_set),
            shown(one.spearman),
            shown(one.pearson) if one.pearson else "infinite somewhere",
        )
        yield f"| {label} | {' | '.join(cells)} |"


def _range(found: LeftOutAuroc) -> str:
    return f"{found.low:.2f} to {found.high:.2f}"


def _auroc(found: Quality | None) -> str:
    return "" if found is None else f"{found.auroc.value:.2f}"


def shown(found: Estimate) -> str:
    """A number and its interval."""
    if found.interval is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f})"
