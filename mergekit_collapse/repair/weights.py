"""``on_violation: reweight``: the same experts, weighted so that the worst-off is best off."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from mergekit.common import ModelReference

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.material import Material
from mergekit_collapse.recipe.layer_weights import with_gradients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.reweighted import with_weights
from mergekit_collapse.remedy.reweighting import Reweighting, Terms, reweight, reweight_layers
from mergekit_collapse.repair.change import Change, NoRemedyError, deciding, told, usable_alpha
from mergekit_collapse.repair.changed_recipe import changed_recipe
from mergekit_collapse.repair.group_limits import owned_tasks
from mergekit_collapse.repair.remeasured import Assess, remeasured
from mergekit_collapse.shapes import Float64

Shares = Mapping[ModelReference, float]


def reweighted(assessment: Assessment, assess: Assess) -> Change:
    """Other weights, from the distances alone.

    Raises:
        NoRemedyError: the limit that is passed is not about the weights, or none will do.
        InvalidRecipeError: the recipe has no place for such weights.
        EvaluationError: a distance is NaN, or no weights prove themselves.
    """
    report, material = assessment.report, assessment.material
    assert material is not None
    recipe, geometry = report.recipe, deciding(report)
    _require_weights_matter(assessment)
    terms = recipe.compat.reweight
    wanted = Terms(terms.goal, terms.floor, recipe.compat.budget.distortion, keep_total=True)
    count, alpha = geometry.expert_count, usable_alpha(report)
    notes: list[str] = []
    if terms.per_layer:
        squared = _by_layer(material)
        own = None if alpha is None else np.tile(alpha, (len(squared), 1))
        layers = reweight_layers(squared, count, wanted, coefficients=own, names=recipe.names)
        config = with_gradients(recipe.config, [_shares(recipe, found) for found in layers])
        given_up = {i for found in layers for i in found.given_up}
        notes.append("each layer has weights of its own; the prediction takes their mean")
    else:
        owner = None
        squared = geometry.squared
        if recipe.compat.budget.over == "own_task":
            squared, owner = owned_tasks(geometry)
        found = reweight(
            squared, count, wanted, coefficients=alpha, owner=owner, names=recipe.names
        )
        if not found.feasible:
            raise NoRemedyError(found.reason or "no weights bring the recipe inside its limits")
        config = with_weights(recipe.config, _shares(recipe, found))
        given_up = set(found.given_up)
    changed = changed_recipe(recipe, config)
    names = tuple(recipe.names[i] for i in sorted(given_up))
    if names:
        notes.append(f"given up so that the others are inside the limit: {', '.join(names)}")
    notes += [changed.note] if changed.note else []
    return Change(remeasured(assessment, changed.recipe, assess), tuple(notes), names)


def _require_weights_matter(assessment: Assessment) -> None:
    report = assessment.report
    budget = report.recipe.compat.budget
    if others := [r for r in report.verdict.reasons if r.rule != "distortion"]:
        raise NoRemedyError(f"no weights change these readings: {told(others)}")
    if budget.rule != "weights":
        raise NoRemedyError(
            f"budget.rule: {budget.rule} judges the experts under the best weights there are, "
            f"and no others change it: {told(report.verdict.reasons)}; set budget.rule: weights "
            "to have the recipe's own weights judged"
        )


def _shares(recipe: Recipe, found: Reweighting) -> Shares:
    return {m: float(w) for m, w in zip(recipe.experts, found.weights, strict=True)}


def _by_layer(material: Material) -> Float64[np.ndarray, "layer model model"]:
    """D² after each layer alone, each in that layer's own scale."""
    space, recipe = material.states.hidden, material.recipe
    return np.stack(
        [
            measure(
                replace(space, layers=(layer,), values=(values,)),
                len(recipe.experts),
                material.probes.task_of_probe,
                [(task.name, task.owner) for task in material.hidden.own_task.tasks],
                scale=recipe.compat.scale,
                coefficients=None,
                seed=recipe.compat.probes.seed,
                models=recipe.model_names,
            ).squared
            for layer, values in zip(space.layers, space.values, strict=True)
        ]
    )
