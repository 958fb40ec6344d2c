"""What the default limits get right and wrong, and what others would."""

from collections.abc import Iterator, Sequence

from merge_rows import MergeRow
from rules import Rule, defaults, fit, judge

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


def rule_tables(rows: Sequence[MergeRow]) -> Iterator[str]:
    """The limits as they are, then fitted ones, on tasks that they were fitted without."""
    yield from default_table(rows)
    yield "| rule | limits | collapses refused | good refused | the same, task left out | |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for names in CANDIDATES:
        yield _fitted(fit(rows, *names))
    yield ""


def default_table(rows: Sequence[MergeRow]) -> Iterator[str]:
    """Of all merges, and apart by how tasks are scored: likelihood is sooner lost."""
    yield from HEAD
    yield line(_said(defaults()), judge(rows, defaults()))
    for metric in ("accuracy", "likelihood"):
        part = [row for row in rows if row.metric == metric]
        if part:
            yield line(f"the same, scored by {metric}", judge(part, defaults()))
    yield ""


def _fitted(rule: Rule) -> str:
    limits = ", ".join(f"{limit:.3g}" for limit in rule.limits)
    seen, out = rule.in_sample, rule.left_out.rates if rule.left_out else None
    cells = [
        " or ".join(rule.signals),
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


def _said(limits: dict[str, float]) -> str:
    return " or ".join(f"{name} > {limit:g}" for name, limit in limits.items())


def short(share: Share) -> str:
    """A rate."""
    return "" if share.value is None else f"{share.value:.0%}"


def full(share: Share) -> str:
    """A rate, what it is of, and its interval with merges of the same experts together."""
    if share.value is None:
        return "none"
    found = share.clustered
    interval = f" ({found.low:.0%} to {found.high:.0%})" if found else ""
    return f"{share.value:.0%} of {share.of}{interval}"
