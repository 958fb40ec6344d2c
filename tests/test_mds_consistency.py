"""Scores against readings: what is found possible is shown by hidden states that have them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_collapse.geometry.merging_difficulty import merging_difficulty
from mergekit_collapse.study.mds_consistency import (
    consistency,
    group_max_states,
    group_minmax_states,
)
from mergekit_collapse.study.paper_tables import read_paper_tables

pytestmark = pytest.mark.slow

GROUPS = read_paper_tables().groups
NAMES = [group.name for group in GROUPS]


def mean_distance(states):
    """D̄, by its definition."""
    gaps = np.linalg.norm(states[:, None] - states[None], axis=-1)
    return gaps.mean(axis=-1)


@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_the_printed_scores_are_those_of_some_hidden_states_under_group_max(group):
    for pair in consistency(group.mds).furthest:
        distance = mean_distance(group_max_states(group.mds, pair))
        assert distance.max() == pytest.approx(distance[pair], abs=1e-6)
        found = merging_difficulty("group_max", distance, None)
        np.testing.assert_allclose(found.mds, group.mds, atol=0.005 + 1e-5)


@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_and_of_some_under_group_minmax(group):
    assert consistency(group.mds).minmax
    by_score = np.argsort(group.mds)
    far = tuple(sorted(by_score[-2:].tolist()))
    near = tuple(sorted(by_score[:2].tolist()))
    states = group_minmax_states(group.mds, far, near)
    found = merging_difficulty("group_minmax", mean_distance(states), None)
    np.testing.assert_allclose(found.mds, group.mds, atol=0.005 + 1e-4)


def test_the_furthest_pair_of_group_c_is_settled():
    """1/MDS of its ends adds up to 5.98/7; the triangle inequality allows 6/7."""
    found = consistency(GROUPS[3].mds)
    assert found.furthest == ((2, 4),)
    similar = 7 / GROUPS[3].mds
    allowed = [(i, j) for i in range(8) for j in range(i) if similar[i] + similar[j] <= 6]
    assert allowed == [(4, 2)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6))
def test_scores_of_real_states_are_possible(seed, count):
    """Completeness: states of any width have scores that the test accepts."""
    random = np.random.default_rng(seed)
    states = random.normal(size=(count, 5, 3)) * random.uniform(0.2, 2, size=(count, 1, 1))
    distance = mean_distance(states)
    furthest = tuple(sorted(np.unravel_index(distance.argmax(), distance.shape)))
    mds = merging_difficulty("group_max", distance, None).mds
    if None not in mds:
        assert tuple(map(int, furthest)) in consistency(np.array(mds)).furthest
    mds = merging_difficulty("group_minmax", distance, None).mds
    if None not in mds:
        assert consistency(np.array(mds)).minmax


@pytest.mark.parametrize(
    "mds",
    [
        [1.23] * 7 + [3.75],  # no second expert is far enough from the far one
        [1.01] * 5,  # somebody must be the furthest
    ],
)
def test_scores_that_no_states_have_under_group_max(mds):
    assert consistency(np.array(mds)).furthest == ()


def test_scores_that_no_matrix_has_under_either():
    """One expert like nobody, and all others like everybody, itself included."""
    found = consistency(np.array([8.0, 1.0, 1.0, 1.0]))
    assert found.furthest == ()
    assert not found.minmax


def test_the_triangle_inequality_is_what_group_minmax_does_not_need():
    mds = np.array([1.3] * 7 + [2.5])
    found = consistency(mds)
    assert (found.furthest, found.minmax) == ((), True)


def test_the_mean_distance_is_that_of_the_states():
    mds = GROUPS[0].mds
    distance = mean_distance(group_max_states(mds, (4, 7)))
    pairs = distance[np.triu_indices(8, 1)] / distance.max()
    assert consistency(mds).mean_distance == pytest.approx(pairs.mean(), abs=0.005)
