"""The encoder's results as tables, and how well each signal told collapse."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from encoder_experts import EXPERTS
from encoder_merges import merges, recipe
from encoder_signals import Group, Read
from mergekit.config import MergeConfiguration
from predictor_rows import PredictorRow

from mergekit_collapse.evaluation.merging_loss import loss_percent
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.merging_difficulty import INFINITE, READINGS
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.shapes import Float64

MEASURED = ("hidden_pooled", "hidden_own", "builtin_hidden_pooled")
"""Distortions of a finished merge: on the probes of all members' tasks, of the owner's alone, and
on the shipped ones."""


Records = Mapping[tuple[str, tuple[str, ...]], Mapping[str, Any]]
Experts = Mapping[str, Mapping[str, Any]]


def read_records(folder: Path) -> tuple[Experts, Records]:
    """What ``make_expert`` and ``make_merge`` left; merges that are not made yet are left out."""
    heads, made = folder / "encoder" / "heads", folder / "encoder" / "merges"
    experts = {n: json.loads((heads / f"{n}.json").read_text("utf-8")) for n in EXPERTS}
    found = {}
    for method, members in merges():
        file = made / f"{'+'.join((method, *members))}.json"
        if file.exists():
            found[method, members] = json.loads(file.read_text("utf-8"))
    return experts, found


def expert_rows(experts: Experts) -> Iterator[list[Any]]:
    """Rows of experts.csv with its header; ``base`` is the base under the expert's own head."""
    columns = ("task", "kind", "group", "rank", "rate", "steps", "seed", "own", "base", "norm")
    yield ["expert", *columns]
    for name, record in experts.items():
        cells = {**record, "kind": "full", "rank": None}
        yield [name, *(_cell(cells[column]) for column in columns)]


def outcome_rows(experts: Experts, records: Records) -> Iterator[list[Any]]:
    """Rows of outcomes.csv with its header: one for each merge and member."""
    columns = ("expert_score", "merged_score", "base_score", "loss_percent")
    yield ["merge", "method", "members", "expert", *columns, *MEASURED]
    for (method, members), record in records.items():
        joined = "+".join(members)
        for name in members:
            own, merged = experts[name]["own"], record["scores"][name]
            scores = (own, merged, experts[name]["base"], loss_percent(own, merged))
            distortions = (record["measured"][r][name] for r in MEASURED)
            cells = map(_cell, (*scores, *distortions))
            yield [f"{method}:{joined}", method, joined, name, *cells]


def signals(
    folder: Path, read: Read, group: Group, experts: Experts, records: Records
) -> Iterator[PredictorRow]:
    """Every predictor of one set of experts, for each of the methods that it was merged by."""
    joined = "+".join(group.members)
    for place, geometry in (("", group.own), ("builtin_", group.shipped)):
        probes = len(geometry.own_task.tasks) * 32
        # One model's states serve every set; a set by itself runs all of its members.
        spent = read.seconds * probes * len(group.members) + group.seconds
        for expert, quantity, value in _of_geometry(geometry, group.members):
            yield PredictorRow(joined, "", expert, f"{place}{quantity}", value, spent)
    for name in group.members:
        of = experts[name]
        yield PredictorRow(joined, "", name, "norm", of["norm"], 0.0)
        # The more the base knows of a task, the less a merge can lose of it.
        yield PredictorRow(joined, "", name, "base_score", -of["base"], 0.0)
    for (method, members), record in records.items():
        if members == group.members:
            yield from _of_merge(folder, method, group, record)


def _of_geometry(
    geometry: Geometry, members: Sequence[str]
) -> Iterator[tuple[str, str, float | None]]:
    count = len(members)
    others = geometry.squared[:count, :count]
    yield "", "hidden_r2", geometry.ball.radius_squared
    yield "", "hidden_diameter_squared", geometry.bounds.diameter_squared
    minimax = geometry.own_task.minimax
    if minimax is not None:
        yield "", "hidden_own_ball", minimax.distortion
    for reading in READINGS:
        difficulty = geometry.difficulty(reading)
        for name, value, reason in zip(members, difficulty.mds, difficulty.reasons, strict=True):
            yield name, f"hidden_mds_{reading}", math.inf if reason == INFINITE else value
    for index, name in enumerate(members):
        yield name, "hidden_mean_squared_distance", float(others[index].sum() / (count - 1))
        yield name, "hidden_squared_distance_to_base", float(geometry.squared[index, count])


def _of_merge(
    folder: Path, method: str, group: Group, record: Mapping[str, Any]
) -> Iterator[PredictorRow]:
    joined, members = "+".join(group.members), group.members
    alpha = coefficients(folder, method, members)
    if alpha is not None:
        for place, geometry in (("", group.own), ("builtin_", group.shipped)):
            values = predicted_distortion(geometry.squared, alpha)
            for name, value in zip(members, values, strict=False):
                yield PredictorRow(
                    joined, method, name, f"{place}hidden_pooled_predicted", float(value), 0.0
                )
        for task in group.own.own_task.tasks:
            if task.squared is not None and task.owner is not None:
                value = float(predicted_distortion(task.squared, alpha)[task.owner])
                yield PredictorRow(joined, method, task.name, "hidden_own_predicted", value, 0.0)
    spent = record["seconds"]["merge"] + record["seconds"]["measure"]
    for reading in MEASURED:
        for name, value in record["measured"][reading].items():
            yield PredictorRow(joined, method, name, f"measured_{reading}", value, spent)


def coefficients(
    folder: Path, method: str, members: Sequence[str]
) -> Float64[np.ndarray, " model"] | None:
    """The merge as weights of the members' states and the base's, that one last.

    None where no combination stands for the method.
    """
    config = MergeConfiguration.model_validate(recipe(folder, method, members))
    built = build_recipe(config, {})
    found = recipe_coefficients(built).alpha
    if found is None:
        return None
    by_name = {Path(m.model.path).name: a for m, a in zip(built.models, found, strict=True)}
    return np.array([by_name.get(name, 0.0) for name in (*members, "base")])


def write(file: Path, rows: Iterable[Sequence[Any]]) -> None:
    """A table, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rough = file.with_name(f".{file.name}")
    with rough.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)
    rough.rename(file)


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def signal_rows(found: Iterable[PredictorRow]) -> Iterator[Sequence[Any]]:
    """Rows of predictors.csv with its header."""
    yield PredictorRow._fields
    for one in found:
        yield [*one[:4], _cell(one.value), f"{one.seconds:.3g}"]
