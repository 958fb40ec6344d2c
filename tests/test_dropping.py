"""Which experts go: against brute force, and as theorems about what is left."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, point_sets, squared_distances

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.minimax import minimax_distortion
from mergekit_collapse.geometry.predicted import predicted_distortion
from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.dropping import drop
from mergekit_collapse.remedy.group_reading import (
    ball_reading,
    corollary_reading,
    masks_of,
    weights_reading,
)
from mergekit_collapse.remedy.own_task_reading import own_task_reading

seeds = st.integers(0, 2**32 - 1)


def ball_criterion(squared, limit, difficulty=None):
    return Criterion(squared, ball_reading(squared), limit, difficulty)


def gaussian(seed, count, dimension):
    return squared_distances(gaussian_points(seed, count, dimension))


def unrelated(squared, limit, chance=2.0):
    return DifficultyLimit(limit, "unrelated", np.sqrt(squared), np.full_like(squared, chance))


@given(point_sets(max_count=6), seeds)
@settings(max_examples=40, deadline=None)
def test_dropping_never_raises_the_radius_and_bounds_are_below_it(points, seed):
    squared = squared_distances(points)
    for reading in (ball_reading(squared), corollary_reading(squared, 3)):
        everyone = tuple(range(len(points)))
        groups = [g for k in range(2, len(points) + 1) for g in combinations(everyone, k)]
        values = {group: reading.value(group) for group in groups}
        bounds = reading.bound(masks_of(groups, len(points)))
        assert np.all(bounds <= np.array(list(values.values())) + 1e-18)
        for group in groups:
            for smaller in combinations(group, len(group) - 1):
                assert values.get(smaller, 0.0) <= values[group] + 1e-9 * squared.max()


@pytest.mark.parametrize("kind", ["ball", "corollary", "own", "weights", "mds"])
@pytest.mark.parametrize("seed", range(4))
def test_the_answer_is_that_of_brute_force(seed, kind):
    count = 6
    squared = gaussian(seed, count, 3)
    everyone = tuple(range(count))
    readings = {
        "ball": ball_reading(squared),
        "corollary": corollary_reading(squared, 3),
        "own": own_task_reading(
            np.stack([gaussian(seed + i, count, 3) for i in range(count)]), np.arange(count)
        ),
        "weights": weights_reading(squared, np.arange(1.0, count + 1) / 21, base=None),
    }
    reading = readings.get(kind, readings["ball"])
    difficulty = unrelated(squared, 2.5, 4.0) if kind == "mds" else None
    limit = 0.6 * reading.value(everyone)
    found = drop(Criterion(squared, reading, limit, difficulty))
    judge = Criterion(squared, reading, limit, difficulty)
    best = None
    for size in range(count, 1, -1):
        inside = [g for g in combinations(everyone, size) if judge.inside(g)]
        if inside:
            best = min(inside, key=judge.value)
            break
    if best is None:
        assert (found.kept, found.dropped, found.inside) == (everyone, (), False)
        assert found.dropped_at_least == count - 1
    else:
        assert (found.kept, found.inside, found.exact) == (best, True, True)
        assert found.dropped == tuple(i for i in everyone if i not in best)
        assert found.dropped_at_least == len(found.dropped) > 0
        assert found.value == judge.value(best) <= limit


@given(seeds, st.integers(3, 10), st.integers(1, 4), st.floats(0.2, 0.9))
@settings(max_examples=25, deadline=None)
def test_exact_is_never_worse_than_greedy_and_greedy_bounds_its_gap(seed, count, dimension, part):
    squared = gaussian(seed, count, dimension)
    limit = part * ball_reading(squared).value(tuple(range(count)))
    exact = drop(ball_criterion(squared, limit))
    greedy = drop(ball_criterion(squared, limit), exact_up_to=0)
    assert (exact.exact, greedy.exact) == (True, False)
    if greedy.inside:
        assert exact.inside
        assert len(exact.dropped) <= len(greedy.dropped)
        if len(exact.dropped) == len(greedy.dropped):
            assert exact.radius_squared <= greedy.radius_squared + 1e-12
        assert greedy.dropped_at_least <= len(exact.dropped)
        assert sorted(greedy.kept + greedy.dropped) == list(range(count))


@pytest.mark.slow
def test_greedy_is_seldom_more_than_one_worse():
    gaps = []
    for seed in range(40):
        criterion = ball_criterion(gaussian(seed, 9, 3), 1.0)
        exact, greedy = drop(criterion), drop(criterion, exact_up_to=0)
        gaps.append(len(greedy.dropped) - len(exact.dropped))
    assert min(gaps) >= 0
    assert max(gaps) <= 2
    assert np.mean(gaps) <= 0.4


@given(seeds, st.integers(3, 6))
@settings(max_examples=15, deadline=None)
def test_permutation_moves_what_is_kept_along(seed, count):
    squared = gaussian(seed, count, 3)
    order = np.random.default_rng(seed).permutation(count)
    limit = 0.5 * ball_reading(squared).value(tuple(range(count)))
    plain = drop(ball_criterion(squared, limit))
    moved = drop(ball_criterion(squared[np.ix_(order, order)], limit))
    assert {int(order[i]) for i in moved.kept} == set(plain.kept)


def test_nothing_goes_where_everyone_is_inside():
    squared = gaussian(0, 5, 3)
    found = drop(ball_criterion(squared, float(squared.max())), exact_up_to=0)
    assert (found.kept, found.dropped, found.inside, found.exact) == (
        (0, 1, 2, 3, 4),
        (),
        True,
        True,
    )
    assert found.dropped_at_least == 0
    assert found.nearest == found.kept


def test_the_impossible_says_what_was_tried():
    squared = 2 * (1 - np.eye(4))
    for exact_up_to, how in ((16, "every choice"), (0, "one by one")):
        found = drop(ball_criterion(squared, 0.4), exact_up_to=exact_up_to)
        assert not found.inside
        assert found.kept == (0, 1, 2, 3)
        assert len(found.nearest) == 2
        assert how in found.reason
        assert "1.25 times its limit" in found.reason
    assert drop(ball_criterion(squared, 0.5)).inside
    assert not drop(ball_criterion(squared, 0.5), fewest=3).inside
    assert drop(ball_criterion(squared, 0.0)).reason.endswith("inf times its limit")


def test_those_who_must_stay_stay():
    squared = squared_distances(np.array([[0.0], [0.1], [0.2], [5.0]]))
    assert drop(ball_criterion(squared, 0.1)).kept == (0, 1, 2)
    for exact_up_to in (16, 0):
        kept = drop(ball_criterion(squared, 0.1), keep=[3], exact_up_to=exact_up_to)
        assert not kept.inside
        assert 3 in kept.nearest
    pair = squared_distances(np.array([[0.0], [1.0], [1.1]]))
    assert drop(ball_criterion(pair, 0.5 * 0.5), fewest=1, keep=[0, 1]).kept == (0, 1)


@pytest.mark.slow
def test_sixteen_are_searched_exactly_also_where_all_are_equally_far():
    """No group is worse than another of its size: the bound has to do the work."""
    found = drop(ball_criterion(2 * (1 - np.eye(16)), 0.81))
    assert (found.exact, len(found.kept), len(found.dropped)) == (True, 5, 11)
    assert found.radius_squared == pytest.approx(0.8)
    found = drop(ball_criterion(gaussian(3, 16, 12), 4.0))
    assert found.exact
    assert found.inside
    beyond = drop(ball_criterion(gaussian(3, 17, 12), 9.0))
    assert (beyond.exact, beyond.inside) == (False, True)
    assert 1 <= beyond.dropped_at_least <= len(beyond.dropped)


def test_a_limit_on_mds_alone_drops_the_stranger():
    points = np.vstack([0.2 * np.eye(3, 4), [[0, 0, 0, 3.0]]])
    squared = squared_distances(points)
    for limit in (None, 9.0):
        found = drop(ball_criterion(squared, limit, unrelated(squared, 1.5)))
        assert (found.kept, found.inside) == ((0, 1, 2), True)
    infinite = DifficultyLimit(9.0, "unrelated", np.sqrt(squared), 0.01 * np.ones_like(squared))
    assert not drop(ball_criterion(squared, None, infinite)).inside


def test_what_is_undefined_is_never_inside():
    squared = gaussian(0, 4, 3)
    for reading, chance in (("group_max", None), ("unrelated", None)):
        limit = DifficultyLimit(1e9, reading, np.sqrt(squared), chance)
        criterion = ball_criterion(squared, 1e9, limit)
        assert not criterion.inside((0, 1))
        assert criterion.excess((0, 1)) == np.inf
    nobody = own_task_reading(np.stack([squared] * 2), np.array([0, 1]))
    assert not Criterion(squared, nobody, 1e9).inside((0, 2))
    cancelled = weights_reading(squared, np.array([1.0, -1.0, 0.5, 0.5]), base=None)
    assert not Criterion(squared, cancelled, 1e9).inside((0, 1))
    with pytest.raises(EvaluationError, match="finite"):
        ball_criterion(squared * np.nan, 1.0)
    assert ball_criterion(squared, 0.0).inside((2,))


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_readings_of_a_group_are_those_of_its_own_matrices(seed):
    squared = np.stack([gaussian(seed + i, 5, 3) for i in range(4)])
    group = (0, 2, 3)
    reading = own_task_reading(squared, np.array([0, 2, 3, 0]))
    part = squared[:, group][:, :, group]
    expected = minimax_distortion(part, np.array([0, 1, 2, 0])).distortion
    assert reading.value(group) == pytest.approx(expected)
    # A candidate (4) in the place of expert 2, with its tasks.
    stands = own_task_reading(squared, np.array([0, 2, 3, 0]), np.array([0, 1, 2, 3, 2]))
    taken = squared[:, (0, 4, 3)][:, :, (0, 4, 3)]
    expected = minimax_distortion(taken, np.array([0, 1, 2, 0])).distortion
    assert stands.value((0, 4, 3)) == pytest.approx(expected)


def test_weights_without_a_base_are_scaled_and_with_one_are_kept():
    squared = gaussian(1, 4, 3)
    own = np.array([0.5, 0.3, 0.2])
    scaled = weights_reading(squared[:3, :3], own, base=None)
    expected = predicted_distortion(squared[:2, :2], np.array([0.625, 0.375])).max()
    assert scaled.value((0, 1)) == pytest.approx(expected)
    kept = weights_reading(squared, np.append(own, 0.0), base=3)
    alpha = np.array([0.5, 0.3, 0.0, 0.2])
    assert kept.value((0, 1)) == pytest.approx(predicted_distortion(squared, alpha)[:2].max())
