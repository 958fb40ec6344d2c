"""How well one signal tells the merges that collapse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from merge_rows import MergeRow, column

from mergekit_collapse.study.auroc import auroc, aurocs
from mergekit_collapse.study.clustered_correlation import pearson, spearman
from mergekit_collapse.study.estimate import Estimate
from mergekit_collapse.study.folds import Folds, member_out, one_out
from mergekit_collapse.study.left_out import LeftOutAuroc, left_out_auroc
from mergekit_collapse.study.tied_groups import tied_groups

BOTH = 5
"""Fewer merges of either kind than this say nothing."""


@dataclass(frozen=True)
class Quality:
    """One signal on some rows, of which it has a value for ``rows``.

    Attributes:
        auroc: of a loss of the worst task beyond ``beyond`` percent.
        without_a_task: AUROC as each task is left out, with all merges that it takes part in.
        without_a_set: AUROC as each set of experts is left out, with its merges by all methods.
        pearson, spearman: with the worst loss, its sign changed, so that 1 is best; Pearson is
            None where the signal is infinite somewhere.
    """

    name: str
    beyond: float
    rows: int
    collapsed: int
    auroc: Estimate
    without_a_task: LeftOutAuroc
    without_a_set: LeftOutAuroc
    pearson: Estimate | None
    spearman: Estimate


def quality(
    rows: Sequence[MergeRow], name: str, beyond: float, *, resamples: int = 1000
) -> Quality | None:
    """Of merges, by the loss of the worst task."""
    told = Told(
        column(rows, name),
        np.array([row.worst for row in rows]),
        [row.members for row in rows],
        [row.families for row in rows],
    )
    return quality_of(told, name, beyond, resamples=resamples)


def quality_by_task(
    rows: Sequence[MergeRow], name: str, beyond: float, *, resamples: int = 1000
) -> Quality | None:
    """Of every learned task of every merge by itself, by its own loss."""
    each = [(row, member) for row in rows for member in row.each if member.learned]
    told = Told(
        np.array([member.readings.get(name, np.nan) for _, member in each]),
        np.array([member.loss for _, member in each]),
        [row.members for row, _ in each],
        [frozenset([member.family]) for _, member in each],
    )
    return quality_of(told, name, beyond, resamples=resamples)


@dataclass(frozen=True)
class Told:
    """What a signal said of some rows, and what was lost.

    Attributes:
        score: NaN where it said nothing.
        loss: in percent; negative is worse.
        sets: experts that were merged; rows of the same set are resampled together, since they
            share every signal but a rehearsal's.
        families: tasks that are left out with the row.
    """

    score: np.ndarray
    loss: np.ndarray
    sets: Sequence[tuple[str, ...]]
    families: Sequence[frozenset[str]]


def wider(found: Estimate, folds: Folds, score: np.ndarray, collapsed: np.ndarray) -> Estimate:
    """An AUROC whose interval holds that of a jackknife over tasks as well.

    Sets share experts: the bootstrap over sets takes them for independent. Leaving out each of
    the T tasks in turn, with all merges it takes part in, gives

        se² = (T − 1) / T · Σ (AUROC without t − their mean)²

    and the interval is the wider of both at either end.
    """
    rest = aurocs(tied_groups(score), collapsed, (~folds).astype(np.float64))
    if found.interval is None or np.isnan(rest).any():
        return found
    spread = np.sqrt((len(rest) - 1) / len(rest) * np.square(rest - rest.mean()).sum())
    low = max(0.0, min(found.interval.low, found.value - 1.96 * spread))
    high = min(1.0, max(found.interval.high, found.value + 1.96 * spread))
    return replace(found, interval=replace(found.interval, low=float(low), high=float(high)))


def quality_of(told: Told, name: str, beyond: float, *, resamples: int = 1000) -> Quality | None:
    """None where too few rows have the signal, or too few are of one kind."""
    known = np.flatnonzero(~np.isnan(told.score))
    score, loss = told.score[known], told.loss[known]
    collapsed = loss < -beyond
    if min(collapsed.sum(), (~collapsed).sum()) < BOTH or len(np.unique(score)) < 2:
        return None
    sets = [told.sets[i] for i in known]
    folds = member_out([told.families[i] for i in known])
    return Quality(
        name,
        beyond,
        len(score),
        int(collapsed.sum()),
        wider(auroc(score, collapsed, sets, resamples=resamples), folds, score, collapsed),
        left_out_auroc(folds, score, collapsed),
        left_out_auroc(one_out(sets), score, collapsed),
        pearson(score, -loss, sets, resamples=resamples) if np.isfinite(score).all() else None,
        spearman(score, -loss, sets, resamples=resamples),
    )
