"""A limit for each signal, fitted to merges of one's own whose outcome is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import printable, shortened
from mergekit_collapse.study.chosen_signal import ChosenSignal, choose_signal
from mergekit_collapse.study.cluster_resamples import RESAMPLES
from mergekit_collapse.study.comparable_merges import differences, kinds_of_groups, too_few
from mergekit_collapse.study.finished_merges import FinishedMerge
from mergekit_collapse.study.fitted_signal import FittedSignal, fit_signal
from mergekit_collapse.study.report_signals import Signal

_NONE = "no merge has it"


@dataclass(frozen=True)
class Calibration:
    """What merges of one's own say about the signals.

    Attributes:
        collapse: a merge collapsed if a task lost more than this, in percent.
        cost: of refusing all good merges, as a multiple of letting all others through.
        merges: all that are used.
        collapsed: how many of them did.
        groups: how many different sets of experts they merge.
        rarer: how many of these have merges of the rarer kind.
        signals: those that could be fitted.
        unfitted: the others, each with the reason.
        before, after: the choice among those that are known before the merge, and among those
            of the merged model; None where none could be fitted.
    """

    collapse: float
    cost: float
    merges: tuple[FinishedMerge, ...]
    collapsed: int
    groups: int
    rarer: int
    signals: tuple[FittedSignal, ...]
    unfitted: tuple[tuple[str, str], ...]
    before: ChosenSignal | None
    after: ChosenSignal | None


def calibrate(
    merges: Sequence[FinishedMerge],
    signals: Sequence[Signal],
    *,
    collapse: float = 20.0,
    cost: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Calibration:
    """Fit a limit to each signal, hold it against merges it has not seen, and choose one.

    Args:
        cost: as in ``best_limit``.

    Raises:
        EvaluationError: there are too few merges of either kind, or too few that have any of the
            signals, or they were measured in different ways, so that no limit holds for all.
    """
    collapsed = np.array([not merge.lost <= collapse for merge in merges], dtype=np.bool_)
    experts = [merge.experts for merge in merges]
    if problem := too_few(collapsed, experts):
        raise EvaluationError(
            f"{problem}, and a collapse is a loss of more than {collapse:g} % on a task. Make more "
            "merges, some that you expect to fail and some to succeed, and score them on tasks "
            "with `target:` by `mergekit-collapse evaluate RECIPE MERGED`"
        )
    if problem := "; ".join(differences(merges, signals)):
        raise EvaluationError(
            f"these reports were measured in different ways, so no limit holds for all: {problem}. "
            "Give each kind a folder of its own, or measure again with the same settings"
        )
    fitted, unfitted, usable = [], [], []
    for signal in signals:
        kept = np.array([signal.name in merge.readings for merge in merges], dtype=np.bool_)
        rows = [merge for merge, has in zip(merges, kept, strict=True) if has]
        if problem := too_few(collapsed[kept], [merge.experts for merge in rows]):
            unfitted.append((signal.name, f"{problem if rows else _NONE}{_why(signal, merges)}"))
            continue
        bad = collapsed[kept]
        fitted.append(fit_signal(signal, rows, bad, cost=cost, resamples=resamples, seed=seed))
        usable.append(signal)

    if not fitted:
        told = printable(shortened([f"{name}: {why}" for name, why in unfitted], 2))
        raise EvaluationError(f"no signal could be fitted: {told}. Name others with --signal")

    def chosen(*, before: bool) -> ChosenSignal | None:
        some = [signal for signal in usable if signal.before == before]
        if not some:
            return None
        return choose_signal(some, merges, collapsed, cost=cost, resamples=resamples, seed=seed)

    return Calibration(
        collapse,
        cost,
        tuple(merges),
        int(collapsed.sum()),
        len(set(experts)),
        min(kinds_of_groups(collapsed, experts)),
        tuple(fitted),
        tuple(unfitted),
        chosen(before=True),
        chosen(before=False),
    )


def _why(signal: Signal, merges: Sequence[FinishedMerge]) -> str:
    """The reason that most of the others give."""
    reasons = [merge.missing[signal.name] for merge in merges if signal.name in merge.missing]
    return f" (of the others: {max(reasons, key=reasons.count)})" if reasons else ""
