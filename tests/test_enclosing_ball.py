"""The ball against theorems and a general solver, and the weights where no ball holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, point_sets, squared_distances
from scipy.optimize import minimize

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.minimax import minimax_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion

seeds = st.integers(0, 2**32 - 1)


def ball_by_slsqp(points):
    """Squared radius and centre, moved freely in space: knows nothing of weights or distances."""
    centre = points.mean(axis=0)
    start = np.append(centre, np.square(points - centre).sum(axis=1).max())
    found = minimize(
        lambda z: z[-1],
        start,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda z: z[-1] - np.square(points - z[:-1]).sum(axis=1),
        },
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    return np.square(points - found.x[:-1]).sum(axis=1).max(), found.x[:-1]


@given(seeds, st.integers(2, 8), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_radius_and_centre_are_those_of_a_general_solver(seed, count, dimension):
    points = gaussian_points(seed, count, dimension)
    ball = enclosing_ball(squared_distances(points))
    radius_squared, centre = ball_by_slsqp(points)
    assert ball.radius_squared == pytest.approx(radius_squared, rel=1e-6)
    # The centre is unique, but a radius off by 1e-6 of itself leaves it 1e-3 of room.
    np.testing.assert_allclose(
        ball.weights @ points, centre, atol=2e-3 * np.sqrt(radius_squared) + 1e-9
    )


@given(point_sets())
@settings(max_examples=150, deadline=None)
def test_jung_and_the_converse(points):
    squared = squared_distances(points)
    count, diameter = len(points), squared.max()
    ball = enclosing_ball(squared)
    slack = 1e-9 * diameter
    assert diameter / 4 <= ball.radius_squared + slack
    assert ball.radius_squared <= (count - 1) / (2 * count) * diameter + slack
    assert ball.weights.min() >= 0
    assert ball.weights.sum() == pytest.approx(1)
    # Complementary slackness: every expert is inside, those with weight on the surface.
    distortion = predicted_distortion(squared, ball.weights)
    assert distortion.max() <= ball.radius_squared + slack
    assert np.all(distortion[ball.weights > 1e-6] >= ball.radius_squared - 1e-6 * diameter)


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_a_regular_simplex_attains_jung_and_its_centre_is_the_mean(count):
    ball = enclosing_ball(2 * (1 - np.eye(count)))
    assert ball.radius_squared == pytest.approx((count - 1) / count, rel=1e-12)
    np.testing.assert_allclose(ball.weights, 1 / count, atol=1e-12)


@given(point_sets(min_count=2, max_count=2))
@settings(deadline=None)
def test_two_experts_attain_the_converse(points):
    squared = squared_distances(points)
    assert enclosing_ball(squared).radius_squared == pytest.approx(squared.max() / 4, rel=1e-9)


@given(seeds, st.integers(2, 20), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_permutation_moves_the_weights_along(seed, count, dimension):
    squared = squared_distances(gaussian_points(seed, count, dimension))
    order = np.random.default_rng(seed).permutation(count)
    plain, moved = enclosing_ball(squared), enclosing_ball(squared[np.ix_(order, order)])
    assert moved.radius_squared == pytest.approx(plain.radius_squared, rel=1e-9)
    np.testing.assert_allclose(moved.weights, plain.weights[order], atol=1e-6)


@given(seeds, st.integers(2, 64), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_a_warm_start_changes_nothing(seed, count, dimension):
    squared = squared_distances(gaussian_points(seed, count, dimension))
    start = np.zeros(count)
    start[:2] = 0.5
    cold, warm = enclosing_ball(squared), enclosing_ball(squared, start=start)
    assert warm.radius_squared == pytest.approx(cold.radius_squared, rel=1e-9)


def test_identical_experts_have_radius_zero_and_one_expert_too():
    for count in (1, 5):
        ball = enclosing_ball(np.zeros((count, count)))
        assert ball.radius_squared == 0
        np.testing.assert_array_equal(ball.weights, 1 / count)


def test_what_is_no_distance_or_does_not_prove_itself_is_refused(monkeypatch):
    with pytest.raises(EvaluationError, match="finite distances"):
        enclosing_ball(np.array([[0, np.nan], [np.nan, 0]]))
    monkeypatch.setattr("mergekit_collapse.geometry.enclosing_ball.GAP", -1.0)
    with pytest.raises(EvaluationError, match="squared Euclidean"):
        enclosing_ball(1 - np.eye(3))
    monkeypatch.setattr("mergekit_collapse.geometry.minimax.GAP", -1.0)
    with pytest.raises(EvaluationError, match="squared Euclidean"):
        minimax_distortion(np.stack([1 - np.eye(2)] * 2), np.arange(2))


@given(point_sets())
@settings(max_examples=25, deadline=None)
def test_minimax_over_one_matrix_is_the_ball(points):
    squared = squared_distances(points)
    count = len(points)
    minimax = minimax_distortion(np.stack([squared] * count), np.arange(count))
    ball = enclosing_ball(squared)
    assert minimax.distortion == pytest.approx(ball.radius_squared, abs=1e-7 * squared.max())


@given(seeds, st.integers(2, 7), st.integers(0, 3), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_no_simplex_point_beats_the_minimax(seed, experts, more, dimension):
    rng = np.random.default_rng(seed)
    tasks = experts + more
    squared = np.stack(
        [squared_distances(rng.normal(size=(experts, dimension))) for _ in range(tasks)]
    )
    owner = np.append(np.arange(experts), rng.integers(0, experts, more))
    found = minimax_distortion(squared, owner)

    def worst(weights):
        return max(predicted_distortion(d, weights)[i] for d, i in zip(squared, owner, strict=True))

    assert found.distortion == pytest.approx(worst(found.weights), rel=1e-9)
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1)
    others = [*rng.dirichlet(np.ones(experts), size=60), *np.eye(experts)]
    near = [0.99 * found.weights + 0.01 * other for other in others]
    assert min(map(worst, others + near)) >= found.distortion - 1e-7 * squared.max()


def test_minimax_of_many_experts():
    rng = np.random.default_rng(0)
    squared = np.stack([squared_distances(rng.normal(size=(64, 9))) for _ in range(64)])
    assert minimax_distortion(squared, np.arange(64)).distortion > 0
    assert minimax_distortion(np.zeros((2, 2, 2)), np.arange(2)).distortion == 0
    with pytest.raises(EvaluationError, match="finite"):
        minimax_distortion(squared * np.nan, np.arange(64))


@given(seeds, st.integers(2, 6))
def test_predictions_are_the_distances_to_the_mixture(seed, count):
    points = gaussian_points(seed, count, 4)
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=count)
    weights[-1] = 1 - weights[:-1].sum()  # a base takes up the rest, even a negative one
    expected = np.square(points - weights @ points).sum(axis=1)
    np.testing.assert_allclose(
        predicted_distortion(squared_distances(points), weights),
        expected,
        atol=1e-9 * np.abs(expected).max(),
    )


def test_predictions_are_void_where_weights_do_not_sum_to_one():
    for weights in (np.array([0.5, 0.6]), np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match="the formula needs 1"):
            predicted_distortion(np.zeros((2, 2)), weights)
