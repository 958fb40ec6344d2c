"""Weights against theorems, grids and a general solver; what cannot be met is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, point_sets, squared_distances
from scipy.optimize import minimize

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.minimax import minimax_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.remedy.reweighting import Terms, reweight, reweight_layers

seeds = st.integers(0, 2**32 - 1)


def with_base(seed, count, dimension, total):
    """D² over experts and a base, and coefficients whose experts sum to ``total``."""
    squared = squared_distances(gaussian_points(seed, count + 1, dimension))
    shares = np.random.default_rng(seed).dirichlet(np.ones(count))
    return squared, np.append(total * shares, 1 - total)


def worst(squared, coefficients, experts):
    return predicted_distortion(squared, coefficients)[:experts].max()


def own_tasks(seed, experts, dimension):
    rng = np.random.default_rng(seed)
    stack = [squared_distances(rng.normal(size=(experts, dimension))) for _ in range(experts)]
    return np.stack(stack), np.arange(experts)


@given(point_sets())
@settings(max_examples=16, deadline=None)
def test_without_a_floor_the_worst_is_the_balls_radius(points):
    squared = squared_distances(points)
    found = reweight(squared, len(points), Terms(floor=0.0))
    ball = enclosing_ball(squared)
    assert found.worst_after == pytest.approx(ball.radius_squared, abs=5e-8 * squared.max())
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)


@given(seeds, st.integers(2, 5), st.floats(0.2, 3))
@settings(max_examples=10, deadline=None)
def test_with_a_base_too_as_the_total_is_free_to_be_one(seed, count, total):
    squared, own = with_base(seed, count, 4, total)
    found = reweight(squared, count, Terms(floor=0.0), coefficients=own)
    ball = enclosing_ball(squared[:count, :count])
    assert found.worst_after == pytest.approx(ball.radius_squared, abs=1e-6 * squared.max())
    assert found.coefficients.sum() == pytest.approx(1)
    assert found.total == pytest.approx(1)


@given(seeds, st.integers(2, 6), st.floats(0.2, 3), st.booleans())
@settings(max_examples=16, deadline=None)
def test_never_worse_than_the_recipes_own_weights(seed, count, total, keep):
    squared, own = with_base(seed, count, 3, total)
    floor = float(own[:count].min() / total) * 0.999
    terms = Terms(floor=floor, keep_total=keep)
    found = reweight(squared, count, terms, coefficients=own)
    assert found.worst_after <= found.worst_before
    assert found.worst_after == pytest.approx(worst(squared, found.coefficients, count))
    assert found.worst_before == pytest.approx(worst(squared, own, count))
    assert found.weights.min() >= floor - 1e-9
    low, high = (total, total) if keep else sorted((total, 1.0))
    assert low - 1e-9 <= found.total <= high + 1e-9


@given(seeds, st.integers(2, 5))
@settings(max_examples=6, deadline=None)
def test_a_higher_floor_is_never_better_and_the_highest_leaves_no_choice(seed, count):
    squared = squared_distances(gaussian_points(seed, count, 3))
    floors = np.linspace(0, 1 / count, 5)
    found = [reweight(squared, count, Terms(floor=float(f))) for f in floors]
    reached = np.array([record.worst_after for record in found])
    assert np.all(np.diff(reached) >= -5e-8 * squared.max())
    np.testing.assert_allclose(found[-1].weights, 1 / count, atol=1e-9)


@pytest.mark.slow
@given(seeds, st.integers(3, 6), st.sampled_from(["minimax", "protect"]))
@settings(max_examples=6, deadline=None)
def test_permutation_moves_the_weights_along(seed, count, goal):
    squared = squared_distances(gaussian_points(seed, count, 8))
    own = np.full(count, 1 / count)
    budget = float(np.median(predicted_distortion(squared, own))) * 0.98
    order = np.random.default_rng(seed).permutation(count)
    terms = Terms(goal=goal, floor=0.02, budget=budget)
    plain = reweight(squared, count, terms, coefficients=own)
    moved = reweight(squared[np.ix_(order, order)], count, terms, coefficients=own)
    assert moved.worst_after == pytest.approx(plain.worst_after, rel=1e-4)
    np.testing.assert_allclose(moved.weights, plain.weights[order], atol=1e-3)
    assert {int(order[i]) for i in moved.given_up} == set(plain.given_up)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("count", [2, 3])
def test_no_weights_on_a_grid_are_better(count, floor):
    steps = np.linspace(0, 1, 201)
    grid = np.stack(np.meshgrid(*[steps] * (count - 1)), axis=-1).reshape(-1, count - 1)
    grid = np.column_stack([grid, 1 - grid.sum(axis=1)])
    grid = grid[(grid >= floor - 1e-9).all(axis=1)]
    for seed in range(5):
        squared = squared_distances(gaussian_points(seed, count, 2))
        found = reweight(squared, count, Terms(floor=floor))
        slope = grid @ squared
        every = (slope - (slope * grid).sum(axis=1, keepdims=True) / 2).max(axis=1)
        assert found.worst_after <= every.min() + 1e-9
        assert found.worst_after >= every.min() - 0.02 * squared.max()


@pytest.mark.parametrize("own", [False, True], ids=["pooled", "own tasks"])
@pytest.mark.parametrize("seed", range(6))
def test_a_general_solver_finds_the_same(seed, own):
    count, floor = 2 + seed % 4, 0.08
    squared, owner = own_tasks(seed, count, 3)
    if not own:
        squared = np.stack([squared[0]] * count)

    def distortions(z):
        return predicted_distortion(squared, z[:-1] / z[:-1].sum())[owner, owner]

    start = np.append(np.full(count, 1 / count), 9.0)
    solved = minimize(
        lambda z: z[-1],
        start,
        method="SLSQP",
        bounds=[(floor, 1)] * count + [(0, None)],
        constraints=[
            {"type": "ineq", "fun": lambda z: z[-1] - distortions(z)},
            {"type": "eq", "fun": lambda z: z[:-1].sum() - 1},
        ],
        options={"ftol": 1e-13, "maxiter": 500},
    )
    if own:
        found = reweight(squared, count, Terms(floor=floor), owner=owner)
    else:
        found = reweight(squared[0], count, Terms(floor=floor))
    assert found.worst_after == pytest.approx(solved.fun, rel=1e-5)


@given(seeds, st.integers(2, 6))
@settings(max_examples=8, deadline=None)
def test_the_weights_satisfy_the_conditions_of_optimality(seed, count):
    """Some mixture of the worst rows' slopes is level wherever a weight is above the floor."""
    floor = 0.5 / count
    squared = squared_distances(gaussian_points(seed, count, 4))
    alpha = reweight(squared, count, Terms(floor=floor)).coefficients
    values = predicted_distortion(squared, alpha)
    rim = np.flatnonzero(values >= values.max() - 1e-6 * squared.max())
    # Least residual over shares of the rim, a level and prices of what is at the floor.
    slopes = squared[rim] - squared @ alpha
    at_floor = np.flatnonzero(alpha <= floor + 1e-6)
    unknowns = np.hstack([slopes.T, -np.ones((count, 1)), -np.eye(count)[:, at_floor]])
    one = np.append(np.ones(len(rim)), np.zeros(1 + len(at_floor)))

    def residual(x):
        return np.square(np.append(unknowns @ x, one @ x - 1)).sum()

    bounds = [(0, None)] * len(rim) + [(None, None)] + [(0, None)] * len(at_floor)
    fit = minimize(residual, one / len(rim), bounds=bounds, method="L-BFGS-B", tol=1e-14)
    assert np.sqrt(fit.fun) <= 1e-3 * squared.max()


@given(seeds, st.integers(2, 5))
@settings(max_examples=6, deadline=None)
def test_on_own_tasks_it_is_the_minimax_of_the_geometry(seed, count):
    squared, owner = own_tasks(seed, count, 3)
    found = reweight(squared, count, Terms(floor=0.0), owner=owner)
    best = minimax_distortion(squared, owner).distortion
    assert found.worst_after == pytest.approx(best, abs=1e-7 * squared.max())
    assert len(found.after) == len(owner)


def outlier():
    """Three experts that agree and one far from them."""
    points = np.vstack([0.3 * np.eye(3, 4), [[0.0, 0, 0, 1.5]]])
    return squared_distances(points)


def test_protect_lowers_the_outlier_and_only_as_far_as_needed():
    squared, own = outlier(), np.full(4, 0.25)
    terms = Terms(goal="protect", budget=0.1, floor=0.02)
    found = reweight(squared, 4, terms, coefficients=own)
    assert (found.feasible, found.given_up) == (True, (3,))
    assert max(found.after[:3]) == pytest.approx(0.1, abs=1e-6)
    assert max(found.after[:3]) <= 0.1 < max(found.before[:3])
    assert found.weights[3] < 0.25 - 1e-3
    assert np.all(found.weights[:3] >= 0.25 - 1e-9)
    np.testing.assert_allclose(found.weights[:3], found.weights[0], atol=1e-3)
    # Giving it any more leaves the others outside, however the rest is dealt.
    rest = np.random.default_rng(0).dirichlet(np.ones(3), 500) * (0.999 - found.weights[3])
    for part in rest:
        alpha = np.append(part, found.weights[3] + 0.001)
        assert worst(squared, alpha, 3) > 0.1


def test_protect_leaves_alone_what_is_inside_but_for_those_that_are_not():
    squared, own = outlier(), np.array([0.33, 0.33, 0.32, 0.02])
    found = reweight(squared, 4, Terms("protect", 0.0, 0.3), coefficients=own)
    assert (found.feasible, found.given_up) == (True, (3,))
    np.testing.assert_array_equal(found.coefficients, own)
    found = reweight(squared, 4, Terms("protect", 0.0, 9.0), coefficients=own)
    assert (found.given_up, found.coefficients.tolist()) == ((), own.tolist())


def test_protect_needs_nobody_to_give_up_where_only_the_total_is_too_high():
    """Task arithmetic at scale 1: the sum of the updates overshoots, their mean does not."""
    squared = squared_distances(np.vstack([np.eye(3), np.zeros(3)]))
    own = np.array([1.0, 1, 1, -2])
    found = reweight(squared, 3, Terms("protect", 0.0, 0.7), coefficients=own)
    assert (found.feasible, found.given_up) == (True, ())
    assert found.worst_before == pytest.approx(2)
    assert found.worst_after == pytest.approx(2 / 3, abs=0.05)
    kept = reweight(squared, 3, Terms("protect", 0.0, 0.7, keep_total=True), coefficients=own)
    assert not kept.feasible


def test_protect_gives_up_two_when_one_is_not_enough_and_says_when_nothing_helps():
    points = np.vstack([0.3 * np.eye(3, 5), [[0, 0, 0, 1.5, 0], [0, 0, 0, 0, 1.2]]])
    squared, own = squared_distances(points), np.full(5, 0.2)
    found = reweight(squared, 5, Terms("protect", 0.01, 0.07), coefficients=own)
    assert (found.feasible, found.given_up) == (True, (3, 4))
    assert max(found.after[:3]) <= 0.07
    equal = 2 * (1 - np.eye(3))
    own = np.full(3, 1 / 3)
    found = reweight(equal, 3, Terms("protect", 0.3, 0.1), coefficients=own, names=list("abc"))
    assert not found.feasible
    assert found.given_up == ()
    assert "less of a, b is any other inside 0.1" in found.reason
    np.testing.assert_array_equal(found.coefficients, own)


@pytest.mark.slow
@given(seeds, st.integers(2, 6), st.floats(0.05, 2), st.floats(0.5, 2))
@settings(max_examples=10, deadline=None)
def test_what_protect_promises(seed, count, budget, total):
    squared, own = with_base(seed, count, 4, total)
    found = reweight(squared, count, Terms("protect", 0.01, budget), coefficients=own)
    over = {i for i in range(count) if found.before[i] > budget}
    assert set(found.given_up) <= over
    if found.feasible:
        assert len(found.given_up) < count
        assert all(found.after[i] <= budget for i in range(count) if i not in found.given_up)
    else:
        np.testing.assert_array_equal(found.coefficients, own)


def test_what_is_still_over_the_budget_says_whether_the_floor_is_in_the_way():
    squared = squared_distances(np.array([[0.0], [0.1], [1.0]]))
    found = reweight(squared, 3, Terms(floor=1 / 3, budget=0.3))
    assert not found.feasible
    assert "without a floor it would be 0.25: lower reweight.floor" in found.reason
    found = reweight(squared, 3, Terms(floor=0.05, budget=0.2))
    assert "these experts are too far apart" in found.reason
    found = reweight(squared, 3, Terms(floor=0.05, budget=0.26))
    assert (found.feasible, found.reason, found.worst_before) == (True, None, None)


def test_layers_are_problems_of_their_own():
    layers = np.stack([squared_distances(gaussian_points(seed, 4, 3)) for seed in range(3)])
    own = np.tile(np.full(4, 0.25), (3, 1))
    found = reweight_layers(layers, 4, Terms(), coefficients=own)
    for matrix, record in zip(layers, found, strict=True):
        alone = reweight(matrix, 4, Terms(), coefficients=own[0])
        np.testing.assert_array_equal(record.weights, alone.weights)
    assert not np.allclose(found[0].weights, found[1].weights)


def test_many_experts():
    squared = squared_distances(gaussian_points(0, 33, 9))
    own = np.append(np.full(32, 0.3), 1 - 32 * 0.3)
    found = reweight(squared, 32, Terms(floor=0.01), coefficients=own)
    assert found.worst_after < found.worst_before
    assert found.weights.min() >= 0.01 - 1e-9


def test_bad_input_is_refused():
    squared = 1 - np.eye(3)
    with pytest.raises(InvalidRecipeError, match=r"floor is 0.4, but 3 experts .* need 1.2"):
        reweight(squared, 3, Terms(floor=0.4))
    for floor in (-0.1, np.nan, 2.0):
        with pytest.raises(InvalidRecipeError, match="between 0 and 1"):
            reweight(squared, 3, Terms(floor=floor))
    with pytest.raises(InvalidRecipeError, match=r"budget\.distortion is nan"):
        reweight(squared, 3, Terms(budget=np.nan))
    with pytest.raises(InvalidRecipeError, match=r"sum to 1\.5"):
        reweight(squared, 3, Terms(), coefficients=np.full(3, 0.5))
    with pytest.raises(InvalidRecipeError, match="use goal: minimax"):
        reweight(squared, 3, Terms("protect", budget=1.0))
    with pytest.raises(InvalidRecipeError, match="sum to -1"):
        reweight(squared, 2, Terms(keep_total=True), coefficients=np.array([-2.0, 1, 2]))
    cancelling = reweight(squared, 2, Terms(), coefficients=np.array([-2.0, 1, 2]))
    assert cancelling.total == pytest.approx(1)
    with pytest.raises(EvaluationError, match="finite"):
        reweight(squared * np.nan, 3, Terms())
    with pytest.raises(EvaluationError, match="5 experts"):
        reweight(squared, 5, Terms())
