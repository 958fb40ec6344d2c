"""The encoder's merges, with the quality that the other signals are given."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from encoder_summary import Outcome, Values, by_merge, read_tables
from evidence_rules import full
from evidence_signals import shown
from merge_rows import RESULTS
from signal_quality import Told, quality_of

from mergekit_collapse.recipe.default_limits import WITH_TASKS
from mergekit_collapse.study.error_rates import ErrorRates, error_rates, over

SIGNALS = {
    "hidden_r2": "r², own probes",
    "builtin_hidden_r2": "r², shipped probes",
    "hidden_mds_unrelated": "MDS `unrelated`, own probes",
    "hidden_own_predicted": "own-task distortion predicted",
    "measured_hidden_own": "own-task distortion measured",
    "measured_hidden_pooled": "distortion measured",
    "norm": "‖θ − θ₀‖",
    "base_score": "score of the base",
}


def by_default() -> ErrorRates:
    """What the default limit of r² gets right and wrong."""
    merges, values = _merges()
    refused = over(_largest(merges, values, "hidden_r2"), WITH_TASKS.distortion)
    return error_rates(refused, _worst(merges) < -20, _sets(merges))


def encoder() -> Iterator[str]:
    """AUROC by merge."""
    merges, values = _merges()
    sets, worst = _sets(merges), _worst(merges)
    yield (
        f"{len(merges)} merges of {len(set(sets))} sets; {(worst < -20).sum()} lost more than 20 %"
        " on a task."
    )
    yield ""
    yield "| signal | merges | AUROC, beyond 20 % | Spearman |"
    yield "| --- | ---: | ---: | ---: |"
    for name, label in SIGNALS.items():
        score = _largest(merges, values, name)
        families = [frozenset(e.partition("-")[0] for e in members) for members in sets]
        found = quality_of(Told(score, worst, sets, families), name, 20.0)
        if found is not None:
            cells = str(found.rows), shown(found.auroc), shown(found.spearman)
            yield f"| {label} | {' | '.join(cells)} |"
    yield ""
    found = by_default()
    yield (
        f"The default limit, r² over {WITH_TASKS.distortion:g} on own probes, refuses"
        f" {full(found.recall)} of the collapses and {full(found.false_refusal)} of the good"
        " merges."
    )
    yield ""


def _merges() -> tuple[dict[tuple[str, str], list[Outcome]], Values]:
    outcomes, values = read_tables(RESULTS)
    merges: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        merges[one.members, one.method].append(one)
    return merges, values


def _largest(
    merges: Mapping[tuple[str, str], Sequence[Outcome]], values: Values, name: str
) -> np.ndarray:
    """Of each merge, over its members; NaN where it has none."""
    told = [next(by_merge(each, values, name), (np.nan,)) for each in merges.values()]
    return np.array([largest for largest, *_ in told])


def _sets(merges: Mapping[tuple[str, str], Sequence[Outcome]]) -> list[tuple[str, ...]]:
    return [tuple(members.split("+")) for members, _ in merges]


def _worst(merges: Mapping[tuple[str, str], Sequence[Outcome]]) -> np.ndarray:
    return np.array([min(one.loss for one in each) for each in merges.values()])
