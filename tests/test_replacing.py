"""Replacements: the right one is taken, a twin never, and what was tried is said."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, squared_distances

from mergekit_collapse.remedy.criterion import Criterion, DifficultyLimit
from mergekit_collapse.remedy.group_reading import ball_reading, in_own_scale, weights_reading
from mergekit_collapse.remedy.own_task_reading import (
    own_task_reading,
    own_task_weights_reading,
)
from mergekit_collapse.remedy.replacing import replace_experts
from mergekit_collapse.repair.replacement_limits import Lineup


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
    assert "and 2 left out as twins or members; the best" in alone.reason
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


def test_of_two_the_one_gives_way_that_a_candidate_mends_most():
    """The rest is one expert either way, and says nothing."""
    points = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 0.1], [0.5, 0.0]])
    nearby, mending = 2, 3
    found = replace_experts(criterion(points, 0.1), 2, candidates={0: [nearby], 1: [mending]})
    assert found.members == (0, mending)
    assert [swap.slot for swap in found.swaps] == [1]


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


class OwnTasks:
    """Three experts with a task each, one of them with two, and two candidates, as points."""

    experts, pool = 3, 2
    owner = np.array([0, 1, 2, 1])

    def __init__(self, seed, *, base):
        rng = np.random.default_rng(seed)
        self.lineup = Lineup.of(self.experts, self.pool)
        models = self.experts + self.pool + base
        # On each task the models answer otherwise, and spread otherwise.
        self.points = rng.normal(size=(len(self.owner), models, 4))
        self.spread = rng.uniform(0.5, 2.0, size=(len(self.owner), self.experts + self.pool))
        self.weights = rng.uniform(0.1, 0.6, size=self.experts)
        self.base = len(self.lineup.model) if base else None

    def reading(self):
        """In the scale of the task's own expert, as it is measured."""
        rows = [*self.lineup.model, *([self.experts + self.pool] if self.base else [])]
        squared = np.stack([squared_distances(p[rows]) for p in self.points])
        own = self.spread[np.arange(len(self.owner)), self.owner]
        alpha = self.weights if self.base else self.weights / self.weights.sum()
        return own_task_weights_reading(
            squared / own[:, None, None],
            self.owner,
            np.append(alpha[self.lineup.place], [0.0] * bool(self.base)),
            base=self.base,
            stands_for=self.lineup.place,
            spread=(self.spread / own[:, None])[:, self.lineup.model],
        )

    def worst(self, group):
        """The mixture itself, held against whoever answers for each task."""
        weights = self.weights[self.lineup.place[list(group)]]
        models = self.lineup.model[list(group)]
        if self.base:
            models, weights = [*models, self.experts + self.pool], [*weights, 1 - weights.sum()]
        else:
            weights = weights / weights.sum()
        found = []
        for task, owner in enumerate(self.owner):
            stands = next((m for m in group if self.lineup.place[m] == owner), None)
            if stands is not None:
                model = self.lineup.model[stands]
                lost = self.points[task, model] - np.asarray(weights) @ self.points[task, models]
                found.append(float(lost @ lost) / self.spread[task, model])
        return max(found)

    def swaps(self, slot):
        """Every group with one candidate in one place."""
        for row in self.lineup.candidates[slot]:
            yield (*range(slot), row, *range(slot + 1, self.experts))


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_recipes_own_weights_on_own_tasks_are_those_of_the_mixture_itself(seed, base):
    made = OwnTasks(seed, base=base)
    reading = made.reading()
    rows = range(len(made.lineup.model))
    groups = [g for n in (2, 3) for g in combinations(rows, n)]
    groups = [g for g in groups if len(set(made.lineup.place[list(g)])) == len(g)]
    assert len(groups) > 40
    for group in groups:
        assert reading.value(group) == pytest.approx(made.worst(group)), group


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_on_own_tasks_under_own_weights_the_best_single_swap_is_that_of_brute_force(seed, base):
    made = OwnTasks(seed, base=base)
    start = tuple(range(made.experts))
    best = {slot: min(made.worst(g) for g in made.swaps(slot)) for slot in start}
    # A limit that one swap reaches, whichever place it is for.
    limit = max(min(best.values()), 0.6 * made.worst(start))
    criterion = Criterion(np.zeros((9, 9)) + 1, made.reading(), limit)
    found = replace_experts(criterion, made.experts, candidates=made.lineup.candidates)
    if made.worst(start) <= limit:
        assert found.swaps == ()
        return
    first = found.swaps[0] if found.swaps else None
    assert first is not None or not found.inside
    if first is not None:
        assert first.before == pytest.approx(made.worst(start))
        assert first.after == pytest.approx(best[first.slot])
        assert found.value == pytest.approx(made.worst(found.members))
        assert found.value <= limit


def test_a_member_without_a_task_or_weights_that_cancel_are_never_inside():
    squared = np.stack([squared_distances(gaussian_points(0, 3, 2))] * 2)
    owner = np.array([0, 1])
    reading = own_task_weights_reading(squared, owner, np.array([0.5, 0.5, 0.2]), base=None)
    assert np.isnan(reading.value((0, 2)))
    cancelling = own_task_weights_reading(squared, owner, np.array([0.5, -0.5, 1.0]), base=None)
    assert np.isnan(cancelling.value((0, 1)))
    assert not Criterion(squared[0], cancelling, 9.0).inside((0, 1))


@pytest.mark.parametrize("seed", range(4))
def test_a_group_is_read_in_its_own_scale_whatever_else_is_in_the_pool(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(5, 3))
    own = rng.uniform(0.2, 50.0, size=5)
    pooled = squared_distances(points) / own.mean()
    spread = own / own.mean()
    for group in combinations(range(5), 3):
        part = squared_distances(points[list(group)]) / own[list(group)].mean()
        for make in (ball_reading, even_weights):
            expected = make(part).value((0, 1, 2))
            found = in_own_scale(make(pooled), spread).value(group)
            assert found == pytest.approx(expected)


def even_weights(squared):
    return weights_reading(squared, np.ones(len(squared)), base=None)


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
