"""The three readings of the paper's similarity: where they agree and where they are undefined."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_states import gaussian_points, squared_distances

from mergekit_collapse.geometry.merging_difficulty import (
    ALL_EQUAL,
    INFINITE,
    NO_CHANCE,
    READINGS,
    merging_difficulty,
)

seeds = st.integers(0, 2**32 - 1)


def distances(seed, count):
    return np.sqrt(squared_distances(gaussian_points(seed, count, 3)))


@given(seeds, st.integers(3, 8))
def test_minmax_is_max_times_a_constant(seed, count):
    distance = distances(seed, count)
    others = distance[~np.eye(count, dtype=bool)]
    low, high = others.min(), others.max()
    assume(low > 1e-3 * high)
    by_max = merging_difficulty("group_max", distance, None)
    by_minmax = merging_difficulty("group_minmax", distance, None)
    for a, b in zip(by_max.mds, by_minmax.mds, strict=True):
        assert b == pytest.approx((1 - low / high) * a, rel=1e-9)


@given(seeds, st.integers(2, 8), st.floats(1e-3, 1e3), st.sampled_from(READINGS))
def test_scores_are_at_least_one_invariant_to_scale_and_follow_a_permutation(
    seed, count, factor, reading
):
    distance, order = distances(seed, count), np.random.default_rng(seed).permutation(count)
    chance = 1.5 + distances(seed + 1, count) / 10
    plain = merging_difficulty(reading, distance, chance)
    moved = merging_difficulty(
        reading, factor * distance[np.ix_(order, order)], factor * chance[np.ix_(order, order)]
    )
    assert [plain.reasons[i] for i in order] == list(moved.reasons)
    for a, b in zip([plain.mds[i] for i in order], moved.mds, strict=True):
        assert (a is None and b is None) or a == pytest.approx(b, rel=1e-6)
        assert a is None or a >= 1 - 1e-12


def test_the_readings_by_hand():
    distance = np.array([[0, 1, 2], [1, 0, 4], [2, 4, 0]], float)
    by_max = merging_difficulty("group_max", distance, None)
    np.testing.assert_allclose(by_max.similarity, [[1, 0.75, 0.5], [0.75, 1, 0], [0.5, 0, 1]])
    np.testing.assert_allclose(by_max.mds, [1 / 0.625, 1 / 0.375, 4])
    by_minmax = merging_difficulty("group_minmax", distance, None)
    assert by_minmax.similarity is not None
    np.testing.assert_allclose(by_minmax.similarity[0], [1, 1, 2 / 3])
    unrelated = merging_difficulty("unrelated", distance, np.full((3, 3), 2.0))
    assert unrelated.similarity is not None
    np.testing.assert_allclose(unrelated.similarity[0], [1, 0.5, 0])
    assert unrelated.mds[:2] == (4.0, 4.0)
    assert (unrelated.mds[2], unrelated.reasons[2]) == (None, INFINITE)


def test_two_experts_are_undefined_within_their_group_but_not_against_chance():
    distance = np.array([[0, 0.5], [0.5, 0]])
    by_max = merging_difficulty("group_max", distance, None)
    assert (by_max.mds, by_max.reasons) == ((None, None), (INFINITE, INFINITE))
    by_minmax = merging_difficulty("group_minmax", distance, None)
    assert (by_minmax.similarity, by_minmax.mds) == (None, (None, None))
    assert by_minmax.reasons == (ALL_EQUAL, ALL_EQUAL)
    assert merging_difficulty("unrelated", distance, np.full((2, 2), 2.0)).mds == (4 / 3, 4 / 3)


def test_equidistant_experts_alarm_the_group_readings_whatever_the_rounding():
    noise = 1 + 1e-15 * gaussian_points(0, 4, 4)
    distance = (noise + noise.T) * (1 - np.eye(4))
    assert set(merging_difficulty("group_max", distance, None).reasons) == {INFINITE}
    assert set(merging_difficulty("group_minmax", distance, None).reasons) == {ALL_EQUAL}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("count", [2, 3])
def test_identical_experts_have_similarity_and_score_one(reading, count):
    zero = np.zeros((count, count))
    for chance in (np.ones((count, count)), zero):
        assert merging_difficulty(reading, zero, chance).mds == (1.0,) * count


def test_one_probe_says_nothing_about_chance():
    result = merging_difficulty("unrelated", np.ones((2, 2)) - np.eye(2), None)
    assert result.similarity is None
    assert result.reasons == (NO_CHANCE, NO_CHANCE)
