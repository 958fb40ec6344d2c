"""What the default limits get right and wrong, and what others would."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from merge_rows import MergeRow, column
from rules import Rule, before, collapsed, fit, judge, over_any, rates, rejected
from signal_names import limits_said, signals_said

from mergekit_collapse.recipe.default_limits import SHIPPED_ALONE, WITH_TASKS
from mergekit_collapse.recipe.limits import EvaluateBlock
from mergekit_collapse.study.error_rates import ErrorRates
from mergekit_collapse.study.share import Share

CANDIDATES = (
    ("gate.ball",),
    ("gate.mds_unrelated",),
    ("gate.own",),
    ("hidden_builtin.ball",),
    ("predictive.own",),
    ("last_token.own",),
    ("every_layer.own",),
    ("largest_norm",),
    ("measured.hidden_own",),
    ("measured.predictive_own",),
    ("measured.every_layer_own",),
    ("gate.ball", "measured.predictive_own"),
    ("gate.own", "measured.predictive_own"),
    ("hidden_builtin.ball", "measured.predictive_own"),
    ("gate.own", "predictive.own"),
)
HEAD = (
    "| rule | refused | of those collapsed | collapses refused | good merges refused |",
    "| --- | ---: | ---: | ---: | ---: |",
)


FORMER = {"gate.ball": 0.3, "gate.mds_unrelated": 3.0}
"""What the limits were before these merges were made."""
AFTER = "after: each task by its loss over {loss:g} %, else by its distortion over {distortion:g}"


def rule_tables(rows: Sequence[MergeRow]) -> Iterator[str]:
    """The limits as they are, then fitted ones, on tasks that they were fitted without."""
    yield from default_table(rows)
    yield from by_radius(rows)
    yield "| rule | limits | collapses refused | good refused | the same, task left out | |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for names in CANDIDATES:
        yield _fitted(fit(rows, *names))
    yield ""


def default_table(rows: Sequence[MergeRow]) -> Iterator[str]:
    """What the defaults do before and after a merge, and what single limits would."""
    yield from HEAD
    limits = EvaluateBlock()
    after = AFTER.format(loss=limits.max_merging_loss, distortion=limits.max_own_distortion)
    for part, some in _parts(rows).items():
        early = over_any(some, before(tasks=True))
        late = rejected(some, limits)
        yield line(f"{part}before: {limits_said(before(tasks=True))}", rates(some, early))
        yield line(f"{part}{after}", rates(some, late))
        yield line(f"{part}before or after", rates(some, early | late))
    shipped = before(tasks=False)
    yield line(f"before: {limits_said(shipped)}", judge(rows, shipped))
    yield line(f"as it was: {limits_said(FORMER)}", judge(rows, FORMER))
    yield from (line(limits_said({k: v}), judge(rows, {k: v})) for k, v in FORMER.items())
    alone = {"gate_pooled": limits.max_distortion, "predictive_own": limits.max_own_distortion}
    for name, limit in alone.items():
        known = [row for row in rows if not np.isnan(row.readings[f"measured.{name}"])]
        if known and limit is not None:
            rule = {f"measured.{name}": limit}
            yield line(f"after: {limits_said(rule)}", judge(known, rule))
    yield ""


def _parts(rows: Sequence[MergeRow]) -> dict[str, list[MergeRow]]:
    """All merges, and apart by how tasks are scored: likelihood is sooner lost."""
    found = {"": list(rows)}
    for metric in ("accuracy", "likelihood"):
        found[f"scored by {metric}, "] = [row for row in rows if row.metric == metric]
    return {name: part for name, part in found.items() if part}


def by_radius(rows: Sequence[MergeRow]) -> Iterator[str]:
    """How many collapsed below the grey zone of the default limits, in it and over them."""
    bad = collapsed(rows)
    yield "| r² | merges | collapsed |"
    yield "| --- | ---: | ---: |"
    for signal, what, found in (
        ("gate.ball", "own and shipped probes", WITH_TASKS),
        ("hidden_builtin.ball", "shipped probes alone", SHIPPED_ALONE),
    ):
        ball = column(rows, signal)
        edges = (0.0, found.grey, found.distortion, np.inf)
        for low, high in itertools.pairwise(edges):
            inside = (ball > low) & (ball <= high)
            if inside.any():
                name = f"{low:g} to {high:g}" if np.isfinite(high) else f"over {low:g}"
                yield f"| {what}: {name} | {inside.sum()} | {bad[inside].mean():.0%} |"
    yield ""


def _fitted(rule: Rule) -> str:
    limits = ", ".join(f"{limit:.3g}" for limit in rule.limits)
    seen, out = rule.in_sample, rule.left_out.rates if rule.left_out else None
    cells = [
        signals_said(rule.signals),
        limits,
        short(seen.recall),
        short(seen.false_refusal),
        short(out.recall) if out else "",
        short(out.false_refusal) if out else "",
    ]
    return f"| {' | '.join(cells)} |"


def line(name: str, found: ErrorRates) -> str:
    """One rule's rates with their intervals."""
    shares = (found.precision, found.recall, found.false_refusal)
    return f"| {name} | {found.refused} of {found.rows} | {' | '.join(map(full, shares))} |"


def short(share: Share) -> str:
    """A rate."""
    return "" if share.value is None else f"{share.value:.0%}"


def full(share: Share, *, counted: bool = True) -> str:
    """A rate, what it is of, and its interval with merges of the same experts together."""
    if share.value is None:
        return "none"
    of = f" of {share.of}" if counted else ""
    found = share.clustered
    interval = f" ({found.low:.0%} to {found.high:.0%})" if found else ""
    return f"{share.value:.0%}{of}{interval}"
