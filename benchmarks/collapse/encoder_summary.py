"""How well each signal told the encoder's collapsed merges, from the two tables alone."""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergekit_collapse.study.discrimination import discrimination

LIMITS = (-20.0, -30.0)


@dataclass(frozen=True)
class Outcome:
    """One merge and member."""

    method: str
    members: str
    expert: str
    loss: float


@dataclass(frozen=True)
class Told:
    """One predictor against one definition of collapse; None where only one kind was there."""

    predictor: str
    rows: int
    auroc: tuple[float | None, ...]
    collapsed: tuple[int, ...]


Values = dict[tuple[str, str, str, str], float]


def read_tables(results: Path) -> tuple[list[Outcome], Values]:
    """The outcomes, and the predictors by (predictor, members, method, expert)."""
    with (results / "encoder_outcomes.csv").open(encoding="utf-8", newline="") as file:
        outcomes = [
            Outcome(r["method"], r["members"], r["expert"], float(r["loss_percent"]))
            for r in csv.DictReader(file)
        ]
    with (results / "encoder_predictors.csv").open(encoding="utf-8", newline="") as file:
        values = {
            (r["predictor"], r["members"], r["method"], r["expert"]): float(r["value"])
            for r in csv.DictReader(file)
            if r["value"]
        }
    return outcomes, values


def by_task(outcomes: Sequence[Outcome], values: Values, predictor: str) -> Iterator[list[float]]:
    """Value and loss of every merge and member; a value for the group serves all members."""
    for one in outcomes:
        places = itertools.product((one.method, ""), (one.expert, ""))
        keys = ((predictor, one.members, method, expert) for method, expert in places)
        if (key := next((key for key in keys if key in values), None)) is not None:
            yield [values[key], one.loss]


def by_merge(outcomes: Sequence[Outcome], values: Values, predictor: str) -> Iterator[list[float]]:
    """Largest value and worst loss of every merge."""
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for one in outcomes:
        for pair in by_task([one], values, predictor):
            groups.setdefault((one.method, one.members), []).append(pair)
    for pairs in groups.values():
        yield [max(value for value, _ in pairs), min(loss for _, loss in pairs)]


def told(predictor: str, pairs: Sequence[Sequence[float]]) -> Told:
    """AUROC of one predictor at every limit."""
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    collapsed = tuple(int((table[:, 1] < limit).sum()) for limit in LIMITS)
    auroc = tuple(
        discrimination(table[:, 0], table[:, 1], worse_than=limit, limit=0.3).auroc
        if 0 < count < len(table)
        else None
        for limit, count in zip(LIMITS, collapsed, strict=True)
    )
    return Told(predictor, len(table), auroc, collapsed)


def summary(results: Path) -> Iterator[str]:
    """Lines that say it all, by merge and by task, of all merges and without conflicting ones."""
    outcomes, values = read_tables(results)
    predictors = sorted({key[0] for key in values})
    clean = [o for o in outcomes if not any(w in o.members for w in ("mirrored", "swapped"))]
    kinds: tuple[tuple[str, Callable[..., Iterator[list[float]]], list[Outcome]], ...] = (
        ("every merge", by_merge, outcomes),
        ("every merge and task", by_task, outcomes),
        ("merges without turned labels", by_merge, clean),
        ("merges of two", by_merge, [o for o in outcomes if o.members.count("+") == 1]),
    )
    for title, read, some in kinds:
        yield f"\n{title}: AUROC for a loss beyond {' and '.join(f'{-x:.0f}' for x in LIMITS)} %"
        for predictor in predictors:
            found = told(predictor, list(read(some, values, predictor)))
            cells = ["  - " if a is None else f"{a:4.2f}" for a in found.auroc]
            counts = "/".join(map(str, found.collapsed))
            yield f"  {predictor:<32} {'  '.join(cells)}   {counts} of {found.rows}"
