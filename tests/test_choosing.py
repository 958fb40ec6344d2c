"""The sets that merge best, against brute force, and how far the search alone is from them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, point_sets, squared_distances

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.remedy.candidate_scores import candidate_scores
from mergekit_collapse.remedy.candidate_sets import CandidateSets, joined_radius
from mergekit_collapse.remedy.choosing import choose_count, choose_within
from mergekit_collapse.remedy.set_proof import prove_best
from mergekit_collapse.remedy.set_search import search_sets

pytestmark = pytest.mark.slow


def radius(squared, members):
    return enclosing_ball(squared[np.ix_(members, members)]).radius_squared


def brute_force(squared, count, required=(), excluded=(), accept=lambda members: True):
    return min(
        (
            radius(squared, members)
            for members in combinations(range(len(squared)), count)
            if set(required) <= set(members) and not set(excluded) & set(members)
            if accept(members)
        ),
        default=None,
    )


def clustered_points(seed, count, dimension=30):
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(max(2, count // 8), dimension))
    return centres[rng.integers(len(centres), size=count)] + 0.5 * rng.normal(
        size=(count, dimension)
    )


def unequal_points(seed, count, dimension=100):
    """Some experts went far from the base, others hardly moved."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) * rng.uniform(0.2, 2, size=(count, 1))


@given(point_sets(max_count=8), st.data())
@settings(max_examples=60, deadline=None)
def test_the_choice_is_that_of_brute_force(points, data):
    squared = squared_distances(points)
    every = st.integers(0, len(points) - 1)
    required = data.draw(st.sets(every, max_size=2))
    excluded = data.draw(st.sets(every, max_size=len(points) - 2)) - required
    most = len(points) - len(excluded)
    count = data.draw(st.integers(max(2, len(required)), most)) if most >= 2 else 2
    if most < 2:
        return
    found = choose_count(squared, count, required=sorted(required), excluded=sorted(excluded))
    best = brute_force(squared, count, required, excluded)
    small = 2e-9 * squared.max()
    assert found.exact
    assert found.radius_squared == pytest.approx(best, abs=small)
    assert found.radius_squared == pytest.approx(radius(squared, found.members), abs=small)
    assert found.lower_bound <= best + small
    assert found.gap == pytest.approx(0, abs=1e-9)
    assert len(set(found.members)) == count
    assert required <= set(found.members)
    assert not excluded & set(found.members)
    assert sum(found.center) == pytest.approx(1)
    assert found.largest is None


@given(point_sets(max_count=7), st.floats(0, 1.2))
@settings(max_examples=60, deadline=None)
def test_the_largest_set_within_a_limit_is_that_of_brute_force(points, share):
    squared = squared_distances(points)
    # A limit beside every r² there is, so that rounding does not decide.
    limit = float(1.0001 * share * enclosing_ball(squared).radius_squared + 1e-7 * squared.max())
    best = {count: brute_force(squared, count) for count in range(2, len(points) + 1)}
    if any(abs(value - limit) < 1e-8 * squared.max() for value in best.values()):
        return
    sizes = [count for count, value in best.items() if value <= limit]
    found = choose_within(squared, limit)
    if not sizes:
        assert found is None
        return
    assert len(found.members) == max(sizes)
    assert found.radius_squared == pytest.approx(best[max(sizes)], abs=2e-9 * squared.max())
    assert (found.exact, found.largest) == (True, True)


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_r2_never_falls_as_a_member_joins_and_the_bound_on_it_holds(seed, count, dimension):
    squared = squared_distances(gaussian_points(seed, count + 1, dimension))
    sets = CandidateSets(squared, (), ())
    members, new = tuple(range(count)), np.array([count])
    bound = joined_radius(sets.radius(members), sets.from_centre(members, new))[0]
    joined = sets.radius((*members, count))
    assert sets.radius(members) - 1e-9 <= bound <= joined + 1e-9 * squared.max()


def test_other_wishes_are_obeyed():
    squared = squared_distances(gaussian_points(3, 9, 4))
    even = lambda members: sum(members) % 2 == 0  # noqa: E731  (a wish in one line)
    found = choose_count(squared, 4, accept=even)
    assert even(found.members)
    assert found.radius_squared == pytest.approx(brute_force(squared, 4, accept=even), abs=1e-9)
    assert choose_count(squared, 4, accept=lambda members: False) is None
    assert choose_within(squared, 1e9, accept=lambda m: len(m) < 6).radius_squared == pytest.approx(
        brute_force(squared, 5), abs=1e-9
    )
    assert choose_within(squared, 1e9, accept=lambda members: False) is None


@pytest.mark.slow
@pytest.mark.parametrize("points", [gaussian_points, clustered_points, unequal_points])
def test_the_search_alone_is_close_to_the_proven_best(points):
    """Beyond the size that can be proven there is only the search: its gap where both exist."""
    gaps = []
    for seed in range(6):
        for count in (3, 5, 8):
            squared = squared_distances(points(seed, 20, 30))
            sets = CandidateSets(squared, (), ())
            found = search_sets(sets, count, 0)
            proof = prove_best(sets, count, None)
            assert proof.complete
            gaps.append(found.radius_squared / proof.best.radius_squared - 1)
    assert min(gaps) >= -1e-8
    assert max(gaps) <= 0.01


@pytest.mark.parametrize("points", [gaussian_points, clustered_points, unequal_points])
def test_8_of_64_are_proven(points):
    found = choose_count(squared_distances(points(1, 64, 100)), 8)
    assert found.exact
    assert found.gap < 1e-8


def test_where_the_proof_is_given_up_the_record_says_so_and_bounds_the_gap():
    squared = squared_distances(gaussian_points(1, 24, 100))
    best = choose_count(squared, 8)
    cut = choose_count(squared, 8, most_work=10**5)
    assert best.exact
    assert not cut.exact
    assert cut.lower_bound <= best.radius_squared <= cut.radius_squared
    assert 0 < cut.gap < 0.2
    assert cut.looked_at < best.looked_at


@pytest.mark.slow
def test_500_candidates_are_chosen_from_by_search():
    squared = squared_distances(clustered_points(0, 500))
    found = choose_count(squared, 8)
    assert len(found.members) == 8
    assert found.gap < 0.05
    clones = np.zeros((500, 500))
    assert choose_within(clones, 0.1).members == tuple(range(500))


def test_the_same_distances_give_the_same_choice():
    squared = squared_distances(gaussian_points(5, 30, 50))
    first, second = (choose_count(squared, 6, seed=7) for _ in range(2))
    assert first == second


def test_equidistant_candidates_are_all_as_good():
    found = choose_count(2 * (1 - np.eye(40)), 6)
    assert found.exact
    assert found.radius_squared == pytest.approx(5 / 6)  # (K - 1) / (2 K) · Δ²


def test_scores_say_what_each_candidate_would_cost():
    """On a line: 0, 1, 2 chosen of 0, 1, 2, 4 and a twin of 1."""
    squared = squared_distances(np.array([[0.0], [1], [2], [4], [1]]))
    choice = choose_count(squared, 3, required=[0, 2], excluded=[4])
    assert (choice.members, choice.radius_squared) == ((0, 1, 2), pytest.approx(1))
    scores = candidate_scores(squared, choice, required=[0, 2])
    assert [s.score for s in scores] == pytest.approx([1, 1, 1, 0.25, 1])
    assert [s.swapped for s in scores] == pytest.approx([1, 1, 1, 4, 1])
    assert [s.added for s in scores] == pytest.approx([1, 1, 1, 4, 1])
    assert [s.removed for s in scores[:3]] == pytest.approx([0.25, 1, 0.25])
    assert [s.removed for s in scores[3:]] == [None, None]
    fixed = candidate_scores(squared, choice, required=[0, 1, 2])
    assert (fixed[3].score, fixed[3].swapped) == (None, None)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_swap_is_the_best_of_all_swaps(seed):
    squared = squared_distances(gaussian_points(seed, 9, 3))
    choice = choose_count(squared, 4)
    for index, score in enumerate(candidate_scores(squared, choice)):
        if index not in choice.members:
            swaps = [(*(m for m in choice.members if m != old), index) for old in choice.members]
            best = min(radius(squared, tuple(sorted(s))) for s in swaps)
            assert score.swapped == pytest.approx(best, abs=1e-8)
            assert score.swapped <= score.added + 1e-9
            assert score.score == pytest.approx(choice.radius_squared / best, abs=1e-6)


def test_bad_wishes_and_distances_are_refused():
    squared = squared_distances(gaussian_points(0, 5, 3))
    for options, message in (
        ({"count": 1}, "a set of 1"),
        ({"count": 6}, "at most 5"),
        ({"count": 2, "required": [0, 1, 2]}, "at least 3"),
        ({"count": 4, "excluded": [0, 1]}, "at most 3"),
        ({"count": 2, "required": [0], "excluded": [0]}, "both required and excluded"),
        ({"count": 2, "required": [5]}, "no candidate 5"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_count(squared, **options)
    squared[0, 1] = np.nan
    with pytest.raises(EvaluationError, match="finite"):
        choose_count(squared, 2)
