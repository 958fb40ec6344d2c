"""Replacements: the right one is taken, a twin never, and what was tried is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, squared_distances

from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.group_reading import ball_reading, own_task_reading
from mergekit_collapse.remedy.replacing import replace_experts


def criterion(points, limit, difficulty=None):
    squared = squared_distances(np.asarray(points, dtype=np.float64))
    return Criterion(squared, ball_reading(squared), limit, difficulty)


def test_the_far_one_gives_way_to_the_candidate_that_fits_best():
    points = [[0.0], [0.2], [5.0], [1.0], [0.5], [9.0]]
    found = replace_experts(criterion(points, 0.1), 3)
    assert (found.members, found.inside, found.reason) == ((0, 1, 4), True, None)
    (swap,) = found.swaps
    assert (swap.slot, swap.expert, swap.candidate) == (2, 2, 4)
    assert swap.before == pytest.approx(6.25)
    assert swap.after == found.value == found.radius_squared == pytest.approx(0.0625)
    assert [t.candidate for t in found.tried] == [3, 4, 5]
    assert [t.value for t in found.tried] == pytest.approx([0.25, 0.0625, 20.25])


def test_a_twin_of_one_that_stays_is_left_out_and_said():
    points = [[0.0], [0.2], [5.0], [0.2], [0.3]]
    found = replace_experts(criterion(points, 0.1), 3)
    assert found.members == (0, 1, 4)
    assert found.tried[0].value is None
    assert "as member 1 does" in found.tried[0].reason
    alone = replace_experts(criterion(points[:4], 0.1), 3)
    assert not alone.inside
    assert "left out as twins or members" in alone.reason
    # Its own twin is no twin of one that stays: only no improvement.
    same = replace_experts(criterion([[0.0], [0.2], [5.0], [5.0]], 0.1), 3)
    assert same.members == (0, 1, 2)


def test_two_are_replaced_one_after_the_other_and_none_where_that_is_not_enough():
    points = [[0.0, 0], [5.0, 0], [0, 5.0], [0.3, 0], [0, 0.3]]
    found = replace_experts(criterion(points, 0.05), 3)
    assert found.inside
    assert sorted(found.members) == [0, 3, 4]
    assert [s.slot for s in found.swaps] in ([1, 2], [2, 1])
    assert all(s.after < s.before for s in found.swaps)
    found = replace_experts(criterion(points, 1e-4), 3)
    assert (found.members, found.swaps, found.inside) == ((0, 1, 2), (), False)
    assert "replacements were tried" in found.reason
    assert "with 2 of them" in found.reason
    assert found.value == pytest.approx(12.5)


def test_the_highest_mds_goes_first():
    points = np.vstack([0.2 * np.eye(3, 5), [[0, 0, 0, 3.0, 0], [0, 0, 0, 0, 0.2]]])
    squared = squared_distances(points)
    limit = DifficultyLimit(1.6, "unrelated", np.sqrt(squared), np.full((5, 5), 2.0))
    found = replace_experts(Criterion(squared, ball_reading(squared), None, limit), 4)
    assert found.members == (0, 1, 2, 4)
    assert {t.slot for t in found.tried} == {3}


def test_who_must_stay_stays_and_nothing_changes_inside():
    points = [[0.0], [5.0], [0.1], [5.1]]
    assert replace_experts(criterion(points, 0.1), 2, keep=[1]).members == (3, 1)
    assert replace_experts(criterion(points, 0.1), 2, keep=[0]).members == (0, 2)
    assert replace_experts(criterion(points, 0.1), 2, keep=[0, 1]).members == (0, 1)
    fine = replace_experts(criterion(points, 9.0), 2)
    assert (fine.members, fine.tried, fine.inside) == ((0, 1), (), True)


def test_on_own_tasks_a_candidate_answers_for_the_expert_it_replaces():
    """One candidate, with a row for each of the two places that it may take."""
    points = np.array([[0.0], [5.0], [0.2], [0.2]])
    stack = np.stack([squared_distances(points)] * 2)
    reading = own_task_reading(stack, np.array([0, 1]), np.array([0, 1, 0, 1]))
    found = replace_experts(
        Criterion(stack[0], reading, 0.1), 2, keep=[0], candidates={0: [2], 1: [3]}
    )
    assert (found.members, found.inside) == ((0, 3), True)
    assert found.value == pytest.approx(0.01, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(0, 6), st.floats(0.1, 0.9))
@settings(max_examples=25, deadline=None)
def test_what_is_promised(seed, experts, pool, part):
    points = gaussian_points(seed, experts + pool, 3)
    whole = criterion(points, 1.0).value(tuple(range(experts)))
    judge = criterion(points, part * whole)
    found = replace_experts(judge, experts)
    assert len(set(found.members)) == experts
    assert found.inside == judge.inside(found.members)
    assert found.value <= whole
    assert (found.reason is None) == found.inside
    for slot, member in enumerate(found.members):
        assert member == slot or member >= experts
    assert len({s.slot for s in found.swaps}) == len(found.swaps) <= experts
    # What it reached is at least as good as its first step alone.
    if found.swaps:
        first = found.swaps[0]
        tried = [t.value for t in found.tried if t.slot == first.slot and t.value is not None]
        assert first.after == min(tried[:pool])
