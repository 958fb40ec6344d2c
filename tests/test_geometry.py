"""States in, one record out: the pieces agree, nothing is NaN, and undefined parts say why."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from made_states import hidden_states

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.geometry import NO_COEFFICIENTS, measure
from mergekit_collapse.geometry.merging_difficulty import INFINITE, READINGS
from mergekit_collapse.geometry.minimax import minimax_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion

pytestmark = pytest.mark.slow

EXPERTS, PROBES = 3, 40
TASKS = [("sentiment", 0), ("topic", 1), ("arithmetic", 2), ("general", None)]
TASK_OF_PROBE = np.repeat(np.arange(4), 10)


def made(seed=0, layers=1, noise=0.7):
    """Three experts and a base that share much of their states."""
    rng = np.random.default_rng(seed)
    return hidden_states(
        *(
            rng.normal(size=(1, PROBES, 5)) + noise * rng.normal(size=(EXPERTS + 1, PROBES, 5)) + 2
            for _ in range(layers)
        )
    )


def measured(states=None, **changes):
    options = {
        "expert_count": EXPERTS,
        "task_of_probe": TASK_OF_PROBE,
        "tasks": TASKS,
        "scale": "variance",
        "coefficients": np.array([0.4, 0.4, 0.4, -0.2]),
        "seed": 0,
    }
    return measure(made() if states is None else states, **(options | changes))


def assert_finite(value):
    if is_dataclass(value):
        for field in fields(value):
            assert_finite(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            assert_finite(item)
    elif isinstance(value, float | np.ndarray):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("scale", ["variance", "rms", "unit", "none"])
@pytest.mark.parametrize("layers", [1, 3])
def test_everything_is_measured_finite_and_consistent(scale, layers):
    geometry = measured(made(layers=layers), scale=scale)
    assert_finite(geometry)
    between = geometry.squared[:EXPERTS, :EXPERTS]
    assert geometry.dimension == 5 * layers
    assert geometry.squared.shape == geometry.distance.shape == (4, 4)
    assert geometry.bounds.diameter_squared == between.max()
    assert geometry.ball.radius_squared == enclosing_ball(between).radius_squared
    coefficients = np.array([0.4, 0.4, 0.4, -0.2])
    expected = predicted_distortion(geometry.squared, coefficients)[:EXPERTS]
    np.testing.assert_allclose(geometry.predicted, expected)
    assert min(geometry.predicted) >= 0
    assert max(geometry.predicted) >= geometry.ball.radius_squared - 1e-12
    assert [one.reading for one in geometry.mds] == list(READINGS)
    assert geometry.groups[0].worst_radius_squared == pytest.approx(geometry.ball.radius_squared)
    assert not geometry.optimistic
    confidence = geometry.confidence
    assert confidence.ball_radius_squared.low <= geometry.ball.radius_squared
    assert confidence.predicted_worst.high >= max(geometry.predicted)
    assert len(confidence.mds) == 3
    assert [p.layer for p in geometry.profile] == ([] if layers == 1 else [1, 2, 3])
    assert len(geometry.scale_squared) == layers


@pytest.mark.parametrize("layers", [1, 2])
def test_own_task_numbers_come_from_its_own_probes_and_its_owners_spread(layers):
    states = made(layers=layers)
    geometry = measured(states)
    own = geometry.own_task
    assert [(t.name, t.owner, t.probe_count) for t in own.tasks] == [(*t, 10) for t in TASKS]
    for index, task in enumerate(own.tasks):
        probes = index == TASK_OF_PROBE
        owners = range(EXPERTS) if task.owner is None else [task.owner]
        squared = 0
        for values, scale in zip(states.values, task.scale_squared, strict=True):
            there = values[:, probes].astype(float)
            spread = np.mean([there[i].var(axis=0).sum() for i in owners])
            assert scale == pytest.approx(spread)
            squared += np.square(there[:, None] - there[None]).sum(3).mean(2) / spread / layers
        np.testing.assert_allclose(task.squared, squared, rtol=1e-9)
    owned = own.tasks[:3]
    for i, task in enumerate(owned):
        expected = predicted_distortion(task.squared, np.array([0.4, 0.4, 0.4, -0.2]))[i]
        assert task.predicted_distortion == pytest.approx(expected)
    assert own.predicted_worst == max(task.predicted_distortion for task in owned)
    again = minimax_distortion(np.stack([t.squared[:3, :3] for t in owned]), np.arange(3))
    assert own.minimax.distortion == again.distortion
    assert own.minimax_interval.low <= own.minimax.distortion <= own.minimax_interval.high
    assert own.tasks[3].predicted_reason == "no expert owns this task"


def test_experts_in_another_order_give_the_same_in_that_order():
    order = np.array([2, 0, 1, 3])
    states = made()
    plain = measured(states, coefficients=np.array([0.5, 0.3, 0.1, 0.1]))
    place = {int(old): new for new, old in enumerate(order)}
    moved = measured(
        replace(states, values=(states.values[0][order],)),
        tasks=[(name, None if owner is None else place[owner]) for name, owner in TASKS],
        coefficients=np.array([0.5, 0.3, 0.1, 0.1])[order],
    )
    np.testing.assert_allclose(plain.squared[np.ix_(order, order)], moved.squared)
    np.testing.assert_allclose(plain.distance[np.ix_(order, order)], moved.distance)
    np.testing.assert_allclose(np.array(plain.predicted)[order[:3]], moved.predicted)
    np.testing.assert_allclose(plain.ball.weights[order[:3]], moved.ball.weights, atol=1e-6)
    np.testing.assert_allclose(
        plain.own_task.minimax.weights[order[:3]], moved.own_task.minimax.weights, atol=1e-3
    )
    assert moved.own_task.minimax.distortion == pytest.approx(plain.own_task.minimax.distortion)
    for a, b in zip(plain.mds, moved.mds, strict=True):
        for new, old in enumerate(order[:3]):
            assert (a.mds[old] is None) == (b.mds[new] is None)
            assert a.mds[old] is None or b.mds[new] == pytest.approx(a.mds[old])
    assert plain.confidence.diameter_squared.high == pytest.approx(
        moved.confidence.diameter_squared.high
    )
    for a, b in zip(plain.groups, moved.groups, strict=True):
        assert a.worst_radius_squared == pytest.approx(b.worst_radius_squared)


def test_the_record_is_the_same_twice_and_follows_the_seed():
    first, again, other = measured(), measured(), measured(seed=1)
    assert first.confidence == again.confidence
    assert first.confidence != other.confidence
    np.testing.assert_array_equal(first.squared, other.squared)


@pytest.mark.parametrize("scale", ["variance", "rms", "unit", "none"])
def test_identical_experts_always_pass(scale):
    geometry = measured(made(noise=0), scale=scale, coefficients=None)
    assert_finite(geometry)
    assert geometry.bounds.diameter_squared == geometry.ball.radius_squared == 0
    assert all(one.mds == (1.0, 1.0, 1.0) for one in geometry.mds)
    assert geometry.own_task.minimax.distortion == 0
    assert geometry.confidence.ball_radius_squared.high == 0


def test_experts_of_noise_never_pass():
    rng = np.random.default_rng(0)
    states = hidden_states(rng.normal(size=(3, 128, 512)))
    geometry = measured(
        states,
        task_of_probe=np.repeat(np.arange(4), 32),
        coefficients=np.full(3, 1 / 3),
    )
    between = geometry.squared[~np.eye(3, dtype=bool)]
    np.testing.assert_allclose(between, 2, atol=0.05)
    np.testing.assert_allclose(geometry.mds[0].similarity - np.eye(3), 0, atol=0.02)
    assert geometry.ball.radius_squared == pytest.approx(2 / 3, abs=0.02)
    assert all(m is None or m > 30 for m in geometry.mds[0].mds)


def test_near_twins_do_not_become_nan():
    states = made()
    values = 1e-3 * states.values[0]
    values[1] = values[0] + np.float32(1e-9)
    geometry = measured(replace(states, values=(values,)))
    assert_finite(geometry)
    assert geometry.squared[0, 1] > 0
    assert geometry.squared[0, 1] < 1e-9


def test_predictive_space_keeps_its_natural_unit_and_is_optimistic():
    rng = np.random.default_rng(0)
    roots = np.sqrt(rng.dirichlet(np.ones(20), size=(4, PROBES)))
    states = replace(hidden_states(roots), space="predictive", pooling="answer")
    geometry = measured(states, scale="variance")
    assert (geometry.scale, geometry.scale_squared) == ("none", (1.0,))
    assert geometry.optimistic
    hellinger = 2 * (1 - (roots[0] * roots[1]).sum(axis=1).mean())
    assert geometry.squared[0, 1] == pytest.approx(hellinger, rel=1e-5)
    assert geometry.squared.max() <= 2
    assert [t.scale_squared for t in geometry.own_task.tasks] == [(1.0,)] * 4


def test_weights_that_are_no_mixture_are_null_with_the_reason():
    absent = measured(coefficients=None)
    assert (absent.predicted, absent.predicted_reason) == (None, NO_COEFFICIENTS)
    assert absent.confidence.predicted_worst.reason == NO_COEFFICIENTS
    assert absent.own_task.predicted_reason == NO_COEFFICIENTS
    assert absent.own_task.minimax is not None
    said = measured(coefficients=None, coefficients_reason="ties trims")
    assert said.own_task.tasks[0].predicted_reason == "ties trims"
    large = measured(coefficients=np.array([0.5, 0.5, 0.5, 0.0]))
    assert large.predicted is None
    assert "sum to 1.5" in large.predicted_reason
    assert measured(coefficients=np.full(4, np.nan)).predicted is None


def test_own_task_minimax_needs_every_expert_to_own_a_task():
    geometry = measured(
        tasks=[("sentiment", 0), ("topic", None), ("more topic", None), ("general", None)],
        models=["a", "b", "c", "base"],
    )
    assert geometry.own_task.minimax is None
    assert geometry.own_task.minimax_reason == "no probe task belongs to b, c"
    assert geometry.own_task.minimax_interval.reason == "no probe task belongs to b, c"
    assert geometry.own_task.tasks[0].predicted_distortion is not None


def test_every_task_of_an_owner_counts():
    once = measured(tasks=[("a", 0), ("b", 1), ("c", 2), ("general", None)])
    twice = measured(tasks=[("a", 0), ("b", 1), ("c", 2), ("more of a", 0)])
    assert twice.own_task.minimax.distortion >= once.own_task.minimax.distortion - 1e-9
    assert len([t for t in twice.own_task.tasks if t.owner == 0]) == 2


def test_a_task_that_tells_no_probes_apart_is_a_reason_not_a_crash():
    states = made()
    values = states.values[0].copy()
    values[:, TASK_OF_PROBE == 1] = 1.5
    geometry = measured(replace(states, values=(values,)))
    task = geometry.own_task.tasks[1]
    assert (task.squared, task.distance, task.scale_squared) == (None, None, None)
    assert "degenerate on task 'topic'" in task.reason
    assert geometry.own_task.minimax_reason == task.reason
    assert geometry.own_task.predicted_worst is None
    assert geometry.bounds.diameter_squared > 0


def test_a_task_without_probes_is_a_reason():
    geometry = measured(task_of_probe=np.append(np.repeat([0, 1, 2], 13), 0))
    assert geometry.own_task.tasks[3].reason == "task 'general' has no probes: give it rows"
    assert geometry.own_task.minimax is not None


def test_what_cannot_be_measured_is_refused():
    states = made()
    broken = states.values[0].copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(EvaluationError, match="states of expert-b are NaN"):
        measured(replace(states, values=(broken,)), models=["expert-a", "expert-b", "c", "base"])
    flat = replace(states, values=(np.ones_like(broken),))
    with pytest.raises(EvaluationError, match="degenerate on all probes"):
        measured(flat)
    with pytest.raises(EvaluationError, match="at least two experts"):
        measured(expert_count=1)
    with pytest.raises(EvaluationError, match="no probes"):
        measured(task_of_probe=np.zeros(0, dtype=np.int64))
    with pytest.raises(EvaluationError, match="do not belong together"):
        measured(tasks=TASKS[:2])
    with pytest.raises(EvaluationError, match="have no hidden states"):
        measured(task_of_probe=np.append(TASK_OF_PROBE, 3))


def test_one_probe_without_scale_has_distances_but_no_chance():
    states = hidden_states(np.array([[[0.0]], [[1.0]], [[2.0]]]))
    geometry = measured(
        states, task_of_probe=np.array([3]), scale="none", coefficients=np.full(3, 1 / 3)
    )
    assert geometry.chance is None
    assert geometry.mds[0].reasons == ("fewer than two probes",) * 3
    assert geometry.ball.radius_squared == pytest.approx(1)


def test_two_experts_are_infinitely_hard_within_their_group_only():
    states = made()
    geometry = measured(
        replace(states, values=(states.values[0][:2],)),
        expert_count=2,
        tasks=[("a", 0), ("b", 1), ("c", None), ("d", None)],
        coefficients=np.array([0.5, 0.5]),
    )
    unrelated, by_max, _ = geometry.mds
    assert by_max.reasons == (INFINITE, INFINITE)
    assert geometry.confidence.mds[1][0].reason == INFINITE
    assert all(m is not None for m in unrelated.mds)
    assert geometry.ball.radius_squared == pytest.approx(geometry.bounds.converse)
