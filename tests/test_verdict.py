"""Which readings pass which limits, and what a refusal advises."""

import dataclasses

import numpy as np
import pytest

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.judging import judge
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.states.states import SpaceStates

pytestmark = pytest.mark.slow

NAMES = ("near", "close", "odd")


def geometry(states, alpha=(1 / 3, 1 / 3, 1 / 3), owners=(0, 1, 2)):
    """Two like experts and an odd one, on three tasks of twelve probes."""
    count = states.shape[1]
    space = SpaceStates(
        "hidden", "mean", (1,), (states.astype(np.float32),), np.arange(count, dtype=np.int64)
    )
    task = np.repeat(np.arange(3), count // 3).astype(np.int64)
    return measure(
        space,
        len(states),
        task,
        [(f"task{i}", owner) for i, owner in enumerate(owners)],
        scale="variance",
        coefficients=None if alpha is None else np.array(alpha, dtype=np.float64),
        coefficients_reason="no weights here",
        seed=0,
        models=NAMES[: len(states)],
    )


@pytest.fixture
def states():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(36, 16))
    near = common + 0.1 * rng.normal(size=(2, 36, 16))
    return np.concatenate([near, rng.normal(size=(1, 36, 16))])


def budget(**keys):
    """Both limits are set, unless a test leaves one out."""
    return BudgetBlock.model_validate({"mds": 3.0} | keys)


def verdict(found, warn_only=False, **keys):
    return judge(found, budget(**keys), NAMES, warn_only=warn_only)


def test_like_experts_are_allowed(states):
    rng = np.random.default_rng(1)
    alike = states[:1] + 0.1 * rng.normal(size=(3, 36, 16))
    allowed = verdict(geometry(alike))
    assert (allowed.decision, allowed.exit_code, allowed.reasons) == ("allow", 0, ())


def test_an_odd_expert_is_refused_and_named(states):
    found = verdict(geometry(states), mds=None)
    assert (found.decision, found.exit_code) == ("refuse", 3)
    (reason,) = found.reasons
    assert (reason.rule, reason.reading) == ("distortion", "ball, hidden space")
    assert "odd" in reason.subject
    assert reason.value > reason.limit == 0.45
    assert "Merge 2 models instead of one: near + close | odd" in reason.advice


def test_the_difficulty_of_an_odd_expert_is_over_its_limit(states):
    reasons = verdict(geometry(states), distortion=None).reasons
    assert {r.subject for r in reasons} >= {"odd"}
    assert {(r.rule, r.reading) for r in reasons} == {("mds", "unrelated, hidden space")}


def test_warn_tells_and_allows(states):
    found = verdict(geometry(states), warn_only=True)
    assert (found.decision, found.exit_code) == ("warn", 0)
    assert found.reasons


def test_the_corollary_is_the_papers_test(states):
    found = geometry(states)
    at = found.bounds.corollary
    assert verdict(found, rule="corollary", distortion=at * 1.001, mds=None).decision == "allow"
    assert verdict(found, rule="corollary", distortion=at * 0.999, mds=None).decision == "refuse"


def test_weights_are_judged_expert_by_expert_and_better_ones_are_advised(states):
    found = geometry(states, alpha=(0.5, 0.5, 0.0))
    limit = found.ball.radius_squared * 1.01
    (reason,) = verdict(found, rule="weights", distortion=limit, mds=None).reasons
    assert reason.subject == "odd"
    assert "With the weights" in reason.advice


def test_own_tasks_name_who_to_part(states):
    found = geometry(states)
    reasons = verdict(found, over="own_task", rule="weights", distortion=0.01, mds=None).reasons
    assert any(r.subject == "odd on task2" for r in reasons)
    assert all("part them" in r.advice for r in reasons)
    (ball,) = verdict(found, over="own_task", distortion=0.01, mds=None).reasons
    assert ball.value == pytest.approx(found.own_task.minimax.distortion)


@pytest.mark.parametrize(
    ("found", "keys"),
    [
        ({"alpha": None}, {"rule": "weights"}),
        ({"owners": (0, 1, None)}, {"over": "own_task"}),
        ({"owners": (0, 1, None)}, {"over": "own_task", "rule": "weights"}),
    ],
)
def test_an_undefined_reading_allows_nothing(states, found, keys):
    with pytest.raises(EvaluationError, match=r"the deciding reading, .* is undefined"):
        verdict(geometry(states, **found), **keys)


def test_equidistant_experts_are_judged_by_the_default_reading_alone(states):
    """Every S of the group-relative readings is 0/0 or 0, though the experts are near."""
    # In sixty-fourths, so that float32 holds them and the distances are equal to the last bit.
    apart = np.round(64 * states[0]) / 64 + 0.125 * np.eye(3, 16)[:, None, :]
    with pytest.raises(EvaluationError, match="all distances are equal"):
        verdict(geometry(apart), similarity="group_minmax")
    assert verdict(geometry(apart), similarity="group_max").decision == "refuse"
    assert verdict(geometry(apart)).decision == "allow"


def test_a_nan_refuses(states):
    found = geometry(states)
    ball = dataclasses.replace(found.ball, radius_squared=float("nan"))
    broken = dataclasses.replace(found, ball=ball)
    assert verdict(broken, mds=None).decision == "refuse"


def test_an_infinite_difficulty_is_over_every_limit(states):
    """Opposite states are farther apart than unrelated ones, so S is clipped to 0."""
    opposite = np.stack([states[0], -states[0]])
    found = geometry(opposite, alpha=None, owners=(0, 1, None))
    reasons = judge(found, budget(distortion=None, mds=1e9), NAMES[:2], warn_only=False).reasons
    assert [r.value_reason for r in reasons] == ["infinite"] * 2
    assert all(r.value is None for r in reasons)
