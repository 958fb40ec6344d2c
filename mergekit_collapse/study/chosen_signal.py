"""Which signal to go by, and what that choice is worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.error_rates import over
from mergekit_collapse.study.finished_merges import FinishedMerge
from mergekit_collapse.study.fitted_signal import scores, shortest
from mergekit_collapse.study.folds import Folds, member_out, one_out
from mergekit_collapse.study.left_out import LeftOut, leave_out
from mergekit_collapse.study.limit_search import Limit, best_limit
from mergekit_collapse.study.report_signals import Signal


@dataclass(frozen=True)
class ChosenSignal:
    """The signal whose limit errs least on the merges that it was fitted to.

    Attributes:
        name: of the signal; the first of equal ones.
        among: how many there were to choose from: those that the most merges have.
        merges: how many have all of these.
        limit: as ``FittedSignal`` has it.
        lines: what to put under ``compat:``; None where there is no limit.
        left_out: rates where signal and limit were both chosen without the merges they judge.
        new_expert: the same, where no merge with one of the experts was seen either; a merge
            counts once for each of its experts. None where no expert is in two groups.
    """

    name: str
    among: int
    merges: int
    limit: float | None
    lines: str | None
    left_out: LeftOut
    new_expert: LeftOut | None


def choose_signal(
    signals: Sequence[Signal],
    merges: Sequence[FinishedMerge],
    collapsed: Bool[np.ndarray, " merge"],
    *,
    cost: float,
    resamples: int,
    seed: int,
) -> ChosenSignal:
    """By the least loss of ``best_limit``.

    Signals are compared on the same merges, and those that fewer merges have are left aside. The
    choice among many flatters the best, so it is made anew for each group of experts left out.

    Args:
        signals: one at least, each with enough merges that have it.

    Raises:
        ValueError: all of those merges collapsed, or none did.
    """
    having = {signal.name: _having(signal, merges) for signal in signals}
    most = max(having.values(), key=lambda kept: int(kept.sum()))
    compared = [signal for signal in signals if (having[signal.name] >= most).all()]
    rows = [merge for merge, kept in zip(merges, most, strict=True) if kept]
    bad, groups = collapsed[most], [merge.experts for merge in rows]
    table = np.array([scores(signal, rows) for signal in compared])

    def refuse(seen: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
        best, limit = _best(table[:, seen], bad[seen], cost)
        return over(table[best], limit.value)

    def judged(folds: Folds) -> LeftOut:
        return leave_out(folds, bad, refuse, groups, resamples=resamples, seed=seed)

    best, limit = _best(table, bad, cost)
    shared = sum(map(len, set(groups))) > len({name for group in groups for name in group})
    short = shortest(limit)
    return ChosenSignal(
        compared[best].name,
        len(compared),
        len(rows),
        short,
        compared[best].lines(short) if short is not None else None,
        judged(one_out(groups)),
        judged(member_out(groups)) if shared else None,
    )


def _having(signal: Signal, merges: Sequence[FinishedMerge]) -> Bool[np.ndarray, " merge"]:
    return np.array([signal.name in merge.readings for merge in merges], dtype=np.bool_)


def _best(
    table: Float64[np.ndarray, "signal row"], collapsed: Bool[np.ndarray, " row"], cost: float
) -> tuple[int, Limit]:
    limits = [best_limit(score, collapsed, cost) for score in table]
    # Equal losses are equal numbers: sums of the same counts.
    return min(enumerate(limits), key=lambda pair: pair[1].loss)
