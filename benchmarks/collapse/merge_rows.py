"""The committed tables as one row a merge: what was foretold, and what it lost."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
MEASURED = (
    *("hidden_pooled", "hidden_own", "last_token_pooled", "last_token_own"),
    *("every_layer_pooled", "every_layer_own", "predictive_pooled", "predictive_own"),
)
"""Distortions of the merged model itself: what a rehearsal sees."""
NOT_ALWAYS = ("builtin_pooled", "gate_pooled")
"""Measured since the first few hundred merges were made."""
OF_EQUAL_WEIGHTS = ("linear", "ties", "slerp", "karcher", "weighted_karcher")

MOST_LOSS = 0.3
COMMON_STEPS = 80


@dataclass(frozen=True)
class MemberRow:
    """One member of one merge.

    Attributes:
        chance: what guessing scores; 0 where likelihood is the score.
        loss: of its task, in percent; negative is worse.
        readings: higher is predicted worse.
    """

    expert: str
    family: str
    own: float
    base: float
    chance: float
    loss: float
    readings: Mapping[str, float]

    @property
    def metric(self) -> str:
        """What its task is scored by."""
        return "accuracy" if self.chance else "likelihood"

    @property
    def learned(self) -> bool:
        """Whether it is so far above guessing that falling back to it loses more than 30 %."""
        return self.chance < (1 - MOST_LOSS) * self.own


@dataclass(frozen=True)
class MergeRow:
    """One merge.

    Attributes:
        makes: which kind of set it is, by its members that are least like natural adapters.
        unseen: whether a task of the third that nothing is chosen or fitted on takes part.
        readings: of the whole set; the worst of its members where a member has one.
    """

    members: tuple[str, ...]
    method: str
    makes: str
    unseen: bool
    each: tuple[MemberRow, ...]
    readings: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The loss of the task that lost most, in percent."""
        return min(member.loss for member in self.each)

    @property
    def metric(self) -> str:
        """``likelihood`` where a member's task is scored by it: a fifth less is soon lost there."""
        likely = any(member.metric == "likelihood" for member in self.each)
        return "likelihood" if likely else "accuracy"

    @property
    def families(self) -> frozenset[str]:
        """The tasks that take part, those with changed answers as the ones they were made of."""
        return frozenset(member.family for member in self.each)


def read_table(name: str, folder: Path = RESULTS) -> list[dict[str, str]]:
    """The rows of one committed table."""
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(row: Mapping[str, str], without: Sequence[str] = ()) -> dict[str, float]:
    """The cells that are numbers."""
    return {k: float(v) for k, v in row.items() if v != "" and k not in without}


def merge_rows(folder: Path = RESULTS) -> list[MergeRow]:
    """Every merge that was measured, of experts that all learned their tasks."""
    experts = {r["expert"]: r for r in read_table("experts.csv", folder)}
    sets = {r["members"]: numbers(r, ["members"]) for r in read_table("sets.csv", folder)}
    members = {
        (r["members"], r["expert"]): numbers(r, ["members", "expert"])
        for r in read_table("members.csv", folder)
    }
    for others in sorted(folder.glob("rivals*.csv")):
        for r in read_table(others.name, folder):
            if r["members"] in sets:
                sets[r["members"]] |= numbers(r, ["members"])
    made: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for r in read_table("outcomes.csv", folder):
        made[r["members"], r["method"]].append(r)
    found = [
        _row(rows, experts, sets[names], members)
        for (names, _), rows in made.items()
        if len(rows) == len(names.split("+")) and names in sets
    ]
    return [row for row in found if all(member.learned for member in row.each)]


def _row(
    rows: Sequence[Mapping[str, str]],
    experts: Mapping[str, Mapping[str, str]],
    group: Mapping[str, float],
    members: Mapping[tuple[str, str], Mapping[str, float]],
) -> MergeRow:
    names, method = rows[0]["members"], rows[0]["method"]
    each = tuple(
        MemberRow(
            r["expert"],
            experts[r["expert"]]["family"],
            float(experts[r["expert"]]["own"]),
            float(experts[r["expert"]]["base"]),
            float(experts[r["expert"]]["chance"]),
            float(r["loss_percent"]),
            {**members[names, r["expert"]], **dict(_of_member(r, experts[r["expert"]]))},
        )
        for r in rows
    )
    names_of = dict(_of_member(rows[0], {}))
    # numpy's maximum, since that of one that is NaN is unknown.
    worst = {key: float(np.max([m.readings[key] for m in each])) for key in names_of}
    unseen = any(experts[r["expert"]]["unseen"] == "1" for r in rows)
    makes = _makes([experts[r["expert"]] for r in rows])
    # By the weights of the recipe itself, for ties and dare_ties as if they kept all.
    own_weights = "hidden.predicted" if method in OF_EQUAL_WEIGHTS else "arithmetic.predicted"
    recipe = {"experts": float(len(rows)), "recipe.predicted": group.get(own_weights, np.nan)}
    return MergeRow(
        tuple(names.split("+")), method, makes, unseen, each, {**group, **worst, **recipe}
    )


def _of_member(row: Mapping[str, str], expert: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    for name in MEASURED:
        yield f"measured.{name}", float(row[name])
    for name in NOT_ALWAYS:
        yield f"measured.{name}", float(row.get(name) or "nan")
    yield "measured.variance_lost", 1 - float(row["variance_ratio"])
    yield "measured.rank_lost", 1 - float(row["rank_ratio"])
    # A share of its own score: as it is, a likelihood would be low for its unit alone.
    likely = float(expert.get("base", "nan")) / float(expert.get("own", "nan"))
    few = row.get("few_percent", "")
    yield "measured.few_loss", -float(few) if few else np.nan
    yield "base_score", -likely
    yield "largest_norm", float(expert.get("norm", "nan"))


def _makes(experts: Sequence[Mapping[str, str]]) -> str:
    """hot before conflict before long before full before other seeds before natural."""
    tasks = [e["family"] for e in experts]
    if any(e["group"] == "hot" for e in experts):
        return "hot"
    if any(e["group"] == "conflict" for e in experts):
        same = any(e["group"] == "conflict" and tasks.count(e["family"]) > 1 for e in experts)
        return "conflict" if same else "conflict apart"
    if any(int(e["steps"]) > COMMON_STEPS for e in experts):
        return "long"
    if any(e["kind"] == "full" for e in experts):
        return "full"
    return "seed" if any(e["group"] == "seed" for e in experts) else "natural"


def column(rows: Sequence[MergeRow], name: str) -> np.ndarray:
    """One reading of every merge; NaN where it has none."""
    return np.array([row.readings.get(name, np.nan) for row in rows])
