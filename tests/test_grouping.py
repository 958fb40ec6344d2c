"""The K curve against brute force."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, point_sets, squared_distances

from mergekit_collapse.geometry import grouping
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.grouping import group_curve

pytestmark = pytest.mark.slow


def set_partitions(items):
    if not items:
        yield []
        return
    first, *rest = items
    for partition in set_partitions(rest):
        yield [(first,), *partition]
        for i, group in enumerate(partition):
            yield [*partition[:i], (first, *group), *partition[i + 1 :]]


def worst_radius(squared, groups):
    return max(enclosing_ball(squared[np.ix_(g, g)]).radius_squared for g in groups)


@given(point_sets(max_count=5))
@settings(max_examples=30, deadline=None)
def test_the_curve_is_that_of_brute_force(points):
    squared = squared_distances(points)
    curve = group_curve(squared)
    every = list(set_partitions(list(range(len(points)))))
    for count, record in enumerate(curve, start=1):
        assert (record.group_count, len(record.groups), record.exact) == (count, count, True)
        best = min(worst_radius(squared, groups) for groups in every if len(groups) == count)
        assert record.worst_radius_squared == pytest.approx(best, abs=1e-9 * squared.max())
        assert worst_radius(squared, record.groups) == record.worst_radius_squared


@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_the_curve_never_rises_and_every_expert_is_in_one_group(seed, count, dimension):
    squared = squared_distances(gaussian_points(seed, count, dimension))
    curve = group_curve(squared)
    radii = [record.worst_radius_squared for record in curve]
    assert radii[0] == enclosing_ball(squared).radius_squared
    assert radii[-1] == 0
    assert all(a >= b - 1e-12 for a, b in pairwise(radii))
    for record in curve:
        assert sorted(i for group in record.groups for i in group) == list(range(count))
        assert list(record.groups) == sorted(map(tuple, map(sorted, record.groups)))


def test_clusters_are_found_exactly_and_by_search(monkeypatch):
    centres = np.repeat(np.array([[0.0, 0], [9, 0], [0, 9]]), 3, axis=0)
    squared = squared_distances(centres + 0.1 * gaussian_points(0, 9, 2))
    exact = group_curve(squared)[2]
    assert exact.groups == ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    monkeypatch.setattr(grouping, "EXACT_UP_TO", 0)
    found = group_curve(squared)[2]
    assert (found.groups, found.exact) == (exact.groups, False)


def test_search_is_close_to_exact(monkeypatch):
    cases = [squared_distances(gaussian_points(seed, 9, 3)) for seed in range(5)]
    exact = [group_curve(squared) for squared in cases]
    monkeypatch.setattr(grouping, "EXACT_UP_TO", 0)
    for squared, curve in zip(cases, exact, strict=True):
        for a, b in zip(curve, group_curve(squared), strict=True):
            assert a.worst_radius_squared <= b.worst_radius_squared + 1e-12
            assert b.worst_radius_squared <= 1.5 * a.worst_radius_squared + 1e-12


def test_two_groups_of_the_same_experts_need_no_more_models():
    squared = squared_distances(np.array([[0.0], [0.0], [1.0], [1.0]]))
    assert [record.worst_radius_squared for record in group_curve(squared)] == [0.25, 0, 0, 0]
    assert group_curve(squared)[1].groups == ((0, 1), (2, 3))


def test_ties_leave_no_group_out_beyond_the_exact_range():
    curve = group_curve(np.zeros((12, 12)))
    assert [len(record.groups) for record in curve] == list(range(1, 13))
    curve = group_curve(2 * (1 - np.eye(12)))
    assert [len(record.groups) for record in curve] == list(range(1, 13))
