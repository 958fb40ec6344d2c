"""The order of the bounds, and where the paper's dimension falls short."""

import numpy as np
import pytest
from hypothesis import given, settings
from made_states import gaussian_points, point_sets, squared_distances

from mergekit_collapse.geometry.bounds import distance_bounds, span_dimension
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball


@given(point_sets())
@settings(max_examples=150, deadline=None)
def test_converse_radius_jung_and_simplex_are_in_order(points):
    squared = squared_distances(points)
    bounds = distance_bounds(squared, dimension=points.shape[1])
    radius, count = enclosing_ball(squared).radius_squared, len(points)
    slack = 1e-9 * bounds.diameter_squared
    assert bounds.converse <= radius + slack
    assert radius <= bounds.jung + slack
    assert bounds.jung <= (count - 1) / (2 * count) * bounds.diameter_squared + slack
    assert squared[bounds.diameter_pair] == bounds.diameter_squared
    # One probe: the states are the points, and the paper's dimension is right.
    assert radius <= bounds.corollary + slack


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_span_is_the_rank_of_the_points(dimension):
    squared = squared_distances(gaussian_points(dimension, 8, dimension))
    assert span_dimension(squared) == dimension
    assert distance_bounds(squared, 2048).jung == pytest.approx(
        dimension / (2 * (dimension + 1)) * squared.max()
    )


def test_the_papers_dimension_undercounts_an_equilateral_triangle():
    """d = 1, two probes: h(x) of the three are the corners of a triangle in R^2."""
    angles = 2 * np.pi * np.arange(3) / 3
    states = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.sqrt(1 / 2)
    squared = squared_distances(states)  # summed over the two probes
    bounds = distance_bounds(squared, dimension=1)
    assert bounds.diameter_squared == pytest.approx(1.5)
    assert enclosing_ball(squared).radius_squared == pytest.approx(0.5)
    assert bounds.corollary == pytest.approx(0.375)
    assert bounds.jung == pytest.approx(0.5)
    assert bounds.jung_dimension == 2


@given(point_sets())
@settings(max_examples=50, deadline=None)
def test_the_corollary_is_within_a_budget_where_the_paper_calls_experts_mergeable(points):
    d = points.shape[1]
    bounds = distance_bounds(squared_distances(points), dimension=d)
    for budget in (0.999 * bounds.corollary, 1.001 * bounds.corollary):
        mergeable = bounds.diameter_squared <= 2 * (d + 1) / d * budget
        assert (bounds.corollary <= budget) == mergeable


def test_identical_experts_span_nothing():
    bounds = distance_bounds(np.zeros((4, 4)), dimension=8)
    assert (bounds.diameter_squared, bounds.converse, bounds.jung) == (0, 0, 0)
    assert (bounds.corollary, bounds.jung_dimension) == (0, 0)


@pytest.mark.parametrize(("count", "radius"), [(2, 0.5), (3, 0.667), (8, 0.875)])
def test_orthogonal_predictive_states(count, radius):
    ball = enclosing_ball(squared_distances(np.eye(count)))
    assert ball.radius_squared == pytest.approx(radius, abs=5e-4)
