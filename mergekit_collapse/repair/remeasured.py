"""The geometry and the verdict of a changed recipe, from states that are there already."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.caches import open_caches
from mergekit_collapse.evaluation.expert_scores import NOBODY, ExpertScores, StandIns
from mergekit_collapse.geometry.geometry import Geometry, measure
from mergekit_collapse.judging import judge
from mergekit_collapse.material import Material
from mergekit_collapse.recipe.coefficients import Coefficients, recipe_coefficients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.report.report import Report
from mergekit_collapse.states.states import SpaceStates


@runtime_checkable
class Assess(Protocol):
    """Measures a recipe from the start: ``assessment.assess`` with all else settled."""

    def __call__(self, recipe: Recipe, *, stand_ins: StandIns = NOBODY) -> Assessment:
        """What is known of the recipe before it is merged."""


def remeasured(assessment: Assessment, recipe: Recipe, assess: Assess) -> Assessment:
    """What the gate would find if the changed recipe were checked now.

    No model is run again, unless tasks left the block with their experts: how much each layer's
    activations spread is known over all probes only.

    Args:
        assessment: of the recipe before, with its material.
        recipe: merges some of the same models.
        assess: measures a recipe from the start.

    Raises:
        CompatError: as ``assess``, or a deciding reading is undefined.
    """
    material, report = assessment.material, assessment.report
    assert material is not None
    if len(recipe.owners) < len(material.recipe.owners):
        found = assess(recipe)
        return replace(found, report=replace(found.report, timing=_added(report, found.report)))
    material, coefficients = _restricted(material, recipe, report)
    measurement = report.measurement
    assert measurement is not None
    place = _places(report.recipe, recipe)
    tasks = tuple(
        replace(task, owner=None if task.owner is None else place[task.owner])
        for task in measurement.probe_set.tasks
    )
    measurement = replace(
        measurement,
        probe_set=replace(measurement.probe_set, tasks=tasks),
        hidden=material.hidden,
        predictive=material.predictive,
    )
    report = replace(report, recipe=recipe, coefficients=coefficients, measurement=measurement)
    geometry = report.deciding
    assert geometry is not None
    verdict = judge(geometry, recipe.compat.budget, recipe.names, warn_only=False)
    return Assessment(replace(report, verdict=verdict, geometry_verdict=verdict), material)


def _restricted(
    material: Material, recipe: Recipe, report: Report
) -> tuple[Material, Coefficients]:
    old, states = material.recipe, material.states
    models = [old.models.index(model) for model in recipe.models]
    place = _places(old, recipe)
    coefficients = recipe_coefficients(recipe)
    assert report.measurement is not None
    tasks = [
        (task.name, None if task.owner is None else place[task.owner])
        for task in report.measurement.probe_set.tasks
    ]

    def geometry_of(space: SpaceStates) -> Geometry:
        return measure(
            space,
            len(recipe.experts),
            material.probes.task_of_probe,
            tasks,
            scale=recipe.compat.scale,
            coefficients=coefficients.alpha,
            coefficients_reason=coefficients.note or "",
            seed=recipe.compat.probes.seed,
            models=recipe.model_names,
        )

    states = replace(
        states,
        models=recipe.model_names,
        expert_count=len(recipe.experts),
        hidden=_part(states.hidden, models),
        predictive=None if states.predictive is None else _part(states.predictive, models),
        layers=tuple(states.layers[i] for i in place) if states.layers else (),
    )
    scoring = replace(
        material.scoring,
        tasks=tuple(replace(task, owner=place[task.owner]) for task in material.scoring.tasks),
    )
    cached = open_caches(recipe.compat.cache).own_scores
    own = ExpertScores(scoring, recipe.experts, material.options, cached)
    own.scores.update(material.own_scores.scores)
    restricted = replace(
        material,
        recipe=recipe,
        states=states,
        hidden=geometry_of(states.hidden),
        predictive=None if states.predictive is None else geometry_of(states.predictive),
        scoring=scoring,
        own_scores=own,
    )
    return restricted, coefficients


def _places(old: Recipe, new: Recipe) -> dict[int, int]:
    """Index among the new experts of each old one that stays."""
    return {old.experts.index(model): i for i, model in enumerate(new.experts)}


def _part(space: SpaceStates, models: Sequence[int]) -> SpaceStates:
    if list(models) == list(range(len(space.values[0]))):
        return space
    # One model after the other, since all the states may lie in a file.
    values = tuple(np.stack([layer[model] for model in models]) for layer in space.values)
    return replace(space, values=values)


def _added(before: Report, after: Report) -> dict[str, float]:
    """Both measurements took their time."""
    stages = dict.fromkeys([*before.timing, *after.timing])
    return {s: before.timing.get(s, 0.0) + after.timing.get(s, 0.0) for s in stages}
