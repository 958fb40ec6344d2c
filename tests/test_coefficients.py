"""Weights of a recipe as a combination of states, against MergeKit's own arithmetic."""

import numpy as np
import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import TensorGroup
from mergekit.merge_methods import get as merge_method

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.recipe import build_recipe


def coefficients(**recipe):
    return recipe_coefficients(build_recipe(MergeConfiguration.model_validate(recipe), {}))


def models(*weights, base=False):
    listed = [
        {"model": f"m{i}", "parameters": {} if w is None else {"weight": w}}
        for i, w in enumerate(weights)
    ]
    return {"models": listed, **({"base_model": "base"} if base else {})}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.2, 0.7), (2.0, 0.5)])
def test_task_arithmetic_is_what_mergekit_computes(weights, scale, normalize):
    found = coefficients(
        merge_method="task_arithmetic",
        parameters={"lambda": scale, "normalize": normalize},
        **models(*weights, base=True),
    )
    # Orthogonal tensors, so that MergeKit's result shows each coefficient.
    tensors = list(torch.eye(3, dtype=torch.float64))
    group = TensorGroup.from_tensors(tensors, ids=["m0", "m1", "base"], base_index=2)
    merged = merge_method("task_arithmetic").merge_group(
        group,
        weight=dict(zip(["m0", "m1"], weights, strict=True)),
        density={"m0": 1.0, "m1": 1.0},
        normalize=normalize,
        rescale=False,
        int8_mask=False,
        **{"lambda": scale},
    )
    assert found.exact
    np.testing.assert_allclose(found.alpha, merged.numpy(), atol=1e-12)


def test_linear_normalises():
    found = coefficients(merge_method="linear", **models(1, 3))
    np.testing.assert_allclose(found.alpha, [0.25, 0.75])
    assert found.exact
    assert found.weights == (1.0, 3.0)


def test_linear_without_normalising_stands_for_nothing_unless_the_sum_is_one():
    void = coefficients(merge_method="linear", parameters={"normalize": False}, **models(1, 1))
    assert void.alpha is None
    assert "sum to 2" in void.note
    fine = coefficients(merge_method="linear", parameters={"normalize": False}, **models(0.4, 0.6))
    np.testing.assert_allclose(fine.alpha, [0.4, 0.6])


def test_ties_is_called_an_approximation():
    found = coefficients(merge_method="ties", **models(1, 1, base=True))
    np.testing.assert_allclose(found.alpha, [0.5, 0.5, 0.0])
    assert not found.exact
    assert "without trimming" in found.note


@pytest.mark.parametrize(
    ("method", "note"),
    [
        ("weighted_karcher", "weighted_karcher averages directions, not tensors"),
        ("rescaled_mean", "rescaled_mean stretches the mean to the experts' norm"),
    ],
)
def test_the_means_of_directions_are_normalised_and_approximate(method, note):
    found = coefficients(merge_method=method, **models(1, 3))
    np.testing.assert_allclose(found.alpha, [0.25, 0.75])
    assert (found.weights, found.exact, found.note) == ((1.0, 3.0), False, note)
    # As with MergeKit's karcher, whose place it can take, a base is one of those averaged.
    alike = coefficients(merge_method=method, **models(None, None, base=True))
    karcher = coefficients(merge_method="karcher", **models(None, None, base=True))
    np.testing.assert_allclose(alike.alpha, karcher.alpha)
    assert alike.weights == (1.0, 1.0, 1.0)


def test_gradients_and_filters_of_a_karcher_weight_are_read():
    filtered = [{"filter": "mlp", "value": 5}, {"value": 0.5}]
    found = coefficients(merge_method="weighted_karcher", **models([0.0, 1.0], filtered))
    np.testing.assert_allclose(found.alpha, [0.5, 0.5])
    assert "gradient of weight" in found.note
    assert "filters of weight" in found.note


def test_a_negative_karcher_weight_is_told():
    with pytest.raises(
        InvalidRecipeError, match=r"'weight' has the value -1: .*\s.*greater than or"
    ):
        coefficients(merge_method="weighted_karcher", **models(-1, 1))


def test_slerp_goes_from_its_base():
    found = coefficients(
        merge_method="slerp",
        base_model="a",
        models=[{"model": "a"}, {"model": "b"}],
        parameters={"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.3}]},
    )
    np.testing.assert_allclose(found.alpha, [0.7, 0.3])
    assert "filters of t are left out" in found.note


def test_gradients_are_averaged_and_said():
    found = coefficients(merge_method="linear", **models([0.0, 1.0], 0.5))
    np.testing.assert_allclose(found.alpha, [0.5, 0.5])
    assert "gradient of weight" in found.note


def test_slices_are_averaged_by_their_layers():
    def part(low, high, first, second):
        return {
            "sources": [
                {"model": "a", "layer_range": [low, high], "parameters": {"weight": first}},
                {"model": "b", "layer_range": [low, high], "parameters": {"weight": second}},
            ]
        }

    found = coefficients(merge_method="linear", slices=[part(0, 3, 1, 0), part(3, 4, 0, 1)])
    np.testing.assert_allclose(found.alpha, [0.75, 0.25])
    assert "slices differ" in found.note


@pytest.mark.parametrize("method", ["model_stock", "sce", "nearswap", "arcee_fusion"])
def test_methods_that_choose_for_themselves_have_no_combination(method):
    names = 3 if method == "model_stock" else 2
    recipe = models(*[None] * names, base=True)
    if method in ("nearswap", "arcee_fusion"):
        recipe["models"] = recipe["models"][:1]
    found = coefficients(merge_method=method, parameters={"t": 0.5}, **recipe)
    assert found.alpha is None
    assert method in found.note


def test_a_missing_weight_is_told():
    with pytest.raises(InvalidRecipeError, match="models: m1: the parameter 'weight' is missing"):
        coefficients(merge_method="linear", **models(1, None))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), [0.5, float("nan")]])
def test_a_weight_that_is_not_finite_is_told(weight):
    with pytest.raises(InvalidRecipeError, match=r"'weight' has the value .* a finite number"):
        coefficients(merge_method="linear", **models(weight, 1))


def test_slices_of_several_bases_have_no_combination():
    def part(start, base):
        sources = [{"model": m, "layer_range": [start, start + 1]} for m in ("a", base)]
        return {"base_model": base, "sources": sources}

    found = coefficients(
        merge_method="task_arithmetic",
        slices=[part(0, "one"), part(1, "two")],
        parameters={"weight": 0.5},
    )
    assert found.alpha is None
    assert "only one is measured" in found.note


def test_a_weight_that_is_no_number_is_told():
    with pytest.raises(InvalidRecipeError, match="'weight' has the value 'much'"):
        coefficients(merge_method="linear", **models("much", 1))
