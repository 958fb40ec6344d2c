"""The limits of a block as a criterion for the models of a pool, each in any place of a recipe."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.rows import select_probes
from mergekit_collapse.geometry.scales import layer_scales
from mergekit_collapse.material import Material
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.group_reading import (
    GroupReading,
    ball_reading,
    corollary_reading,
    in_own_scale,
    weights_reading,
)
from mergekit_collapse.remedy.own_task_reading import (
    own_task_reading,
    own_task_weights_reading,
)
from mergekit_collapse.repair.change import NoRemedyError
from mergekit_collapse.repair.group_limits import owned_tasks
from mergekit_collapse.shapes import Float64, Int64


@dataclass(frozen=True)
class Lineup:
    """The rows of a criterion: the experts, then every candidate once for each place.

    A candidate takes over weight and tasks of the expert that it replaces, so that it reads
    otherwise in every place.

    Attributes:
        experts, pool: how many.
        model: of each row, its index among the experts and then the candidates.
        place: of each row, the expert in whose place it stands.
    """

    experts: int
    pool: int
    model: Int64[np.ndarray, " row"]
    place: Int64[np.ndarray, " row"]

    @classmethod
    def of(cls, experts: int, pool: int) -> "Lineup":
        """Rows for so many."""
        own = np.arange(experts)
        model = np.concatenate([own, np.tile(experts + np.arange(pool), experts)])
        return cls(experts, pool, model, np.concatenate([own, np.repeat(own, pool)]))

    @property
    def candidates(self) -> dict[int, range]:
        """Rows that may take each place."""
        first = self.experts
        return {s: range(first + s * self.pool, first + (s + 1) * self.pool) for s in range(first)}


def replacement_limits(measured: Assessment, lineup: Lineup, budget: BudgetBlock) -> Criterion:
    """What ``judging.judge`` holds against the recipe, with candidates in its places.

    Every group is read in its own scale, exactly where there is one layer; MDS does not depend
    on the scale.

    Args:
        measured: experts and candidates side by side, as one recipe.
        budget: of the recipe itself.

    Raises:
        NoRemedyError: the method's weights are not known, and ``rule: weights`` needs them.
        EvaluationError: a distance is NaN, or the reading is undefined for this recipe.
    """
    geometry, material = measured.report.deciding, measured.material
    assert geometry is not None
    assert material is not None
    rows = lineup.model
    part = np.ix_(rows, rows)
    difficulty = None
    if budget.mds is not None:
        chance = None if geometry.chance is None else geometry.chance[part]
        difficulty = DifficultyLimit(budget.mds, budget.similarity, geometry.distance[part], chance)
    reading = ball_reading(geometry.squared[part])
    if budget.distortion is not None:
        reading = _reading(geometry, material, lineup, budget)
    return Criterion(geometry.squared[part], reading, budget.distortion, difficulty)


def _reading(
    geometry: Geometry, material: Material, lineup: Lineup, budget: BudgetBlock
) -> GroupReading:
    rows = lineup.model
    every, shares, base = list(rows), None, None
    if budget.rule == "weights":
        shares = _shares(material, lineup)
        if len(geometry.squared) > geometry.expert_count:
            base = len(every)
            every.append(geometry.expert_count)
            shares = np.append(shares, 0.0)
    if budget.over == "own_task":
        tasks, owner = owned_tasks(geometry)
        found = tasks[:, every][:, :, every]
        spread = _own_spread(geometry, material)[:, rows]
        if shares is None:
            return own_task_reading(found, owner, lineup.place, spread)
        return own_task_weights_reading(
            found, owner, shares, base=base, stands_for=lineup.place, spread=spread
        )
    squared = geometry.squared[np.ix_(every, every)]
    if shares is not None:
        reading = weights_reading(squared, shares, base=base)
    elif budget.rule == "corollary":
        reading = corollary_reading(squared, geometry.dimension)
    else:
        reading = ball_reading(squared)
    return in_own_scale(reading, _spread(geometry, material)[rows])


def _shares(material: Material, lineup: Lineup) -> Float64[np.ndarray, " row"]:
    alpha = recipe_coefficients(material.recipe).alpha
    if alpha is None:
        raise NoRemedyError("rule: weights needs a method whose weights are known")
    shares: Float64[np.ndarray, " row"] = alpha[lineup.place]
    return shares


def _spread(geometry: Geometry, material: Material) -> Float64[np.ndarray, " model"]:
    """s² of every model, in shares of their mean."""
    every = np.arange(len(material.probes.task_of_probe), dtype=np.int64)
    found = _spread_on(geometry, material, every, "all probes")
    share: Float64[np.ndarray, " model"] = (found / found.mean(axis=1, keepdims=True)).mean(axis=0)
    return share


def _own_spread(geometry: Geometry, material: Material) -> Float64[np.ndarray, "task model"]:
    """s² of every model on each task that has an owner, in shares of the owner's."""
    shares = []
    for index, task in enumerate(geometry.own_task.tasks):
        if task.owner is not None:
            probes = np.flatnonzero(material.probes.task_of_probe == index).astype(np.int64)
            found = _spread_on(geometry, material, probes, f"task {task.name!r}")
            shares.append((found / found[:, [task.owner]]).mean(axis=0))
    return np.stack(shares)


def _spread_on(
    geometry: Geometry, material: Material, probes: Int64[np.ndarray, " probe"], subject: str
) -> Float64[np.ndarray, "layer model"]:
    states = material.states
    space = states.hidden if geometry.space == "hidden" else states.predictive
    assert space is not None
    scale = geometry.scale
    rows = select_probes(space, probes, unit=scale == "unit", models=states.models)
    even = np.full((1, len(probes)), 1 / len(probes))
    found = [
        [s.squared for s in layer_scales(rows, [model], scale, even, subject)]
        for model in range(geometry.expert_count)
    ]
    spread: Float64[np.ndarray, "layer model"] = np.array(found).T
    return spread
