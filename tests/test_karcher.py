"""The weighted Karcher mean: its theorems, a full-dimension reference, and MergeKit's planner."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from mergekit.merge_methods import get, merge_tensors, registered_methods
from safetensors.torch import load_file

from mergekit_collapse import karcher
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.karcher import karcher_mean, rescaled_mean
from mergekit_collapse.merge_methods import NAMES, register_methods

register_methods()


def draw(count, *shape, seed=0, spread=1.0, dtype=torch.float64):
    """Tensors around a common one, in which they differ by ``spread`` of its size."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(base + spread * each).to(dtype) for each in noise]


def units(tensors):
    return [t.double() / t.double().norm() for t in tensors]


def log(p, q):
    """Straight from the formula, in full dimension."""
    cosine = torch.dot(p.flatten(), q.flatten()).clamp(-1, 1)
    angle = torch.arccos(cosine)
    return (q - cosine * p) * (1.0 if angle == 0 else angle / torch.sin(angle))


def reference(tensors, weights, steps=200):
    alpha = np.array(weights) / np.sum(weights)
    points = units(tensors)
    mean = sum(a * u for a, u in zip(alpha, points, strict=True))
    mean = mean / mean.norm()
    for _ in range(steps):
        v = sum(a * log(mean, u) for a, u in zip(alpha, points, strict=True))
        if v.norm() < 1e-13:
            break
        mean = torch.cos(v.norm()) * mean + torch.sinc(v.norm() / torch.pi) * v
        mean = mean / mean.norm()
    return mean * sum(a * t.double().norm() for a, t in zip(alpha, tensors, strict=True))


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


weighted = st.lists(st.floats(0.05, 5), min_size=2, max_size=6)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(weighted, seeds, st.floats(0.01, 3))
def test_the_gradient_vanishes_at_the_mean(weights, seed, spread):
    tensors = draw(len(weights), 9, 7, seed=seed, spread=spread)
    mean = karcher_mean(tensors, weights)
    assert mean.converged
    assert mean.residual <= 1e-10
    alpha = np.array(weights) / sum(weights)
    [p] = units([mean.tensor])
    pull = sum(a * log(p, u) for a, u in zip(alpha, units(tensors), strict=True))
    assert pull.norm() < 1e-9
    assert mean.tensor.norm() == pytest.approx(
        float(sum(a * t.norm() for a, t in zip(alpha, tensors, strict=True)))
    )
    combined = sum(c * t for c, t in zip(mean.coefficients, tensors, strict=True))
    torch.testing.assert_close(mean.tensor, combined)


def test_no_nearby_direction_is_closer():
    tensors, weights = draw(4, 50), [0.4, 0.3, 0.2, 0.1]

    def squared_distance(p):
        cosines = [torch.dot(p / p.norm(), u).clamp(-1, 1) for u in units(tensors)]
        return sum(w * torch.arccos(c) ** 2 for w, c in zip(weights, cosines, strict=True))

    mean = karcher_mean(tensors, weights).tensor
    for step in draw(20, 50, seed=1):
        assert squared_distance(mean + 0.02 * step) > squared_distance(mean)


@settings(max_examples=40, deadline=None)
@given(weighted, seeds, st.floats(0.01, 3))
def test_it_agrees_with_the_iteration_in_full_dimension(weights, seed, spread):
    tensors = draw(len(weights), 9, 7, seed=seed, spread=spread)
    assert error(karcher_mean(tensors, weights).tensor, reference(tensors, weights)) < 1e-9


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_two_tensors_give_slerp(t, spread):
    tensors = draw(2, 40, spread=spread)
    mean = karcher_mean(tensors, [1 - t, t])
    slerp = merge_tensors(units(tensors), "slerp", parameters={"t": t}, base_index=0)
    norm = (1 - t) * tensors[0].norm() + t * tensors[1].norm()
    # MergeKit's slerp is the line where the angle is small.
    assert error(mean.tensor, slerp * norm) < (1e-4 if spread == 0.01 else 1e-6)
    assert mean.iterations <= 3


def test_mergekits_karcher_is_the_case_of_equal_weights():
    tensors = draw(3, 30, 20, spread=0.3)
    theirs = merge_tensors(tensors, "karcher", parameters={"tol": 1e-12, "max_iter": 50})
    assert error(karcher_mean(tensors).tensor, theirs) < 1e-9


def test_rotation_permutation_and_scale():
    tensors, weights = draw(3, 12, seed=3), [1.0, 2.0, 3.0]
    mean = karcher_mean(tensors, weights).tensor
    turn, _ = torch.linalg.qr(draw(1, 12, 12, seed=4)[0])
    turned = karcher_mean([turn @ t for t in tensors], weights).tensor
    torch.testing.assert_close(turned, turn @ mean, rtol=1e-8, atol=1e-10)
    swapped = karcher_mean([tensors[i] for i in (2, 0, 1)], [3.0, 1.0, 2.0]).tensor
    torch.testing.assert_close(swapped, mean)
    torch.testing.assert_close(karcher_mean(tensors, [10.0, 20.0, 30.0]).tensor, mean)
    grown = karcher_mean([tensors[0] * 50, *tensors[1:]], weights).tensor
    torch.testing.assert_close(units([grown]), units([mean]))
    assert grown.norm() - mean.norm() == pytest.approx(float(49 * tensors[0].norm() / 6))


@pytest.mark.parametrize("method", [karcher_mean, rescaled_mean])
def test_chunks_make_no_difference(method, monkeypatch):
    tensors = draw(3, 3000)

    def run():
        found = method(tensors, [1.0, 2.0, 4.0])
        return getattr(found, "tensor", found)

    whole = run()
    monkeypatch.setattr(karcher, "_SCRATCH_ELEMENTS", 1)  # chunks of 1024
    torch.testing.assert_close(run(), whole)


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-10), (torch.float32, 4e-8), (torch.float16, 4e-4), (torch.bfloat16, 3e-3)],
)
def test_a_result_is_rounded_once(dtype, limit):
    tensors, weights = draw(3, 200, 300, spread=0.1, dtype=dtype), [1.0, 2.0, 3.0]
    exact = reference(tensors, weights, steps=20)
    found = karcher_mean(tensors, weights).tensor
    assert found.dtype == dtype
    assert error(found, exact) < limit
    # As good as the dtype allows.
    assert error(found, exact) <= 1.01 * error(exact.to(dtype), exact) + 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mergekits_karcher_is_no_closer(dtype):
    tensors = draw(3, 200, 300, spread=0.1, dtype=dtype)
    exact = reference(tensors, [1.0, 1.0, 1.0], steps=20)
    theirs = error(merge_tensors(tensors, "karcher"), exact)
    assert error(karcher_mean(tensors).tensor, exact) <= theirs


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_shape_and_identical_tensors(shape, dtype):
    [tensor] = draw(1, *shape, dtype=dtype)
    for count in (1, 2, 5):
        mean = karcher_mean(
            [tensor.clone() for _ in range(count)], [float(i + 1) for i in range(count)]
        )
        assert mean.converged
        for found in (mean.tensor, rescaled_mean([tensor] * count)):
            assert (found.shape, found.dtype) == (tensor.shape, dtype)
            torch.testing.assert_close(found, tensor)


def test_one_tensor_comes_back_as_it_is_and_is_a_copy():
    [tensor] = draw(1, 100, dtype=torch.bfloat16)
    mean = karcher_mean([tensor], [7.0]).tensor
    assert torch.equal(mean, tensor)
    assert mean.data_ptr() != tensor.data_ptr()


def test_inputs_are_left_alone_whatever_their_strides_or_gradients():
    tensors = [t.T.requires_grad_() for t in draw(3, 6, 4)]
    before = [t.detach().clone() for t in tensors]
    mean = karcher_mean(tensors).tensor
    assert not mean.requires_grad
    torch.testing.assert_close(mean, karcher_mean([t.contiguous() for t in before]).tensor)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


def test_a_weight_of_zero_drops_an_input_unread():
    tensors = draw(3, 20)
    lost = torch.full((20,), float("nan"), dtype=torch.float64)
    kept = karcher_mean(tensors, [1.0, 2.0, 3.0])
    mean = karcher_mean([tensors[0], lost, *tensors[1:]], [1.0, 0.0, 2.0, 3.0])
    assert torch.equal(mean.tensor, kept.tensor)
    assert mean.coefficients[1] == 0
    alone = karcher_mean([*tensors, lost], [0.0, 0.0, 5.0, 0.0]).tensor
    assert torch.equal(alone, tensors[2])
    assert torch.equal(rescaled_mean([*tensors, lost], [0.0, 0.0, 5.0, 0.0]), tensors[2])


def test_a_tensor_of_zeros_counts_in_the_norm_alone():
    one, two = draw(2, 20)
    zero = torch.zeros_like(one)
    with_zero = karcher_mean([one, zero, two], [1.0, 2.0, 1.0]).tensor
    torch.testing.assert_close(with_zero, karcher_mean([one, two]).tensor / 2)
    for found in (karcher_mean([zero, zero]), karcher_mean([zero, one], [1.0, 0.0])):
        assert torch.equal(found.tensor, zero)
        assert found.converged
    assert torch.equal(rescaled_mean([zero, zero]), zero)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_of_two_opposite_tensors_the_heavier_gives_the_direction(dtype):
    [tensor] = draw(1, 20, dtype=dtype)
    pair = [tensor, -tensor]
    for weights, expected in (([1.0, 1.0], tensor), ([1.0, 2.0], -tensor), ([3.0, 1.0], tensor)):
        mean = karcher_mean(pair, weights)
        assert mean.antipodal
        assert not mean.converged
        torch.testing.assert_close(mean.tensor, expected)
        torch.testing.assert_close(rescaled_mean(pair, weights), expected)


def test_nearly_opposite_tensors_have_a_mean_between_them():
    angle = torch.tensor(np.pi - 1e-3, dtype=torch.float64)
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    two = torch.stack([torch.cos(angle), torch.sin(angle)])
    mean = karcher_mean([one, two], [3.0, 1.0])
    assert mean.converged
    quarter = torch.stack([torch.cos(angle / 4), torch.sin(angle / 4)])
    torch.testing.assert_close(mean.tensor, quarter, rtol=1e-6, atol=1e-6)


def test_directions_that_cancel_are_decided_by_the_first_of_equals():
    turns = [torch.tensor([np.cos(a), np.sin(a)]) for a in np.arange(3) * 2 * np.pi / 3]
    mean = karcher_mean(turns)
    torch.testing.assert_close(mean.tensor, turns[0], rtol=1e-6, atol=1e-6)
    assert not mean.antipodal
    torch.testing.assert_close(rescaled_mean(turns), turns[0])


def test_steps_tolerance_and_length_are_heeded():
    tensors = draw(5, 30, spread=3)
    full = karcher_mean(tensors, [1.0, 2.0, 3.0, 4.0, 5.0])
    short = karcher_mean(tensors, [1.0, 2.0, 3.0, 4.0, 5.0], max_iter=1)
    assert (short.iterations, short.converged) == (1, False)
    rough = karcher_mean(tensors, [1.0, 2.0, 3.0, 4.0, 5.0], tol=1e-2)
    assert rough.iterations < full.iterations
    slow = karcher_mean(tensors, [1.0, 2.0, 3.0, 4.0, 5.0], eta=0.5)
    assert slow.iterations > full.iterations
    torch.testing.assert_close(slow.tensor, full.tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [karcher_mean, rescaled_mean])
def test_nan_and_infinity_are_refused(method, bad):
    tensors = draw(3, 20)
    tensors[1][7] = bad
    with pytest.raises(EvaluationError, match=r"inputs \[1\], counted from 0, hold NaN"):
        method(tensors)


@pytest.mark.parametrize("method", [karcher_mean, rescaled_mean])
def test_what_cannot_be_averaged_is_refused(method):
    one, two = draw(2, 20)
    for tensors in ([], [one, two[:5]], [one, two.float()], [one.int(), two.int()]):
        with pytest.raises(EvaluationError, match="of one shape, dtype and device"):
            method(tensors)
    for weights in ([1.0], [1.0, -0.5], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(InvalidRecipeError, match="a finite weight of 0 or more"):
            method([one, two], weights)
    with pytest.raises(InvalidRecipeError, match="all 0"):
        method([one, two], [0.0, 0.0])


@pytest.mark.parametrize(
    "wrong",
    [{"eta": 0.0}, {"eta": float("nan")}, {"tol": -1.0}, {"tol": float("nan")}, {"max_iter": 0}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InvalidRecipeError, match="give a finite eta above 0"):
        karcher_mean(draw(2, 5), **wrong)


def test_the_rescaled_mean_is_the_mean_at_the_mean_norm():
    tensors, weights = draw(3, 20), [1.0, 2.0, 5.0]
    found = rescaled_mean(tensors, weights)
    linear = merge_tensors(tensors, "linear", parameters={"weight": weights})
    torch.testing.assert_close(units([found]), units([linear]))
    norm = sum(w * t.norm() for w, t in zip(weights, tensors, strict=True)) / 8
    torch.testing.assert_close(found.norm(), norm)


# --- in MergeKit -------------------------------------------------------------------------------


def test_both_are_registered_once_with_names_and_defaults():
    register_methods()
    listed = [method.spec.name for method in registered_methods()]
    assert all(listed.count(name) == 1 for name in NAMES)
    spec = get("weighted_karcher").spec
    assert spec.pretty_name == "Weighted Karcher Mean"
    assert spec.reference_url == "https://arxiv.org/abs/2603.04972"
    defaults = {p.name: p.default for p in spec.parameters}
    assert defaults == {"weight": 1.0, "eta": 1.0, "tol": 1e-10, "max_iter": 100}
    assert get("rescaled_mean").spec.pretty_name == "Rescaled Mean"


def test_an_error_names_the_tensor_and_the_models():
    tensors = draw(2, 5)
    tensors[1][0] = float("nan")
    for name in NAMES:
        with pytest.raises(EvaluationError, match=r"^mlp: inputs \[1\].*\(inputs: left, right\)$"):
            merge_tensors(tensors, name, name="mlp", ids=["left", "right"])
    with pytest.raises(InvalidRecipeError, match=r"^mlp: the weights are all 0"):
        merge_tensors(draw(2, 5), "weighted_karcher", name="mlp", parameters={"weight": 0})


def test_a_mean_that_is_undefined_or_unfinished_is_said(caplog):
    [one] = draw(1, 5)
    merge_tensors([one, -one], "weighted_karcher", name="mlp")
    assert "mlp: inputs are opposite; the heaviest decides" in caplog.text
    merge_tensors(draw(4, 9, spread=3), "weighted_karcher", name="head", parameters={"max_iter": 1})
    assert "head: the Karcher mean is " in caplog.text


def recipe(models, **more):
    listed = [
        {"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, (1, 3), strict=True)
    ]
    return MergeConfiguration.model_validate({"models": listed, "dtype": "float32"} | more)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_merged(name, tiny_model, variant, tmp_path):
    base = tiny_model("llama")
    models = [variant(base, 0.3, 1), variant(base, 0.3, 2)]
    run_merge(recipe(models, merge_method=name), str(tmp_path / "out"), MergeOptions())
    merged = load_file(tmp_path / "out" / "model.safetensors")
    one, two = (load_file(m / "model.safetensors") for m in models)
    assert merged.keys() == one.keys()
    for key, tensor in merged.items():
        pair = [one[key], two[key]]
        mean = karcher_mean(pair, [1.0, 3.0]).tensor
        expected = rescaled_mean(pair, [1.0, 3.0]) if name == "rescaled_mean" else mean
        assert torch.equal(tensor, expected), key
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert get(name).spec.pretty_name in card


@pytest.mark.parametrize(
    ("parameters", "said"), [({"eta": 0}, "greater than 0"), ({"max_iter": 0}, "or equal to 1")]
)
def test_a_wrong_parameter_stops_the_planner(parameters, said, tiny_model, tmp_path):
    config = recipe(
        [tiny_model("llama"), tiny_model("llama", 1)],
        merge_method="weighted_karcher",
        parameters=parameters,
    )
    with pytest.raises(ValueError, match=said):
        run_merge(config, str(tmp_path / "out"), MergeOptions())
    assert not list(tmp_path.glob("out/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import mergekit.merge_methods",
        "from mergekit.merge_methods import registry",
        "import mergekit.merge",
        "import mergekit_collapse.merge_methods as m, mergekit.merge_methods; m.register_methods()",
        "import mergekit_collapse.recipe.coefficients",
    ],
)
def test_they_are_there_whenever_mergekits_methods_are(code):
    code += (
        "\nfrom mergekit.merge_methods import get\nget('weighted_karcher'), get('rescaled_mean')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
