"""Measured distortion against its closed forms and its theorem, and one layer's reading."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import hidden_states

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry import geometry as geometry_module
from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.geometry.layer_reading import LayerStates, read_layer
from mergekit_collapse.geometry.measured import NOT_ALL_OWN, measured_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from(["variance", "rms", "unit", "none"])
PROBES = 6
TASK_OF_PROBE = np.repeat(np.arange(2), PROBES // 2)
PROPERTY = settings(deadline=None, max_examples=25)


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals are not what is tested here, and a thousand resamples take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_module, "resample_count", lambda _experts: 4)
        yield


def measured_geometry(experts, count, *, scale="variance", alpha=None, owners=(0, 1)):
    return measure(
        experts,
        count,
        TASK_OF_PROBE,
        [(f"task{index}", owner) for index, owner in enumerate(owners)],
        scale=scale,
        coefficients=alpha,
        seed=0,
    )


def distortion(experts, merged, found):
    return measured_distortion(experts, merged, found, TASK_OF_PROBE)


def predictive_states(*layers, probe_of_row=None):
    return dataclasses.replace(
        hidden_states(*layers, probe_of_row=probe_of_row), space="predictive"
    )


def answers(rng, *shape):
    """Square roots of probabilities; some tokens are impossible."""
    raw = rng.random(shape) * (rng.random(shape) > 0.3) + 1e-3
    return np.sqrt(raw / raw.sum(axis=-1, keepdims=True))


SAMPLES = st.fixed_dictionaries(
    {
        "seed": SEEDS,
        "count": st.integers(2, 5),
        "base": st.booleans(),
        "layers": st.integers(1, 3),
        "width": st.sampled_from([1, 4]),
        "spread": st.sampled_from([0.01, 0.1, 1.0, 10.0]),
        "space": st.sampled_from(["hidden", "predictive"]),
    }
)


def made(*, seed, count, base, layers, width, spread, space):
    """Experts and perhaps a base, several layers, probes of unlike lengths."""
    rng = np.random.default_rng(seed)
    models = count + base
    probe_of_row = np.repeat(np.arange(PROBES), rng.integers(1, 4, size=PROBES))
    rows = len(probe_of_row)
    if space == "predictive":
        return predictive_states(answers(rng, models, rows, 9), probe_of_row=probe_of_row), rng
    shared = rng.normal(size=(layers, 1, rows, width))
    values = shared + spread * rng.normal(size=(layers, models, rows, width))
    return hidden_states(*values, probe_of_row=probe_of_row), rng


def with_values(states, *values):
    """One merged model with the rows of ``states``."""
    return dataclasses.replace(states, values=tuple(v[None].astype(np.float32) for v in values))


@PROPERTY
@given(sample=SAMPLES, scale=st.sampled_from(["variance", "rms", "none"]))
def test_a_mixture_of_states_is_measured_as_it_was_predicted(sample, scale):
    (experts, rng), count = made(**sample), sample["count"]
    alpha = rng.dirichlet(np.ones(len(experts.values[0])))
    found = measured_geometry(experts, count, scale=scale, alpha=alpha)
    merged = with_values(experts, *(np.tensordot(alpha, v, 1) for v in experts.values))
    seen = distortion(experts, merged, found)
    expected = predicted_distortion(found.squared, alpha)[:count]
    # The merged states are rounded to float32.
    assert seen.distortion == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert seen.worst == max(seen.distortion)
    for task, of_task in zip(seen.own_task, found.own_task.tasks, strict=True):
        assert task.distortion == pytest.approx(of_task.predicted_distortion, rel=1e-4, abs=1e-9)


@PROPERTY
@given(seed=SEEDS)
def test_a_mixture_on_the_sphere_is_measured_as_it_was_predicted(seed):
    """u, v and -u on every row: u - v + (-u) = -v is of norm 1, where prediction is exact."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, 2 * PROBES, 3))
    u, v = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (u, v))
    lengths = rng.uniform(0.1, 10, size=(4, 2 * PROBES, 1))
    probe_of_row = np.repeat(np.arange(PROBES), 2)
    experts = hidden_states(lengths[:3] * np.stack([u, v, -u]), probe_of_row=probe_of_row)
    found = measured_geometry(experts, 3, scale="unit", alpha=np.array([1.0, -1.0, 1.0]))
    seen = distortion(experts, with_values(experts, lengths[3] * -v), found)
    assert seen.distortion == pytest.approx(found.predicted, rel=1e-4, abs=1e-5)
    assert seen.distortion[1] == pytest.approx(4)


@PROPERTY
@given(sample=SAMPLES, scale=SCALES, kind=st.integers(0, 3))
def test_no_merge_at_all_is_inside_the_ball(sample, scale, kind):
    (experts, rng), count = made(**sample), sample["count"]
    found = measured_geometry(experts, count, scale=scale)
    weights = found.ball.weights
    if kind == 0:
        merged = [rng.normal(size=v.shape[1:]) for v in experts.values]
    elif kind == 1:  # the centre, where the bound is met
        merged = [np.tensordot(weights, v[:count], 1) for v in experts.values]
    elif kind == 2:  # near it, off the plane of the experts
        merged = [np.tensordot(weights, v[:count], 1) for v in experts.values]
        merged = [v + 0.01 * rng.normal(size=v.shape) for v in merged]
    else:
        merged = [np.zeros_like(v[0]) + 1e-3 for v in experts.values]
    if experts.space == "predictive":
        merged = [np.abs(v) / np.linalg.norm(v, axis=1, keepdims=True) for v in merged]
    seen = distortion(experts, with_values(experts, *merged), found)
    least = found.ball.radius_squared
    assert seen.worst >= least * (1 - 1e-5)
    if kind == 1 and scale != "unit" and experts.space == "hidden":
        assert seen.worst == pytest.approx(least, rel=1e-4)


@PROPERTY
@given(sample=SAMPLES, scale=SCALES)
def test_a_merge_that_is_an_expert_is_measured_as_that_expert(sample, scale):
    (experts, rng), count = made(**sample), sample["count"]
    found = measured_geometry(experts, count, scale=scale)
    same = int(rng.integers(count))
    seen = distortion(experts, with_values(experts, *(v[same] for v in experts.values)), found)
    assert seen.distortion[same] == 0
    assert seen.distortion == pytest.approx(found.squared[same, :count], rel=1e-6, abs=1e-12)


def by_hand():
    """Two experts, one feature: 0, 2 | 0, 4 on their own probes, and 1 apart on all of them."""
    first = np.array([[0.0], [2.0], [0.0], [0.0], [0.0], [4.0]])
    task_of_probe = np.array([0, 0, 1, 1, 1, 1])
    return hidden_states(np.stack([first, first + 1])), first, task_of_probe


def test_own_tasks_by_hand():
    experts, first, task_of_probe = by_hand()
    tasks = [("mine", 0), ("yours", 1)]
    found = measure(experts, 2, task_of_probe, tasks, scale="variance", coefficients=None, seed=0)
    # Three above the first expert on its own probes, one below the second on its own.
    merged = first + np.array([3.0, 3, 0, 0, 0, 0])[:, None]
    seen = measured_distortion(experts, with_values(experts, merged), found, task_of_probe)
    variance = first.var()
    assert seen.distortion == pytest.approx((2 * 9 / 6 / variance, (2 * 4 + 4) / 6 / variance))
    # Each scaled by its owner's variance on its own probes: of 0, 2 it is 1, of 0, 0, 0, 4 it is 3.
    assert [t.distortion for t in seen.own_task] == pytest.approx([9 / 1, 1 / 3])
    assert seen.own_task_worst == pytest.approx(9)
    assert (seen.own_task_reason, seen.layers) == (None, (1,))


def test_an_expert_with_two_tasks_is_judged_by_the_worse():
    rng = np.random.default_rng(0)
    experts = hidden_states(rng.normal(size=(2, 6, 3)))
    task_of_probe = np.array([0, 0, 1, 1, 2, 2])
    tasks = [("bad", 0), ("good", 0), ("other", 1)]
    found = measure(experts, 2, task_of_probe, tasks, scale="none", coefficients=None, seed=0)
    merged = experts.values[0][0].astype(np.float64)
    merged[:2] += 100
    merged[4:] = experts.values[0][1, 4:]
    seen = measured_distortion(experts, with_values(experts, merged), found, task_of_probe)
    assert [t.distortion for t in seen.own_task] == pytest.approx([30_000, 0, 0], rel=1e-4)
    assert seen.own_task_worst == seen.own_task[0].distortion


@pytest.mark.parametrize("owners", [(0, None), (None, None), (0, 0)])
def test_without_a_task_for_every_expert_there_is_no_worst(owners):
    experts = hidden_states(np.random.default_rng(0).normal(size=(2, PROBES, 3)))
    found = measured_geometry(experts, 2, owners=owners)
    seen = distortion(experts, with_values(experts, experts.values[0][0]), found)
    assert (seen.own_task_worst, seen.own_task_reason) == (None, NOT_ALL_OWN)
    for task, owner in zip(seen.own_task, owners, strict=True):
        assert (task.distortion is None) == (task.reason is not None) == (owner is None)


@pytest.mark.parametrize("third", [None, 1])
def test_an_owned_task_that_is_undefined_leaves_no_worst(third):
    """It could be the worst, whatever another task of the same expert says."""
    task_of_probe = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    states = np.random.default_rng(0).normal(size=(2, 8, 3))
    states[:, task_of_probe == 1] = 1.5  # every probe of the second task reads alike
    experts, tasks = hidden_states(states), [("fine", 0), ("alike", 1), ("more", third)]
    found = measure(experts, 2, task_of_probe, tasks, scale="variance", coefficients=None, seed=0)
    seen = measured_distortion(experts, with_values(experts, states[0]), found, task_of_probe)
    assert [t.distortion is None for t in seen.own_task] == [False, True, third is None]
    assert "degenerate on task 'alike'" in seen.own_task[1].reason
    assert (seen.own_task_worst, seen.own_task_reason) == (None, seen.own_task[1].reason)


@pytest.mark.parametrize("wider", ["merged", "experts"])
def test_a_token_that_one_side_lacks_has_probability_0(wider):
    rng = np.random.default_rng(0)
    states, ours = answers(rng, 2, PROBES, 7), answers(rng, PROBES, 5)
    if wider == "merged":
        states, ours = answers(rng, 2, PROBES, 5), answers(rng, PROBES, 7)
    experts = predictive_states(states)
    found = measured_geometry(experts, 2)
    seen = distortion(experts, with_values(experts, ours), found)
    common = np.einsum("epf,pf->ep", states[..., :5], ours[:, :5])
    assert seen.distortion == pytest.approx((2 - 2 * common).mean(axis=1), rel=1e-5)


@pytest.mark.parametrize("scale", ["variance", "rms", "unit", "none"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_distortion(scale, bad):
    experts = hidden_states(np.random.default_rng(0).normal(size=(2, PROBES, 3)))
    merged = experts.values[0][0].copy()
    merged[4, 1] = bad
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        distortion(
            experts, with_values(experts, merged), measured_geometry(experts, 2, scale=scale)
        )


def test_a_state_of_0_has_no_direction():
    experts = hidden_states(np.random.default_rng(0).normal(size=(2, PROBES, 3)))
    merged = experts.values[0][0].copy()
    merged[4] = 0
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        distortion(
            experts, with_values(experts, merged), measured_geometry(experts, 2, scale="unit")
        )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"probe_of_row": np.array([0, 1, 2, 3, 5, 5])}, "reads other tokens"),
        (
            {"probe_of_row": np.arange(5), "values": (np.zeros((1, 5, 3), np.float32),)},
            "reads other tokens",
        ),
        ({"values": (np.zeros((1, 6, 4), np.float32),)}, "4 wide and its experts' 3"),
        (
            {"values": (np.zeros((1, 6, 3), np.float32),) * 2},
            "after 2 layers, its experts after 1",
        ),
    ],
)
def test_states_that_do_not_belong_together_are_told(change, told):
    experts = hidden_states(np.random.default_rng(0).normal(size=(2, PROBES, 3)))
    merged = dataclasses.replace(with_values(experts, experts.values[0][0]), **change)
    with pytest.raises(EvaluationError, match=told):
        distortion(experts, merged, measured_geometry(experts, 2))


def layer_states(pooled, variance=1.0, rank=2.0):
    return LayerStates(np.asarray(pooled, dtype=np.float32), variance, rank)


@PROPERTY
@given(seed=SEEDS, count=st.integers(2, 5))
def test_a_layer_reads_as_measured_distortion_does(seed, count):
    rng = np.random.default_rng(seed)
    values, merged = rng.normal(size=(count, PROBES, 5)), rng.normal(size=(PROBES, 5))
    experts = hidden_states(values)
    seen = distortion(experts, with_values(experts, merged), measured_geometry(experts, count))
    reading = read_layer(1, layer_states(merged), [layer_states(v) for v in values])
    assert reading.distortion == pytest.approx(seen.distortion)
    assert reading.worst == pytest.approx(seen.worst)


def test_ratios_are_over_the_mean_of_the_experts_that_have_the_layer():
    pooled = np.arange(12).reshape(6, 2)
    experts = [layer_states(pooled, 1.0, 4.0), None, layer_states(pooled + 1, 3.0, 6.0)]
    reading = read_layer(7, layer_states(pooled, 0.5, 10.0), experts)
    assert (reading.layer, reading.variance, reading.effective_rank) == (7, 0.5, 10.0)
    assert (reading.variance_ratio, reading.rank_ratio) == (0.25, 2.0)
    first, none, third = reading.distortion
    # The third is 1 off in two features, over the variance of both.
    assert (first, none) == (0, None)
    assert third == pytest.approx(2 / pooled.var(axis=0).sum())
    assert reading.worst == third


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_read_as_none(bad):
    pooled = np.arange(12.0).reshape(6, 2)
    broken = pooled.copy()
    broken[3, 1] = bad
    reading = read_layer(1, layer_states(broken, math.nan, math.nan), [layer_states(pooled)] * 2)
    assert not any(math.isfinite(one) for one in (*reading.distortion, reading.worst))
    assert math.isnan(reading.variance_ratio)
    assert math.isnan(reading.rank_ratio)
    if math.isnan(bad):
        assert math.isnan(reading.worst)


def test_one_nan_is_not_hidden_by_numbers():
    pooled = np.arange(12.0).reshape(6, 2)
    reading = read_layer(1, layer_states(pooled), [layer_states(pooled), layer_states(pooled + 1)])
    broken = dataclasses.replace(reading, distortion=(0.0, math.nan, None, 5.0))
    assert math.isnan(broken.worst)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_expert_that_is_no_number_hides_nothing(bad):
    """A reading that is absent is not judged; one that is no number is refused."""
    pooled = np.arange(12.0).reshape(6, 2)
    broken = pooled.copy()
    broken[3, 1] = bad
    experts = [layer_states(broken, math.nan, math.nan), layer_states(pooled)]
    reading = read_layer(1, layer_states(pooled), experts)
    assert all(one is not None and math.isnan(one) for one in reading.distortion)
    assert math.isnan(reading.worst)
    assert math.isnan(reading.variance_ratio)
    assert math.isnan(reading.rank_ratio)


def test_where_no_position_counts_there_is_no_ratio():
    states = layer_states(np.eye(6), math.nan, math.nan)
    reading = read_layer(1, states, [states, states])
    assert (reading.worst, reading.variance_ratio, reading.rank_ratio) == (0, None, None)


def test_a_layer_that_no_expert_has_is_read_alone():
    reading = read_layer(1, layer_states(np.eye(6)), [None, None])
    assert reading.distortion == (None, None)
    assert (reading.worst, reading.variance_ratio, reading.rank_ratio) == (None, None, None)
    assert (reading.variance, reading.effective_rank) == (1.0, 2.0)


def test_states_of_another_width_are_not_compared():
    experts = [layer_states(np.eye(6)), layer_states(np.eye(6, 3))]
    reading = read_layer(1, layer_states(np.eye(6)), experts)
    assert reading.distortion == (0, None)


def test_where_all_probes_read_alike_nothing_is_read():
    alike = layer_states(np.full((6, 4), 0.1), 0.0, 0.0)
    reading = read_layer(1, alike, [alike, alike])
    assert reading.distortion == (None, None)
    assert (reading.worst, reading.variance_ratio, reading.rank_ratio) == (None, None, None)
