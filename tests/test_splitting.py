"""Splits: partitions, all inside, and as few groups as can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, squared_distances
from test_grouping import set_partitions

from mergekit_collapse.geometry.grouping import group_curve
from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.group_reading import ball_reading, corollary_reading
from mergekit_collapse.remedy.own_task_reading import own_task_reading
from mergekit_collapse.remedy.splitting import split

seeds = st.integers(0, 2**32 - 1)


def criterion(squared, limit, difficulty=None, reading=None):
    return Criterion(squared, reading or ball_reading(squared), limit, difficulty)


@pytest.mark.slow
@given(seeds, st.integers(2, 14), st.integers(1, 4), st.floats(0.02, 2))
@settings(max_examples=12, deadline=None)
def test_groups_are_a_partition_and_all_are_inside(seed, count, dimension, limit):
    squared = squared_distances(gaussian_points(seed, count, dimension))
    judge = criterion(squared, limit)
    found = split(judge)
    assert found.exact == (count <= 10)
    if found.inside:
        assert sorted(i for group in found.groups for i in group) == list(range(count))
        assert len(found.groups) < count
        assert all(judge.inside(group) for group in found.groups)
        assert found.values == tuple(judge.value(group) for group in found.groups)
        assert max(found.values) <= limit
    else:
        assert found.groups == ()
        assert found.reason


@given(seeds, st.integers(2, 6), st.floats(0.1, 2))
@settings(max_examples=12, deadline=None)
def test_the_k_curve_says_the_same_number(seed, count, limit):
    squared = squared_distances(gaussian_points(seed, count, 2))
    found = split(criterion(squared, limit))
    fewest = next(c for c in group_curve(squared) if c.worst_radius_squared <= limit)
    assert (len(found.groups) or count) == fewest.group_count
    if found.inside:
        assert max(found.values) == pytest.approx(fewest.worst_radius_squared)


@pytest.mark.parametrize("kind", ["mds", "corollary", "own"])
@pytest.mark.parametrize("seed", range(3))
def test_other_limits_are_met_with_the_fewest_groups_too(seed, kind):
    count = 5
    points = gaussian_points(seed, count, 2)
    squared = squared_distances(points)
    difficulty, reading = None, None
    if kind == "mds":
        chance = np.full_like(squared, 3.0)
        difficulty = DifficultyLimit(2.0, "unrelated", np.sqrt(squared), chance)
    elif kind == "corollary":
        reading = corollary_reading(squared, 7)
    else:
        stack = [squared_distances(points + 0.3 * gaussian_points(i, count, 2)) for i in range(5)]
        reading = own_task_reading(np.stack(stack), np.arange(count))
    judge = criterion(squared, 0.6, difficulty, reading)
    found = split(judge)
    every = [p for p in set_partitions(list(range(count))) if all(map(judge.inside, p))]
    assert (len(found.groups) or count) == min(map(len, every))


def test_clusters_are_found_beyond_the_exact_range():
    centres = np.repeat(np.array([[0.0, 0], [9, 0], [0, 9]]), 4, axis=0)
    squared = squared_distances(centres + 0.1 * gaussian_points(0, 12, 2))
    found = split(criterion(squared, 0.2), group_curve(squared))
    assert found.groups == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    assert not found.exact


def test_one_far_from_all_others_is_left_alone():
    squared = squared_distances(np.array([[0.0], [0.1], [7.0]]))
    assert split(criterion(squared, 0.1)).groups == ((0, 1), (2,))


def test_where_every_pair_is_over_that_is_said():
    for count in (3, 12):
        found = split(criterion(2 * (1 - np.eye(count)), 0.4))
        assert not found.inside
        assert f"no two of the {count} experts" in found.reason
        assert "1.25 times" in found.reason


def test_a_barred_group_makes_way_for_the_next_best():
    squared = squared_distances(np.array([[0.0], [0.1], [0.3], [7.0]]))
    judge = criterion(squared, 0.1)
    assert split(judge).groups == ((0, 1, 2), (3,))
    assert split(judge, barred=[(0, 1, 2)]).groups == ((0, 1), (2,), (3,))
    assert split(judge, barred=[(0, 1, 2), (0, 1)]).groups == ((0,), (1, 2), (3,))
    none = split(judge, barred=[(0, 1, 2), (0, 1), (1, 2), (0, 2)])
    assert not none.inside
    assert none.reason == "no other groups are inside the limits"


def test_barred_groups_count_beyond_the_exact_range_too():
    centres = np.repeat(np.array([[0.0, 0], [9, 0], [0, 9]]), 4, axis=0)
    squared = squared_distances(centres + 0.1 * gaussian_points(0, 12, 2))
    found = split(criterion(squared, 0.2), group_curve(squared), barred=[(0, 1, 2, 3)])
    assert (0, 1, 2, 3) not in found.groups
    assert (8, 9, 10, 11) in found.groups
