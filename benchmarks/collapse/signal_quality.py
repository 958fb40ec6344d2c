"""How well one signal tells the merges that collapse."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from merge_rows import MergeRow, column

from mergekit_collapse.study.auroc import auroc
from mergekit_collapse.study.clustered_correlation import pearson, spearman
from mergekit_collapse.study.estimate import Estimate
from mergekit_collapse.study.folds import member_out
from mergekit_collapse.study.left_out import LeftOutAuroc, left_out_auroc

BOTH = 5
"""Fewer merges of either kind than this say nothing."""


@dataclass(frozen=True)
class Quality:
    """One signal on some merges, of which it has a value for ``merges``.

    Attributes:
        auroc: of a loss of the worst task beyond ``beyond`` percent.
        without_a_task: AUROC as each task is left out, with all merges that it takes part in.
        pearson, spearman: with the worst loss, its sign changed, so that 1 is best; Pearson is
            None where the signal is infinite somewhere.
    """

    name: str
    beyond: float
    merges: int
    collapsed: int
    auroc: Estimate
    without_a_task: LeftOutAuroc
    pearson: Estimate | None
    spearman: Estimate


def quality(
    rows: Sequence[MergeRow], name: str, beyond: float, *, resamples: int = 1000
) -> Quality | None:
    """None where too few merges have the signal, or too few are of one kind.

    Merges of the same members are resampled together: they share every signal but a rehearsal's.
    """
    score = column(rows, name)
    rows = [row for row, known in zip(rows, ~np.isnan(score), strict=True) if known]
    score = score[~np.isnan(score)]
    loss = np.array([row.worst for row in rows])
    collapsed = loss < -beyond
    if min(collapsed.sum(), (~collapsed).sum()) < BOTH or len(np.unique(score)) < 2:
        return None
    sets = [row.members for row in rows]
    return Quality(
        name,
        beyond,
        len(rows),
        int(collapsed.sum()),
        auroc(score, collapsed, sets, resamples=resamples),
        left_out_auroc(member_out([row.families for row in rows]), score, collapsed),
        pearson(score, -loss, sets, resamples=resamples) if np.isfinite(score).all() else None,
        spearman(score, -loss, sets, resamples=resamples),
    )
