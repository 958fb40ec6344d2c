"""What many experts change: parts of probes, resamples, pairs at chance, curve and ball."""

import numpy as np
import pytest
from made_states import all_rows, gaussian_points, hidden_states

from mergekit_collapse.geometry import chance_distances as chance_module
from mergekit_collapse.geometry import grouping, probe_parts, resampling
from mergekit_collapse.geometry.chance_distances import chance_distances
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.geometry.grouping import group_curve
from mergekit_collapse.geometry.resampling import resample_count, resample_weights

TASKS = np.repeat(np.arange(3), (40, 20, 4))


def squared_distances(points):
    centred = points - points.mean(axis=0)
    gram = centred @ centred.T
    energy = np.diag(gram)
    squared = np.maximum(energy[:, None] + energy - 2 * gram, 0)
    np.fill_diagonal(squared, 0)
    return squared


def on_sphere(seed, dimension):
    points = gaussian_points(seed, 1000, dimension)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


SETS = {
    "simplex-like": lambda: 0.1 * gaussian_points(0, 1000, 5000),
    "regular simplex": lambda: np.eye(1000),
    "on a line": lambda: gaussian_points(0, 1000, 1),
    "low-dimensional": lambda: gaussian_points(0, 1000, 3),
    "on a sphere": lambda: on_sphere(0, 3),
    "clustered": lambda: (
        np.repeat(gaussian_points(0, 10, 500), 100, 0) + 0.05 * gaussian_points(1, 1000, 500)
    ),
    "twins": lambda: np.repeat(gaussian_points(0, 500, 50), 2, axis=0),
}


@pytest.mark.parametrize("rounding", [0, 1e-7])
@pytest.mark.parametrize("name", list(SETS))
def test_the_ball_of_a_thousand_proves_itself(name, rounding):
    squared = squared_distances(SETS[name]())
    noise = 1 + rounding * np.random.default_rng(2).normal(size=squared.shape)
    squared *= (noise + noise.T) / 2
    ball = enclosing_ball(squared)
    slope = squared @ ball.weights
    lower = ball.weights @ slope / 2
    upper = slope.max() - lower
    assert upper - lower <= 1e-10 * squared.max()
    assert ball.radius_squared == pytest.approx(upper, rel=1e-12)
    assert ball.weights.min() >= 0
    assert ball.weights.sum() == pytest.approx(1)


def test_parts_are_even_of_one_task_and_all_single_where_they_fit(monkeypatch):
    np.testing.assert_array_equal(probe_parts.probe_parts(TASKS, 2, 5, 0), np.arange(64))
    monkeypatch.setattr(probe_parts, "VALUES", 32 * 2 * 5**2)
    parts = probe_parts.probe_parts(TASKS, 2, 5, 0)
    assert set(parts) == set(range(20 + 10 + 4))
    for part in set(parts):
        assert len(set(TASKS[parts == part])) == 1
    assert max(np.bincount(parts)) == 2
    np.testing.assert_array_equal(parts, probe_parts.probe_parts(TASKS, 2, 5, 0))


def test_parts_are_drawn_as_a_whole_and_tasks_keep_their_share():
    parts = np.arange(64) // 3
    parts = np.where(TASKS == 0, parts, parts + 50)
    parts = np.unique(parts, return_inverse=True)[1].astype(np.int64)
    weights = resample_weights(TASKS, 0, 200, parts)
    for part in set(parts):
        assert (weights[:, parts == part] == weights[:, parts == part][:, :1]).all()
    for task, share in enumerate((40, 20, 4)):
        np.testing.assert_allclose(weights[:, task == TASKS].sum(axis=1), share / 64)
    single = resample_weights(TASKS, 0, 200)
    np.testing.assert_array_equal(single, resample_weights(TASKS, 0, 200, np.arange(64)))


def made(experts=6):
    rng = np.random.default_rng(0)
    return hidden_states(rng.normal(size=(1, 64, 7)) + rng.normal(size=(experts, 64, 7)))


def test_means_do_not_depend_on_parts():
    rows = all_rows(made())
    plain = probe_distances(rows, [2.0])
    parted = probe_distances(rows, [2.0], (np.arange(64) // 5).astype(np.int64))
    np.testing.assert_allclose(parted.mean_distance, plain.mean_distance, rtol=1e-12)
    np.testing.assert_allclose(parted.mean_squared, plain.mean_squared, rtol=1e-12)


@pytest.mark.slow
def test_a_geometry_of_parts_and_batches_is_that_of_probes_but_for_its_intervals(monkeypatch):
    owners = [("a", 0), ("b", 1), ("c", None)]
    options = {"scale": "variance", "coefficients": np.full(6, 1 / 6), "seed": 0}
    plain = measure(made(), 6, TASKS, owners, **options)
    monkeypatch.setattr(resampling, "BATCH_VALUES", 36 * 7)
    batched = measure(made(), 6, TASKS, owners, **options)
    one, other = plain.confidence, batched.confidence
    for a, b in [
        (one.ball_radius_squared, other.ball_radius_squared),
        (one.predicted_worst, other.predicted_worst),
        *zip(one.mds[0], other.mds[0], strict=True),
    ]:
        assert (a.low, a.high) == pytest.approx((b.low, b.high), rel=1e-9)
    monkeypatch.setattr(probe_parts, "VALUES", 32 * 2 * 6**2)
    parted = measure(made(), 6, TASKS, owners, **options)
    assert parted.ball.radius_squared == pytest.approx(plain.ball.radius_squared, rel=1e-9)
    for a, b in zip(plain.own_task.tasks, parted.own_task.tasks, strict=True):
        np.testing.assert_allclose(a.squared, b.squared, rtol=1e-9)
        np.testing.assert_allclose(a.distance, b.distance, rtol=1e-9)
    wide, narrow = parted.confidence.ball_radius_squared, one.ball_radius_squared
    assert (wide.high - wide.low) == pytest.approx(narrow.high - narrow.low, rel=0.5)


def test_many_experts_have_fewer_resamples_and_pairs(monkeypatch):
    assert [resample_count(n) for n in (2, 518, 1000, 5000)] == [1000, 1000, 268, 200]
    monkeypatch.setattr(chance_module, "MAX_VALUES", 6**2 * 50)
    found = chance_distances(all_rows(made()), 6, [1.0], 0)
    assert 25 <= len(found.probes) <= 50


def test_the_curve_ends_and_many_are_moved_less(monkeypatch):
    monkeypatch.setattr(grouping, "LONGEST", 5)
    squared = squared_distances(gaussian_points(0, 20, 3))
    curve = group_curve(squared)
    assert [one.group_count for one in curve] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(grouping, "SEARCHED_UP_TO", 5)
    monkeypatch.setattr(grouping, "MOVED_EXPERTS", 0)
    for more, less in zip(curve, group_curve(squared), strict=True):
        assert more.worst_radius_squared <= less.worst_radius_squared + 1e-12
        assert not less.exact
