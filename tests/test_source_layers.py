"""Which layer of each expert a layer of the merged model is held against."""

import pytest
from mergekit.config import MergeConfiguration

from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.recipe.source_layers import source_layers


def recipe(method="linear", **keys):
    config = MergeConfiguration.model_validate({"merge_method": method, **keys})
    return build_recipe(config, {})


def whole(*names):
    return [{"model": name, "parameters": {"weight": 1.0}} for name in names]


def part(**ranges):
    """A slice: the layers of each source, by its name."""
    return {
        "sources": [
            {"model": name, "layer_range": list(layers), "parameters": {"weight": 1.0}}
            for name, layers in ranges.items()
        ]
    }


def test_models_are_compared_layer_by_layer():
    found = source_layers(recipe(models=whole("a", "b")), [4, 4], 4)
    assert found == ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4))


def test_one_layer_is_the_first_and_the_last():
    assert source_layers(recipe(models=whole("a", "b")), [1, 1], 1) == ((0, 0), (1, 1))


def test_the_last_layer_is_compared_with_the_last_however_deep():
    """State 2 of the shallow one is after its final norm, which the merged state 2 is not."""
    found = source_layers(recipe(models=whole("a", "b")), [4, 2], 4)
    assert found == ((0, 0), (1, 1), (2, None), (3, None), (4, 2))
    found = source_layers(recipe(models=whole("a", "b")), [4, 2], 2)
    assert found == ((0, 0), (1, 1), (4, 2))


def test_slices_name_the_layers_themselves():
    found = source_layers(recipe(slices=[part(a=(0, 2), b=(2, 4))]), [6, 6], 2)
    assert found == ((0, 0), (1, 3), (6, 6))


def test_a_stack_of_slices_repeats_and_skips_layers():
    """Layers 0..2 of both, then 1..3 of a alone, then a's 4 with b's 5."""
    slices = [part(a=(0, 3), b=(0, 3)), part(a=(1, 4)), part(a=(4, 5), b=(5, 6))]
    found = source_layers(recipe(slices=slices), [6, 6], 7)
    assert found == (
        *((0, 0), (1, 1), (2, 2), (3, 3)),
        *((2, None), (3, None), (4, None)),
        (6, 6),
    )


def test_a_layer_that_was_an_experts_last_is_not_compared_inside_the_stack():
    slices = [part(a=(0, 2), b=(0, 2)), part(a=(0, 2), b=(0, 2))]
    found = source_layers(recipe(slices=slices), [2, 2], 4)
    # State 2 of a and b is known after the norm only, and merged state 2 has none.
    assert found == ((0, 0), (1, 1), (None, None), (1, 1), (2, 2))


def test_the_base_is_no_expert():
    slices = [part(base=(0, 2), a=(1, 3), b=(2, 4))]
    found = source_layers(recipe("task_arithmetic", base_model="base", slices=slices), [8, 8], 2)
    assert found == ((0, 0), (2, 3), (8, 8))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ({"models": whole("a", "b")}, ((0, 0), (1, 1), (2, 2), (4, 4))),
        ({"slices": [part(a=(0, 3), b=(1, 4))]}, ((0, 0), (1, 2), (2, 3), (4, 4))),
    ],
)
def test_one_module_is_the_stack(module, expected):
    assert source_layers(recipe(modules={"default": module}), [4, 4], 3) == expected


def test_all_modules_of_whole_models_are_compared_layer_by_layer():
    modules = {"encoder": {"models": whole("a", "b")}, "decoder": {"models": whole("a", "b")}}
    assert source_layers(recipe(modules=modules), [3, 3], 3) == ((0, 0), (1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("depth", [2, 3])
def test_of_several_stacks_only_the_ends_are_known(depth):
    """The layers counted may be either's, even where the number of layers fits one of them."""
    modules = {
        "encoder": {"slices": [part(a=(0, 2), b=(1, 3))]},
        "decoder": {"slices": [part(a=(1, 4), b=(0, 3))]},
    }
    found = source_layers(recipe(modules=modules), [4, 4], depth)
    assert found == ((0, 0), *[(None, None)] * (depth - 1), (4, 4))


def test_slices_of_another_number_of_layers_than_was_made_are_not_believed():
    found = source_layers(recipe(slices=[part(a=(0, 3), b=(0, 3))]), [6, 6], 2)
    assert found == ((0, 0), (None, None), (6, 6))
