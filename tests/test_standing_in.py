"""Who may stand in whose place: named in the pool, and able to do the expert's tasks."""

import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import gaussian_points, squared_distances
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.limits import EvaluateBlock
from mergekit_collapse.recipe.pool_experts import expert_called, renamed_experts, with_renamed
from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.remedy.criterion import Criterion
from mergekit_collapse.remedy.group_reading import ball_reading
from mergekit_collapse.remedy.replacing import replace_experts
from mergekit_collapse.remedy.same_tasks import OwnTask, falls_short
from mergekit_collapse.repair.replacement_limits import Lineup
from mergekit_collapse.repair.standing_in import loss_limit, standing_in
from mergekit_collapse.repair.substitute_pool import SubstitutePool, substitute_pool

SPAM = OwnTask(0, "spam", 1, "spam-lora", 0.9)


def test_a_candidate_that_does_not_do_the_task_falls_short_and_it_is_said():
    assert falls_short(SPAM, 0.52, 20.0) == (
        "it scores 0.52 on spam, where spam-lora scores 0.9 (at least 0.72 is needed)"
    )
    assert falls_short(SPAM, None, 20.0).startswith("it has no score on spam")
    assert falls_short(SPAM, math.nan, 20.0) is not None
    # Rounding of 0.8 · 0.9 = 0.7200000000000001 refuses nobody.
    assert falls_short(SPAM, 0.72, 20.0) is None
    assert falls_short(SPAM, 0.7199, 20.0) is not None
    assert falls_short(SPAM, 0.9, 0.0) is None
    assert falls_short(SPAM, 0.8999, 0.0) is not None


def test_what_a_candidate_may_lose_is_what_the_merge_may():
    assert loss_limit(EvaluateBlock(max_merging_loss=5)) == 5
    assert loss_limit(EvaluateBlock(max_merging_loss=None)) == 20
    assert loss_limit(EvaluateBlock()) == 20
    # A merge that may lose everything asks nothing of a candidate.
    for loose in (100, 150, 1e9):
        assert falls_short(SPAM, 0.0, loss_limit(EvaluateBlock(max_merging_loss=loose)))


def pool_of(count, may_take, *, named):
    models = tuple(ModelReference.parse(f"c{i}") for i in range(count))
    return SubstitutePool(models, may_take, named)


def held(pool, places, tasks, scores, max_loss=20.0):
    lineup = Lineup.of(len(pool.may_take), len(pool.models))
    found = standing_in(pool, places, lineup, tasks=tasks, scores=scores, max_loss=max_loss)
    offered = {p: [int(lineup.model[r]) for r in rows] for p, rows in found.rows.items()}
    unfit = {(p, int(lineup.model[r])): reason for (p, r), reason in found.unfit.items()}
    return offered, unfit


def test_every_scored_task_of_the_expert_counts_and_no_other():
    more = OwnTask(2, "ham", 1, "spam-lora", 0.8)
    other = OwnTask(1, "era", 0, "era-lora", 1.0)
    pool = pool_of(3, ((0, 1, 2), (0, 1, 2)), named=False)
    scores = {(2, 0): 0.9, (2, 2): 0.1, (3, 0): 0.8, (3, 2): 0.8}
    scores |= {(2, 1): 1.0, (3, 1): 0.5, (4, 1): math.nan}
    offered, unfit = held(pool, (0, 1), (SPAM, other, more), scores)
    assert offered == {0: [2, 3, 4], 1: [2, 3, 4]}
    assert set(unfit) == {(0, 3), (0, 4), (1, 2), (1, 4)}
    assert unfit[1, 2].startswith("it scores 0.1 on ham")
    assert unfit[1, 4] == (
        "it has no score on spam, where spam-lora scores 0.9 (at least 0.72 is needed); "
        "it has no score on ham, where spam-lora scores 0.8 (at least 0.64 is needed)"
    )


@pytest.mark.parametrize("named", [True, False])
def test_without_a_score_the_recipes_word_is_taken_and_nothing_else(named):
    pool = pool_of(2, ((0,), (0, 1)), named=named)
    offered, unfit = held(pool, (0, 1), (SPAM,), {(2, 0): 0.9, (3, 0): 0.2})
    assert offered == {0: [2] if named else [], 1: [2, 3]}
    # Named or not, who is scored is held to the score.
    assert set(unfit) == {(1, 3)}


@pytest.mark.parametrize("useless", [0.0, math.nan])
@pytest.mark.parametrize("named", [True, False])
def test_a_task_that_its_own_expert_cannot_do_tells_nothing(named, useless):
    nil = OwnTask(1, "era", 0, "era-lora", useless)
    pool = pool_of(2, ((0, 1), (0, 1)), named=named)
    scores = {(2, 0): 0.9, (3, 0): 0.2, (2, 1): 0.0, (3, 1): 1.0}
    offered, unfit = held(pool, (0, 1), (SPAM, nil), scores)
    assert offered == {0: [2, 3] if named else [], 1: [2, 3]}
    assert set(unfit) == {(1, 3)}
    # Beside one that the expert does, that one decides.
    more = OwnTask(2, "ham", 0, "era-lora", 0.8)
    offered, unfit = held(pool, (0, 1), (SPAM, nil, more), scores | {(2, 2): 0.8, (3, 2): 0.1})
    assert offered == {0: [2, 3], 1: [2, 3]}
    assert set(unfit) == {(0, 3), (1, 3)}


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_swap_ever_has_a_candidate_below_the_score(seed, experts, size, named):
    rng = np.random.default_rng(seed)
    tasks = tuple(
        OwnTask(i, f"t{i}", int(rng.integers(experts)), "owner", float(rng.uniform(0.2, 1)))
        for i in range(experts)
    )
    scores = {
        (experts + c, t.index): float(rng.choice([rng.uniform(), math.nan, 1.0], p=[0.6, 0.1, 0.3]))
        for c in range(size)
        for t in tasks
        if rng.uniform() < 0.9
    }
    may_take = tuple(tuple(c for c in range(size) if rng.uniform() < 0.7) for _ in range(experts))
    pool, lineup = pool_of(size, may_take, named=named), Lineup.of(experts, size)
    squared = squared_distances(gaussian_points(seed, experts + size, 3))
    squared = squared[np.ix_(lineup.model, lineup.model)]
    limit = float(rng.uniform(0.2, 1)) * ball_reading(squared).value(tuple(range(experts)))
    may = standing_in(pool, range(experts), lineup, tasks=tasks, scores=scores, max_loss=20.0)
    found = replace_experts(
        Criterion(squared, ball_reading(squared), limit),
        experts,
        candidates=may.rows,
        unfit=may.unfit,
    )
    for swap in found.swaps:
        model = int(lineup.model[swap.candidate])
        assert model - experts in may_take[swap.slot]
        owned = [t for t in tasks if t.owner == swap.slot]
        assert owned or named
        for task in owned:
            assert scores[model, task.index] >= 0.8 * task.score * (1 - 1e-9)
    for trial in found.tried:
        assert trial.unfit == ((trial.slot, trial.candidate) in may.unfit)
        assert trial.value is None or not trial.unfit


def test_who_is_left_out_for_its_score_is_counted_apart_from_twins():
    points = [[0.0], [0.2], [5.0], [0.2], [0.1], [4.0]]
    squared = squared_distances(np.array(points))
    judge = Criterion(squared, ball_reading(squared), 0.001)
    found = replace_experts(judge, 3, keep=[0, 1], unfit={(2, 4): "it cannot"})
    assert [t.reason for t in found.tried if t.unfit] == ["it cannot"]
    assert found.reason.startswith(
        "1 replacement was tried, 1 left out as a twin or member and 1 left out for its score; "
    )
    # The same candidate would have been the best.
    assert replace_experts(judge, 3, keep=[0, 1]).tried[1].value == pytest.approx(0.01)


def recipe(tmp_path, pool, models=("x/left", "x/right", "lone"), owner="x/right"):
    listed = [{"model": m, "parameters": {"weight": 1.0}} for m in models]
    tasks = [{"name": "jobs", "data": "rows.txt", "model": owner}]
    tasks.append({"name": "nobodys", "data": "rows.txt"})
    compat = {"probes": {"tasks": tasks}, "substitute": {"pool": pool}}
    return build_recipe(
        MergeConfiguration.model_validate({"merge_method": "linear", "models": listed}),
        compat,
        source=yaml.safe_dump({"compat": compat}),
        path=tmp_path / "recipe.yml",
    )


def test_an_expert_of_a_pool_is_called_by_name_model_or_task(tmp_path):
    found = recipe(tmp_path, [])
    for text, index in (("left", 0), ("x/left", 0), ("right", 1), ("jobs", 1), ("lone", 2)):
        assert expert_called(text, found) == index
    with pytest.raises(InvalidRecipeError, match=r"pool: rihgt is no expert.*mean 'right'\?.*left"):
        expert_called("rihgt", found)
    with pytest.raises(InvalidRecipeError, match="nobodys is no expert of this recipe, nor a task"):
        expert_called("nobodys", found)
    both = recipe(tmp_path, [], models=("x/left", "jobs"), owner="x/left")
    with pytest.raises(InvalidRecipeError, match=r"pool: jobs may be x/left and jobs; name the"):
        expert_called("jobs", both)


def test_a_pool_finds_an_expert_where_a_task_does(tmp_path):
    """Also among the earlier merges of mergekit-multi."""
    for folder in ("merges/first", "second"):
        (tmp_path / folder).mkdir(parents=True)
    models = [str(tmp_path / "merges" / "first"), str(tmp_path / "second")]
    tasks = [{"name": "jobs", "data": "rows.txt", "model": "./first"}]
    found = build_recipe(
        MergeConfiguration.model_validate(
            {"merge_method": "linear", "models": [{"model": m} for m in models]}
        ),
        {"probes": {"tasks": tasks}},
        folder=tmp_path,
        merges=tmp_path / "merges",
    )
    assert found.owners == (0,)
    assert (expert_called("./first", found), expert_called("./second", found)) == (0, 1)


def test_the_places_of_a_pool_are_those_of_its_experts(tmp_path):
    found = substitute_pool(recipe(tmp_path, {"left": ["a", "lone"], "jobs": "b", "right": ["a"]}))
    assert [str(model) for model in found.models] == ["a", "b"]
    assert (found.may_take, found.named) == (((0,), (0, 1), ()), True)
    found = substitute_pool(recipe(tmp_path, ["a", "b", "a"]))
    assert (found.may_take, found.named) == (((0, 1),) * 3, False)
    with pytest.raises(InvalidRecipeError, match=r"pool\.left\[1\]: .*nowhere: no such folder"):
        substitute_pool(recipe(tmp_path, {"left": ["a", "./nowhere"]}))


def test_a_pool_names_the_experts_that_there_are_after_a_change(tmp_path):
    pool = {"left": ["a"], "jobs": ["b"], "x/right": ["c"], "lone": "d"}
    old = recipe(tmp_path, pool)
    new = recipe(tmp_path, pool, models=("x/left", "y/left", "lone"), owner="y/left")
    assert new.names == ("x/left", "y/left", "lone")
    keys = renamed_experts(old, new)
    # One name means two models now, and another model does the task.
    assert keys == {"left": "x/left", "jobs": "jobs", "x/right": "y/left", "lone": "lone"}
    changed = with_renamed(pool, keys)
    assert changed == {"x/left": ["a"], "jobs": ["b"], "y/left": ["c"], "lone": "d"}
    assert substitute_pool(recipe(tmp_path, changed, ("x/left", "y/left", "lone"), "y/left"))
    with_folders = {"spam": "./seed1", "./models/spam": ["./b"], "era": "./seed2"}
    both = with_renamed(with_folders, {"spam": "new", "./models/spam": "new"})
    assert both == {"new": ["./seed1", "./b"], "era": "./seed2"}
    assert with_renamed({"a": ["./b"], "b": "./seed1"}, {"a": "b"}) == {"b": ["./b", "./seed1"]}
    assert with_renamed({"a": "./a1", "b": "./b1"}, {"a": "b"}) == {"b": ["./a1", "./b1"]}
    assert with_renamed(["a"], {}) == ["a"]
