"""Merging loss: the paper's Eq. 1, its sign, and where it is undefined."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.merging_loss import merging_losses
from mergekit_collapse.evaluation.scoring_set import ScoredTask, ScoringSet

SET = ScoringSet(
    (ScoredTask("first", 1, 0, "accuracy", 10), ScoredTask("second", 3, 2, "likelihood", 4)), (), ()
)


def test_worse_is_negative_and_better_is_positive():
    first, second = merging_losses(SET, {1: 0.8, 3: 0.2}, {1: 0.6, 3: 0.3})
    assert (first.name, first.owner, first.metric, first.rows) == ("first", 0, "accuracy", 10)
    assert (first.expert, first.merged) == (0.8, 0.6)
    assert first.loss_percent == pytest.approx(-25)
    assert second.loss_percent == pytest.approx(50)
    assert first.loss_reason is second.loss_reason is None


scores = st.floats(1e-3, 1)


@given(scores, scores)
def test_the_merge_is_what_the_loss_leaves_of_the_expert(expert, merged):
    loss = merging_losses(SET, {1: expert, 3: 1.0}, {1: merged, 3: 0.0})
    assert expert * (1 + loss[0].loss_percent / 100) == pytest.approx(merged)
    assert (loss[0].loss_percent < 0) == (merged < expert)
    assert loss[1].loss_percent == -100


def test_an_expert_that_fails_its_own_task_leaves_no_loss():
    first, second = merging_losses(SET, {1: 0.0, 3: 5e-324}, {1: 0.5, 3: 1.0})
    assert first.loss_percent is None
    assert first.loss_reason == (
        "the expert itself scores 0 on its own task, and Eq. 1 divides by it"
    )
    assert second.loss_percent is None
    assert "too near 0" in second.loss_reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_what_is_no_score_is_an_error(bad):
    with pytest.raises(EvaluationError, match="the merge's score on 'first' is"):
        merging_losses(SET, {1: 0.5, 3: 0.5}, {1: bad, 3: 0.5})
    with pytest.raises(EvaluationError, match="the expert's score on 'second' is"):
        merging_losses(SET, {1: 0.5, 3: bad}, {1: 0.5, 3: 0.5})


def test_a_missing_score_is_an_error():
    with pytest.raises(EvaluationError, match="the merge's score on 'second' is missing"):
        merging_losses(SET, {1: 0.5, 3: 0.5}, {1: 0.5})
