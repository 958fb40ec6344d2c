"""A calibration as a person reads it."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from mergekit_collapse.findings import printable
from mergekit_collapse.study.calibration import Calibration
from mergekit_collapse.study.chosen_signal import ChosenSignal
from mergekit_collapse.study.columns import columns
from mergekit_collapse.study.error_rates import ErrorRates
from mergekit_collapse.study.estimate import Estimate, Interval
from mergekit_collapse.study.finished_merges import Unused
from mergekit_collapse.study.fitted_signal import FittedSignal
from mergekit_collapse.study.limit_search import RULE
from mergekit_collapse.study.share import Share

_SHOWN = 5
_TOLD = {
    "unreadable": "could not be read",
    "unscored": "say nothing about how a merge came out",
    "repeated": "are about a merge that another is about",
}
# Below that, one group of experts more or less moves a rate by a tenth.
_FEW_GROUPS = 10


def calibration_text(found: Calibration, unused: Sequence[Unused]) -> str:
    """What was read, each signal, its errors, and the line for the block."""
    sections = (
        _merges(found, unused),
        _signals(found),
        _errors(found),
        _choices(found),
    )
    return "\n\n".join("\n".join(lines) for lines in sections)


def unused_text(unused: Sequence[Unused]) -> str:
    """The files that were not used, a line for each, or nothing."""
    return "".join(f"{line}\n" for line in _unused(unused))


def _unused(unused: Sequence[Unused]) -> Iterator[str]:
    """The files that were not used: how many, why, and the first of each kind."""
    for kind, told in _TOLD.items():
        some = [one for one in unused if one.kind == kind]
        if some:
            yield f"  {len(some)} {told}:"
            yield from (printable(f"    {one.path}: {one.reason}") for one in some[:_SHOWN])
            if len(some) > _SHOWN:
                yield f"    and {len(some) - _SHOWN} more"


def _merges(found: Calibration, unused: Sequence[Unused]) -> Iterator[str]:
    yield (
        f"{len(found.merges)} merges of {found.groups} groups of experts: {found.collapsed} "
        f"collapsed, losing more than {found.collapse:g} % on a task"
    )
    yield from _unused(unused)
    for what, kinds in (
        ("bases", {merge.base for merge in found.merges}),
        ("sets of probes", {merge.probes for merge in found.merges}),
    ):
        if len(kinds) > 1:
            yield f"  They have {len(kinds)} {what}, and readings depend on them"
    methods = Counter(merge.method or "unknown" for merge in found.merges)
    told = ", ".join(f"{name} {count}" for name, count in methods.most_common())
    yield printable(f"  Methods: {told}")


def _signals(found: Calibration) -> Iterator[str]:
    yield "1. How well each signal tells collapse, and the limit fitted to it"
    rows = [
        [
            one.name,
            f"{one.merges}",
            f"{one.collapsed}",
            f"{one.auroc.value:.3f}",
            _interval(one.auroc, 3),
            f"{one.without.low:.3f} to {one.without.high:.3f}",
            _number(one.fitted.limit.value, None) if one.limit is None else f"{one.limit:g}",
            _interval(one.fitted.interval, None),
        ]
        for one in found.signals
    ]
    header = ["merges", "collapsed", "AUROC", "95 %", "one group left out", "limit", "95 %"]
    yield from columns(["signal", *header], rows)
    yield f"  Limit: {RULE.replace('COST', f'{found.cost:g}')}"
    yield "  95 %: bootstrap; merges of the same experts are drawn, and left out, together"
    for why in dict.fromkeys(reason for _, reason in found.unfitted):
        names = ", ".join(name for name, reason in found.unfitted if reason == why)
        yield printable(f"  Not fitted: {names}: {why}")


def _errors(found: Calibration) -> Iterator[str]:
    yield "2. Errors: collapses let through, and good merges refused"
    rows = [
        [
            one.name,
            *_rates(one.fitted.in_sample),
            *_rates(one.fitted.left_out.rates if one.fitted.left_out else None),
            "off" if one.default is None else f"{one.default:g}",
            *_rates(one.at_default),
        ]
        for one in found.signals
    ]
    fitted = ["as fitted:", "refused", "left out:", "refused"]
    yield from columns(["signal", *fitted, "default", "let through", "refused"], rows)
    yield "  as fitted: on the merges that the limit was fitted to, which flatters it"
    yield "  left out: each group of experts under the limit that the others give"


def _choices(found: Calibration) -> Iterator[str]:
    yield "3. What to put under `compat:`"
    for one, when in ((found.before, "Before the merge"), (found.after, "Of the merged model")):
        if one is not None:
            fitted = next(signal for signal in found.signals if signal.name == one.name)
            yield f"  {when}, {one.name} (the best of {one.among} on {one.merges} merges):"
            yield from _choice(found, one, fitted)


def _choice(found: Calibration, one: ChosenSignal, fitted: FittedSignal) -> Iterator[str]:
    if one.lines is None:
        yield "    nothing: no limit errs less than letting all of these through, or refusing all"
        return
    yield ""
    yield from (f"      {line}" for line in one.lines.split("\n"))
    yield ""
    rates = one.left_out.rates
    through, refused = _told(rates.false_allow), _told(rates.false_refusal)
    yield (
        f"    Chosen without the merges that it judges, it let through {through} collapses and "
        f"refused {refused} good merges."
    )
    if one.new_expert is not None:
        rates = one.new_expert.rates
        yield (
            "    Chosen without any merge of one of their experts, it let through "
            f"{_told(rates.false_allow)} and refused {_told(rates.false_refusal)}, a merge "
            "counting once for each expert."
        )
    yield f"    {_trust(found, one, fitted)}"


def _trust(found: Calibration, one: ChosenSignal, fitted: FittedSignal) -> str:
    """How far that goes, in one sentence."""
    balanced, interval = one.left_out.rates.balanced, fitted.auroc.interval
    if balanced is None or not balanced > 0.5:
        return "That is no better than a coin: do not use it; rehearse merges instead."
    if interval is None or not interval.low > 0.5:
        return "Whether the signal tells anything is open: make more merges before you use it."
    limits = fitted.fitted.interval.interval
    if found.rarer < _FEW_GROUPS:
        return (
            f"A starting point: one kind has no more than {found.rarer} groups of experts. It "
            "holds, if at all, for merges like these."
        )
    if limits is None or not np.isfinite([limits.low, limits.high]).all():
        return "The signal tells, but not where its limit lies; it holds for merges like these."
    return "It holds for merges like these: the same base and probes, experts trained alike."


def _told(share: Share) -> str:
    if share.value is None:
        return "none of no"
    both = share.clustered or share.exact
    shown = f" ({both.low:.0%} to {both.high:.0%})" if both is not None else ""
    return f"{share.hits} of {share.of}{shown}"


def _rates(rates: ErrorRates | None) -> tuple[str, str]:
    if rates is None:
        return "-", "-"
    through, refused = rates.false_allow, rates.false_refusal
    return f"{through.hits}/{through.of}", f"{refused.hits}/{refused.of}"


def _interval(found: Estimate, digits: int | None) -> str:
    if found.interval is None:
        return "unknown"
    return " to ".join(_number(end, digits) for end in _ends(found.interval))


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _number(value: float, digits: int | None) -> str:
    if not np.isfinite(value):
        return "none" if value > 0 else "all"
    return f"{value:.{digits}f}" if digits is not None else f"{value:.3g}"
