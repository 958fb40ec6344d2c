"""Whether merges can be held against one limit, and whether there are enough of either kind."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from mergekit_collapse.findings import printable, shortened
from mergekit_collapse.shapes import Bool
from mergekit_collapse.study.finished_merges import FinishedMerge
from mergekit_collapse.study.report_signals import Signal

# With two, one left out leaves one, and a fit to a single group of experts says nothing.
FEWEST = 3


def kinds_of_groups(
    collapsed: Bool[np.ndarray, " row"], groups: Sequence[Hashable]
) -> tuple[int, int]:
    """How many groups of experts have a merge that collapsed, and how many one that did not."""
    bad = {group for group, is_bad in zip(groups, collapsed, strict=True) if is_bad}
    good = {group for group, is_bad in zip(groups, collapsed, strict=True) if not is_bad}
    return len(bad), len(good)


def too_few(collapsed: Bool[np.ndarray, " row"], groups: Sequence[Hashable]) -> str | None:
    """What is missing, None if there are enough different groups of experts of either kind."""
    bad, good = kinds_of_groups(collapsed, groups)
    if min(bad, good) >= FEWEST:
        return None
    return (
        f"{_groups(bad)} collapsed and {_groups(good)} did not, among {len(groups)} merges; "
        f"{FEWEST} of either are the least"
    )


def _groups(count: int) -> str:
    return f"{count} group{'' if count == 1 else 's'} of experts"


def differences(merges: Sequence[FinishedMerge], signals: Sequence[Signal]) -> Iterator[str]:
    """Settings in which merges differ, of the spaces that the signals are from."""
    for space in dict.fromkeys(signal.space for signal in signals):
        there = [merge for merge in merges if space in merge.settings]
        for key in dict.fromkeys(key for merge in there for key in merge.settings[space]):
            values = Counter(merge.settings[space][key] for merge in there)
            if len(values) > 1:
                shown = [
                    f"{value} ({count}, such as {_first(there, space, key, value)})"
                    for value, count in values.most_common()
                ]
                yield printable(f"{space} {key}: {shortened(shown)}")


def _first(merges: Sequence[FinishedMerge], space: str, key: str, value: str) -> str:
    return next(merge.path for merge in merges if merge.settings[space][key] == value)
