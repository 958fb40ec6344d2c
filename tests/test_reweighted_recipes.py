"""Recipes given other weights, members or methods, read back by the rules they are merged by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, MergeConfiguration
from mergekit.merge_methods import get as merge_method
from mergekit.parameter_resolver import resolve_parameters

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.layer_weights import with_gradients
from mergekit_collapse.recipe.members import (
    block_with_owner,
    block_without,
    with_replaced,
    without,
)
from mergekit_collapse.recipe.other_method import with_method
from mergekit_collapse.recipe.places import UnchangeableRecipeError
from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.recipe.reweighted import with_weights

pytestmark = pytest.mark.slow

GENERALIZED = [
    *("task_arithmetic", "ties", "dare_ties", "dare_linear", "della", "della_linear"),
    *("breadcrumbs", "breadcrumbs_ties"),
]
MEANS = ["linear", "weighted_karcher", "rescaled_mean", "multislerp"]


def ref(name):
    return ModelReference.parse(name)


def config(**recipe):
    return MergeConfiguration.model_validate(recipe)


def listed(*weights, **other):
    models = [
        {"model": f"m{i}", "parameters": {} if w is None else {"weight": w}}
        for i, w in enumerate(weights)
    ]
    return {"models": models, **other}


def shares(*values):
    return {ref(f"m{i}"): v for i, v in enumerate(values)}


def alpha(recipe):
    resolved = build_recipe(recipe, {})
    found = recipe_coefficients(resolved)
    return None if found.alpha is None else dict(zip(resolved.models, found.alpha, strict=True))


def at(recipe, tensor="", t=0.0, group=0):
    """What MergeKit's planner itself would resolve for one tensor of one slice."""
    groups = build_recipe(recipe, {}).groups
    definition = recipe.slices[group] if recipe.slices else None
    own = {s.model: s.parameters for s in groups[group].sources}
    reader = ConfigReader(config=recipe, t=t, slice_out=definition)
    method = merge_method(recipe.merge_method)

    def sources(model):
        given = () if definition or model is None else (own[model],)
        return (*given, *reader.parameter_sources(model))

    return resolve_parameters(
        method.spec,
        tensor_name=tensor,
        inputs=dict.fromkeys(own, tensor),
        sources=sources,
        base_model=groups[group].base,
        t=t,
    )


def weights_at(recipe, tensor="", t=0.0, group=0):
    return {str(m): p["weight"] for m, p in at(recipe, tensor, t, group)[1].items() if p}


SIMPLEX = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda values: [v / sum(values) for v in values]
)


@pytest.mark.parametrize("method", [*GENERALIZED, *MEANS])
@settings(max_examples=10, deadline=None)
@given(wanted=SIMPLEX, own=st.lists(st.floats(0.05, 3), min_size=3, max_size=3))
@pytest.mark.parametrize("normalize", [True, False])
def test_shares_come_back_from_every_method(method, normalize, wanted, own):
    recipe = listed(*own, merge_method=method)
    if method in GENERALIZED:
        recipe |= {"base_model": "base", "parameters": {"lambda": 0.7, "normalize": normalize}}
    elif method == "linear":
        recipe["parameters"] = {"normalize": normalize}
    elif method == "multislerp":
        recipe["parameters"] = {"normalize_weights": normalize}
    before = config(**recipe)
    untouched = before.model_dump()
    found = alpha(with_weights(before, shares(*wanted)))
    values = [found[ref(f"m{i}")] for i in range(3)]
    total = 1.0
    if method in GENERALIZED:
        total = 0.7 if normalize else 0.7 * sum(own)
        assert found[ref("base")] == pytest.approx(1 - total, abs=1e-9)
    np.testing.assert_allclose(values, np.multiply(total, wanted), atol=1e-9)
    assert before.model_dump() == untouched


@pytest.mark.parametrize("base", [None, "base"])
def test_nuslerp_takes_two_and_its_base_has_no_share(base):
    before = config(**listed(1, 3, merge_method="nuslerp", base_model=base))
    found = alpha(with_weights(before, shares(0.6, 0.4)))
    assert [found[ref("m0")], found[ref("m1")]] == pytest.approx([0.6, 0.4], abs=1e-9)


SLERP_T = [
    0.3,
    [0.0, 0.5, 1.0],
    [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"value": 0.6}],
    1,
    0,
    "3e-1",
]


@pytest.mark.parametrize("t", SLERP_T)
@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.9])
def test_slerp_keeps_t_between_its_ends(t, wanted):
    before = config(
        merge_method="slerp",
        base_model="m0",
        models=[{"model": "m0"}, {"model": "m1"}],
        parameters={"t": t},
    )
    after = with_weights(before, shares(1 - wanted, wanted))
    assert alpha(after)[ref("m1")] == pytest.approx(wanted, abs=1e-9)
    for tensor in ("", "self_attn.k"):
        for depth in np.linspace(0, 1, 9):
            assert 0 <= at(after, tensor, float(depth))[0]["t"] <= 1


def test_slerp_in_slices_changes_t_where_it_stands():
    part = {
        "sources": [
            {"model": "m0", "layer_range": [0, 4]},
            {"model": "m1", "layer_range": [0, 4]},
        ]
    }
    before = config(
        merge_method="slerp", base_model="m0", slices=[part], parameters={"t": [0.2, 0.4]}
    )
    after = with_weights(before, shares(0.85, 0.15))
    assert after.parameters == {"t": [pytest.approx(0.1), pytest.approx(0.2)]}
    assert after.slices == before.slices


def own_shares(recipe):
    resolved = build_recipe(recipe, {})
    found = recipe_coefficients(resolved).alpha[: len(resolved.experts)]
    return dict(zip(resolved.experts, (found / found.sum()).tolist(), strict=True))


VARIED = {
    "gradients": listed([0, 1], [0.5, 0.2, 0.9], 1, merge_method="linear"),
    "filters": listed(
        [{"filter": "mlp", "value": [0.1, 0.3]}, {"value": 0.4}],
        0.3,
        0.2,
        merge_method="ties",
        base_model="base",
        parameters={"normalize": False, "lambda": [0.5, 1.0]},
    ),
    "inherited": listed(
        None,
        [{"filter": "mlp", "value": 0.9}],
        0.1,
        merge_method="linear",
        parameters={"weight": [{"filter": "norm", "value": 2}, {"value": [0.2, 0.6]}]},
    ),
    "default": listed(None, 2, None, merge_method="weighted_karcher"),
    "text": listed("1e-1", "2e-1", "4e-1", merge_method="linear"),
    "module": {
        "merge_method": "linear",
        "modules": {"decoder": {**listed(None, 1, 2), "parameters": {"weight": 0.5}}},
    },
}


@pytest.mark.parametrize("name", VARIED)
def test_own_shares_change_nothing(name):
    before = config(**VARIED[name])
    after = with_weights(before, own_shares(before))
    assert alpha(after) == pytest.approx(alpha(before), abs=1e-12)
    assert after == before


@pytest.mark.parametrize("name", VARIED)
@settings(max_examples=10, deadline=None)
@given(wanted=SIMPLEX)
def test_what_gradients_and_filters_say_is_scaled_alike_for_every_tensor(name, wanted):
    before = config(**VARIED[name])
    after = with_weights(before, shares(*wanted))
    found = own_shares(after)
    assert [found[ref(f"m{i}")] for i in range(3)] == pytest.approx(wanted, abs=1e-9)
    if before.modules:
        return
    ratios = {m: set() for m in ("m0", "m1", "m2")}
    for tensor in ("", "mlp.up", "norm", "mlp.norm"):
        for depth in (0.0, 0.25, 1.0):
            old, new = weights_at(before, tensor, depth), weights_at(after, tensor, depth)
            for model, seen in ratios.items():
                if old[model]:
                    seen.add(new[model] / old[model])
                else:
                    assert new[model] == 0
    for seen in ratios.values():
        assert max(seen) == pytest.approx(min(seen), rel=1e-9)


def test_a_weight_of_zero_becomes_a_number():
    after = with_weights(config(**listed(0, 1, merge_method="linear")), shares(0.25, 0.75))
    assert own_shares(after) == pytest.approx(shares(0.25, 0.75))
    hidden = [{"filter": "mlp", "value": 1}, {"value": 0}]
    with pytest.raises(UnchangeableRecipeError, match="averages to 0"):
        with_weights(config(**listed(hidden, 1, merge_method="linear")), shares(0.25, 0.75))


def test_a_base_that_only_mergekit_adds_is_written_down():
    recipe = listed(1, 1, merge_method="linear", base_model="m2", parameters={"weight": 1})
    after = with_weights(config(**recipe), shares(0.5, 0.25, 0.25))
    assert own_shares(after) == pytest.approx(shares(0.5, 0.25, 0.25))
    assert [str(m.model) for m in after.models] == ["m0", "m1", "m2"]


def test_weights_that_cancel_or_lie_beside_the_sum_of_one_become_the_shares():
    for own in ((1, 1), (-1, 1)):
        recipe = listed(*own, merge_method="linear", parameters={"normalize": False})
        after = with_weights(config(**recipe), shares(0.25, 0.75))
        assert weights_at(after) == pytest.approx({"m0": 0.25, "m1": 0.75})


def part(low, high, **weights):
    sources = [
        {
            "model": m,
            "layer_range": [low, high],
            "parameters": {} if w is None else {"weight": w},
        }
        for m, w in weights.items()
    ]
    return {"sources": sources}


def test_slices_keep_their_differences():
    before = config(
        merge_method="linear", slices=[part(0, 3, m0=1, m1=3), part(3, 4, m0=[0.5, 1], m1=0.1)]
    )
    after = with_weights(before, shares(0.6, 0.4))
    assert own_shares(after) == pytest.approx(shares(0.6, 0.4), abs=1e-9)
    for index in (0, 1):
        old, new = weights_at(before, group=index), weights_at(after, group=index)
        assert old["m0"] != pytest.approx(new["m0"])
        # Sinkhorn's mark: the odds change by one factor in all slices.
        odds = (new["m0"] / new["m1"]) / (old["m0"] / old["m1"])
        first = weights_at(after)["m0"] / weights_at(after)["m1"] * 3
        assert odds == pytest.approx(first)


def test_slices_that_cannot_give_the_shares_say_so():
    before = config(merge_method="linear", slices=[part(0, 2, m0=1, m1=1), part(2, 4, m0=1, m2=1)])
    fine = with_weights(before, shares(0.4, 0.35, 0.25))
    assert own_shares(fine) == pytest.approx(shares(0.4, 0.35, 0.25), abs=1e-9)
    with pytest.raises(UnchangeableRecipeError, match="not every slice merges every expert"):
        with_weights(before, shares(0.1, 0.8, 0.1))


@pytest.mark.parametrize(
    "method",
    ["karcher", "model_stock", "sce", "nearswap", "arcee_fusion", "passthrough", "ram"],
)
def test_methods_without_weights_name_some_that_have(method):
    recipe = listed(None, None, merge_method=method, base_model="base")
    if method in ("nearswap", "arcee_fusion", "passthrough"):
        recipe = listed(None, merge_method=method, base_model="base", parameters={"t": 1})
    resolved = build_recipe(before := config(**recipe), {})
    equal = dict.fromkeys(resolved.experts, 1 / len(resolved.experts))
    with pytest.raises(UnchangeableRecipeError, match=f"{method} has no .* weighted_karcher"):
        with_weights(before, equal)


@pytest.mark.parametrize(
    "wanted",
    [shares(1.0), shares(0.5, 0.4), shares(1.5, -0.5), shares(float("nan"), 0.5)],
)
def test_shares_are_convex_and_of_every_expert(wanted):
    with pytest.raises(InvalidRecipeError, match="shares"):
        with_weights(config(**listed(1, 1, merge_method="linear")), wanted)


def test_task_vectors_that_are_subtracted_have_no_shares():
    recipe = config(**listed(1, -2, merge_method="task_arithmetic", base_model="base"))
    with pytest.raises(UnchangeableRecipeError, match="positive sum"):
        with_weights(recipe, shares(0.5, 0.5))


LAYERS = [shares(0.9, 0.1), shares(0.5, 0.5), shares(0.25, 0.75), shares(0.0, 1.0)]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "weighted_karcher"])
def test_gradients_give_every_layer_its_weights(method):
    base = {"base_model": "base"} if method == "task_arithmetic" else {}
    before = config(**listed([0.5, 1.5], [1.0, 1.0], merge_method=method, **base))
    after = with_gradients(before, LAYERS)
    for index, wanted in enumerate(LAYERS):
        depth = index / (len(LAYERS) - 1)
        total = sum(weights_at(before, t=depth).values())
        expected = {str(m): total * share for m, share in wanted.items()}
        assert weights_at(after, t=depth) == pytest.approx(expected, abs=1e-9)


def test_gradients_scale_filters_layer_by_layer_and_name_the_head():
    filtered = [{"filter": "mlp", "value": 2.0}, {"value": 1.0}]
    before = config(**listed(filtered, 1.0, merge_method="linear"))
    after = with_gradients(before, LAYERS, {"lm_head": LAYERS[-1]})
    for index, wanted in enumerate(LAYERS):
        depth = index / 3
        assert weights_at(after, "mlp", depth)["m0"] == pytest.approx(4 * wanted[ref("m0")])
        assert weights_at(after, "attn", depth)["m0"] == pytest.approx(2 * wanted[ref("m0")])
    # Without its name, the head is at depth 0 for MergeKit and has the first layer's.
    assert weights_at(after, "lm_head.weight") == pytest.approx({"m0": 0.0, "m1": 2.0})


def test_gradients_of_slices_and_of_slerp():
    before = config(
        merge_method="slerp",
        base_model="m0",
        slices=[part(0, 3, m0=None, m1=None), part(3, 4, m0=None, m1=None)],
        parameters={"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    )
    after = with_gradients(before, LAYERS)
    found = [at(after, t=t, group=g)[0]["t"] for g, t in ((0, 0.0), (0, 0.5), (0, 1.0), (1, 1.0))]
    assert found == pytest.approx([0.1, 0.5, 0.75, 1.0])
    assert 0 <= at(after, "mlp", 0.5)[0]["t"] <= 1
    with pytest.raises(InvalidRecipeError, match="for 3 layers; the slices have 4"):
        with_gradients(before, LAYERS[:3])


def test_dropping_leaves_the_others_as_they_are():
    before = config(
        **listed([0.1, 0.2], 2, 1, merge_method="ties", base_model="base"),
        tokenizer_source="m2",
    )
    after = without(before, {ref("m1")})
    assert [str(m.model) for m in after.models] == ["m0", "m2"]
    assert after.models[0] == before.models[0]
    assert build_recipe(after, {}).base == ref("base")


def test_dropping_keeps_the_sum_where_nothing_normalises():
    recipe = listed(0.2, 0.3, 0.5, merge_method="linear", parameters={"normalize": False})
    assert weights_at(without(config(**recipe), [ref("m2")])) == pytest.approx(
        {"m0": 0.4, "m1": 0.6}
    )


@pytest.mark.parametrize(
    ("recipe", "gone", "told"),
    [
        (listed(1, 1, merge_method="linear"), "m0", "leaves m1, and a merge takes two"),
        (listed(1, 1, 1, merge_method="linear", base_model="m0"), "m0", "is a base_model"),
        (
            listed(None, None, None, merge_method="model_stock", base_model="base"),
            "m0",
            None,
        ),
        (
            {
                "merge_method": "linear",
                "slices": [part(0, 2, m0=1, m1=1, m2=1), part(2, 4, m0=1)],
            },
            "m0",
            "no source is left",
        ),
        (
            {"merge_method": "linear", "slices": [part(0, 2, m0=1, m1=1), part(2, 4, m2=1, m3=1)]},
            "m0",
            "a slice has one source only",
        ),
        (
            listed(
                *(1, 1, 1),
                merge_method="linear",
                tokenizer={"source": "union", "tokens": {"<x>": {"source": "m0"}}},
            ),
            "m0",
            "gives tokens",
        ),
    ],
)
def test_what_cannot_be_dropped(recipe, gone, told):
    if told is None:
        assert len(without(config(**recipe), {ref(gone)}).models) == 2
        return
    with pytest.raises(UnchangeableRecipeError, match=told):
        without(config(**recipe), {ref(gone)})
    with pytest.raises(InvalidRecipeError, match="no expert"):
        without(config(**recipe), {ref("elsewhere")})


def test_a_replacement_stands_wherever_the_expert_stood():
    before = config(
        merge_method="slerp",
        base_model="m0",
        slices=[part(0, 2, m0=None, m1=None)],
        parameters={"t": 0.3},
        tokenizer={
            "source": "base",
            "tokens": {"<x>": {"source": {"kind": "model_token", "model": "m0", "token": "y"}}},
        },
    )
    after = with_replaced(before, ref("m0"), ref("new"))
    assert "m0" not in after.to_yaml()
    assert alpha(after) == {ref("new"): pytest.approx(0.7), ref("m1"): pytest.approx(0.3)}
    with pytest.raises(UnchangeableRecipeError, match="has it already"):
        with_replaced(before, ref("m0"), ref("m1"))
    with pytest.raises(InvalidRecipeError, match="no expert"):
        with_replaced(before, ref("x"), ref("y"))


def test_the_block_follows_its_experts():
    tasks = [
        {"name": n, "data": f"{n}.txt", **({"model": m} if m else {})}
        for n, m in (("a", "m0"), ("b", "m1"), ("c", None))
    ]
    block = {"probes": {"tasks": tasks}}
    left = block_without(block, (0, 1, None), {0})
    assert [t["name"] for t in left["probes"]["tasks"]] == ["b", "c"]
    assert block_with_owner(block, (0, 1, None), 1, ref("new"))["probes"]["tasks"][1] == {
        **{"name": "b", "data": "b.txt", "model": "new"}
    }
    assert len(block["probes"]["tasks"]) == 3
    assert block_without({}, (), {0}) == {}
    only = {"probes": {"builtin": False, "tasks": tasks[:1]}}
    with pytest.raises(UnchangeableRecipeError, match="leaves no probes"):
        block_without(only, (0,), {0})


def test_the_karcher_mean_keeps_weights_and_leaves_the_base():
    before = config(
        **listed([0.2, 0.4], 1, merge_method="dare_ties", base_model="base"),
        parameters={"density": 0.5, "lambda": 0.9, "normalize": True},
        tokenizer_source="base",
    )
    before.models[0].parameters["density"] = 0.3
    after = with_method(before, "weighted_karcher")
    assert build_recipe(after, {}).experts == (ref("m0"), ref("m1"))
    assert (after.base_model, after.parameters) == (None, None)
    assert after.tokenizer_source == ref("base")
    assert after.models[0].parameters == {"weight": [0.2, 0.4]}
    assert own_shares(after) == pytest.approx(own_shares(before))


def test_the_base_leaves_slices_too():
    before = config(
        merge_method="task_arithmetic",
        base_model="base",
        slices=[part(0, 2, base=None, m0=1, m1=2), part(2, 4, m0=1, base=None, m1=1)],
    )
    after = with_method(before, "weighted_karcher")
    assert [[str(s.model) for s in p.sources] for p in after.slices] == [["m0", "m1"]] * 2
    one = config(
        merge_method="task_arithmetic", base_model="base", slices=[part(0, 2, base=None, m0=1)]
    )
    with pytest.raises(UnchangeableRecipeError, match="without the base"):
        with_method(one, "weighted_karcher")


@pytest.mark.parametrize("t", SLERP_T)
@pytest.mark.parametrize("method", ["linear", "weighted_karcher"])
def test_slerps_position_becomes_weights(t, method):
    before = config(
        merge_method="slerp",
        base_model="m0",
        models=[{"model": "m0"}, {"model": "m1"}],
        parameters={"t": t},
    )
    after = with_method(before, method)
    assert own_shares(after) == pytest.approx(own_shares(before), abs=1e-9)
    for depth in (0.0, 0.3, 1.0):
        found = weights_at(after, "self_attn", depth)
        assert found["m1"] == pytest.approx(at(before, "self_attn", depth)[0]["t"])
        assert found["m0"] + found["m1"] == pytest.approx(1)


def test_what_no_mean_can_be_made_of():
    negative = config(**listed(1, -0.5, merge_method="task_arithmetic", base_model="base"))
    with pytest.raises(UnchangeableRecipeError, match="not negative"):
        with_method(negative, "weighted_karcher")
    plain = config(**listed(None, None, merge_method="karcher", parameters={"max_iter": 5}))
    after = with_method(plain, "weighted_karcher")
    assert own_shares(after) == pytest.approx(shares(0.5, 0.5))
    assert weights_at(with_method(plain, "linear")) == {"m0": 1.0, "m1": 1.0}
    with pytest.raises(UnchangeableRecipeError, match="does not average"):
        with_method(plain, "ties")
    stack = config(merge_method="passthrough", slices=[part(0, 2, m0=None), part(2, 3, m1=None)])
    with pytest.raises(UnchangeableRecipeError, match="merges nothing"):
        with_method(stack, "weighted_karcher")
