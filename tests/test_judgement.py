"""Each limit on a merged model, alone and together, and what is no number."""

import dataclasses
import json
import math

import pytest

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.evaluation.merging_loss import TaskLoss
from mergekit_collapse.evaluation.own_answers import unjudged
from mergekit_collapse.evaluation.smoke import Check
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import Measured, MeasuredTask
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
from mergekit_collapse.report.evaluation_document import verdict_document
from mergekit_collapse.verdict import passed

NAMES = ("near", "odd")
NO_LIMITS = dict.fromkeys(
    (
        *("max_distortion", "max_merging_loss", "max_own_distortion"),
        *("min_variance_ratio", "min_rank_ratio"),
    )
)


def space(*distortion, own=(0.1, 0.2), reason=None):
    tasks = tuple(MeasuredTask(f"task{i}", i, value, None) for i, value in enumerate(own))
    tasks = (*tasks, MeasuredTask("builtin", None, None, "no expert owns this task"))
    worst = max(own) if reason is None else None
    return Measured((4,), distortion, tasks, worst, reason)


def answers(*own):
    return space(0.01, 0.02, own=own)


def layer(number, variance_ratio=1.0, rank_ratio=1.0):
    return LayerReading(number, (0.1, 0.1), 2.0, variance_ratio, 3.0, rank_ratio)


def loss(percent, name="task0", owner=0):
    merged = 0.8 * (1 + (percent or 0) / 100)
    reason = "the expert scores 0" if percent is None else None
    return TaskLoss(name, owner, "accuracy", 8, 0.8, merged, percent, reason)


GOOD = Evaluation(
    "merged",
    "out",
    hidden=space(0.1, 0.4),
    predictive=space(0.01, 0.02),
    layers=(layer(1), layer(2)),
    tasks=(loss(-5.0), loss(3.0, "task1", 1)),
    checks=(Check("finite", True, "no NaN"),),
)


def judged(found, budget=None, *, exit_code=4, warn_only=False, given_up=(), **limits):
    block = EvaluateBlock.model_validate(limits)
    budget = BudgetBlock.model_validate(budget or {})
    how = {"exit_code": exit_code, "warn_only": warn_only, "given_up": given_up}
    return judge_merged(found, block, budget, NAMES, **how)


def changed(**keys):
    return dataclasses.replace(GOOD, **keys)


def rules(verdict):
    return [reason.rule for reason in verdict.reasons]


def test_what_is_given_up_is_told_and_decides_nothing():
    lost = changed(hidden=space(0.1, 1.9), tasks=(loss(-5.0), loss(-90.0, "task1", 1)))
    verdict = judged(lost, given_up=["odd"])
    assert (verdict.decision, verdict.exit_code) == ("modified", 0)
    assert [r.subject for r in verdict.reasons] == ["odd", "odd on task1"]
    own = judged(
        changed(hidden=space(0.0, 0.0, own=(0.1, 1.9))), {"over": "own_task"}, given_up=["odd"]
    )
    assert (own.decision, own.reasons[0].subject) == ("modified", "odd on task1")


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        ({"hidden": space(1.9, 1.9)}, "max_distortion"),
        ({"hidden": space(0.1, math.nan)}, "max_distortion"),
        ({"tasks": (loss(-50.0),)}, "max_merging_loss"),
        ({"layers": (layer(1, variance_ratio=0.1),)}, "min_variance_ratio"),
        ({"checks": (Check("finite", False, "NaN"),)}, "check"),
    ],
)
def test_for_anything_else_the_merge_is_rejected_all_the_same(change, extra):
    verdict = judged(changed(**{"hidden": space(0.1, 1.9), **change}), given_up=["odd"])
    assert (verdict.decision, verdict.exit_code) == ("refuse", 4)
    assert extra in rules(verdict)
    assert "max_distortion" in rules(verdict)


def test_a_name_that_begins_like_that_of_one_given_up_is_not_given_up():
    verdict = judged(changed(hidden=space(0.1, 1.9)), given_up=["od", "near"])
    assert verdict.decision == "refuse"


def test_a_good_merge_is_allowed():
    verdict = judged(GOOD)
    assert (verdict.decision, verdict.exit_code, verdict.reasons) == ("allow", 0, ())


BAD = {
    "max_distortion": changed(hidden=space(0.1, 1.6)),
    "max_merging_loss": changed(tasks=(loss(-25.0), loss(40.0, "task1", 1))),
    "max_own_distortion": changed(tasks=(loss(3.0, "task1", 1),), predictive=answers(0.3, 0.9)),
    "min_variance_ratio": changed(layers=(layer(1), layer(2, 0.4), layer(3, 0.3), layer(4))),
    "min_rank_ratio": changed(layers=(layer(1), layer(2, 1.0, 0.25))),
}
READINGS = {
    "max_distortion": ("odd", 1.6, 1.0),
    "max_merging_loss": ("near on task0", 25.0, 20),
    "max_own_distortion": ("near on task0", 0.3, 0.25),
    "min_variance_ratio": ("layer 3", 0.3, 0.5),
    "min_rank_ratio": ("layer 2", 0.25, 0.5),
}


@pytest.mark.parametrize("rule", BAD)
def test_each_limit_refuses_alone(rule):
    verdict = judged(BAD[rule])
    assert (verdict.decision, verdict.exit_code, rules(verdict)) == ("refuse", 4, [rule])
    reason = verdict.reasons[0]
    assert (reason.subject, reason.value, reason.limit) == READINGS[rule]
    assert reason.value_reason is None
    assert reason.advice


@pytest.mark.parametrize("rule", BAD)
def test_a_limit_that_is_null_is_none(rule):
    assert judged(BAD[rule], **{rule: None}).decision == "allow"


@pytest.mark.parametrize("rule", BAD)
def test_a_reading_on_its_limit_is_inside(rule):
    _, value, _ = READINGS[rule]
    assert judged(BAD[rule], **{rule: value}).decision == "allow"
    beyond = math.nextafter(value, 1000 if rule.startswith("min") else -1)
    assert judged(BAD[rule], **{rule: beyond}).decision == "refuse"


def test_a_failed_check_has_no_limit_that_could_be_switched_off():
    checks = (Check("finite", True, "fine"), Check("keys", False, "two keys are missing"))
    verdict = judged(changed(checks=checks), **NO_LIMITS)
    assert verdict.exit_code == 4
    (reason,) = verdict.reasons
    assert (reason.rule, reason.subject, reason.reading) == ("check", "keys", checks[1].detail)
    assert (reason.value, reason.limit) == (None, None)


def test_a_model_that_failed_its_checks_is_judged_by_them():
    """Its answers were not measured, which the failed check explains."""
    found = Evaluation("merged", "out", checks=(Check("keys", False, "missing"),))
    assert rules(judged(found)) == ["check"]


def test_all_reasons_are_told_together():
    everything = dataclasses.replace(
        BAD["max_distortion"],
        tasks=BAD["max_merging_loss"].tasks[:1],
        predictive=answers(0.1, 0.3),
        layers=(layer(1, 0.1, 0.2),),
        checks=(Check("loads", False, "no"),),
    )
    assert rules(judged(everything)) == ["check", *BAD]
    assert rules(judged(dataclasses.replace(everything, hidden=space(1.6, 1.7)))) == [
        *("check", "max_distortion"),
        *BAD,
    ]


@pytest.mark.parametrize("rule", BAD)
def test_warn_only_tells_and_allows(rule):
    verdict = judged(BAD[rule], warn_only=True)
    assert (verdict.decision, verdict.exit_code, rules(verdict)) == ("warn", 0, [rule])
    assert judged(GOOD, warn_only=True).decision == "allow"


def test_the_exit_code_is_the_callers():
    assert judged(BAD["max_distortion"], exit_code=3).exit_code == 3


NO_NUMBER = {
    "max_distortion": lambda bad: changed(hidden=space(bad, 0.1)),
    "max_merging_loss": lambda bad: changed(tasks=(loss(-1.0), loss(bad, "task1", 1))),
    "max_own_distortion": lambda bad: changed(tasks=(), predictive=answers(bad, 0.1)),
    "min_variance_ratio": lambda bad: changed(layers=(layer(1, 0.9), layer(2, bad), layer(3))),
    "min_rank_ratio": lambda bad: changed(layers=(layer(1), layer(2, 1.0, bad), layer(3))),
}


# Endlessly little distortion and endlessly much gain are numbers that are inside any limit.
INSIDE = {
    *((rule, -math.inf) for rule in ("max_distortion", "max_own_distortion")),
    ("max_merging_loss", math.inf),
}


@pytest.mark.parametrize(
    ("rule", "bad"),
    sorted({(rule, bad) for rule in NO_NUMBER for bad in (math.inf, -math.inf)} - INSIDE)
    + [(rule, math.nan) for rule in NO_NUMBER],
)
def test_what_is_no_number_refuses_and_is_null_in_json(rule, bad):
    verdict = judged(NO_NUMBER[rule](bad))
    assert (verdict.exit_code, rules(verdict)) == (4, [rule])
    (reason,) = verdict.reasons
    assert (reason.value, reason.value_reason) == (None, "not a finite number")
    (told,) = json.loads(json.dumps(verdict_document(verdict), allow_nan=False))["reasons"]
    assert told["value"] is None
    assert told["value_reason"] == "not a finite number"
    assert "not a finite number" in str(reason)


def test_a_nan_is_not_hidden_by_a_lower_number():
    layers = (layer(1, 0.9), layer(2, 0.6), layer(3, math.nan), layer(4, 0.7))
    (reason,) = judged(changed(layers=layers)).reasons
    assert reason.subject == "layer 3"


def test_eq_1_counts_a_loss_as_negative():
    assert judged(changed(tasks=(loss(-19.9),))).decision == "allow"
    assert judged(changed(tasks=(loss(200.0),))).decision == "allow"
    (reason,) = judged(changed(tasks=(loss(-100.0),))).reasons
    assert reason.value == 100
    assert "0.8 became 0" in reason.reading
    # With a limit of 0, nothing may be lost and anything gained.
    assert judged(changed(tasks=(loss(0.0), loss(1.0))), max_merging_loss=0).decision == "allow"
    assert judged(changed(tasks=(loss(-0.1),)), max_merging_loss=0).decision == "refuse"


def test_an_expert_that_scores_nothing_has_nothing_to_lose():
    assert judged(changed(tasks=(loss(None),))).decision == "allow"


def test_what_no_expert_has_is_not_judged():
    """The embeddings, and layers where the experts do not vary or that none of them has."""
    assert judged(changed(layers=(layer(0, 0.0, 0.0), layer(1, None, None)))).decision == "allow"


def test_the_space_of_the_budget_decides():
    budget = {"space": "predictive"}
    over = changed(predictive=space(0.1, 1.6))
    assert judged(over).decision == "allow"
    assert judged(BAD["max_distortion"], budget).decision == "allow"
    (reason,) = judged(over, budget).reasons
    assert reason.reading == "measured, predictive space"


def test_own_tasks_decide_where_they_are_asked_for():
    budget = {"over": "own_task"}
    found = changed(hidden=space(1.9, 1.9, own=(0.1, 0.2)))
    assert judged(found).decision == "refuse"
    assert judged(found, budget).decision == "allow"
    (reason,) = judged(changed(hidden=space(0.1, 0.1, own=(1.7, 0.2))), budget).reasons
    assert (reason.subject, reason.value) == ("near on task0", 1.7)
    assert reason.reading == "measured on own tasks, hidden space"


@pytest.mark.parametrize(
    ("change", "budget", "told"),
    [
        (
            {"predictive": None, "predictive_reason": "the models have no head"},
            {"space": "predictive"},
            "but the models have no head",
        ),
        (
            {"hidden": space(0.1, 0.1, reason="not every expert owns a task")},
            {"over": "own_task"},
            "but not every expert owns a task",
        ),
        ({"hidden": None}, {}, "was not measured"),
    ],
)
def test_a_reading_that_is_undefined_allows_nothing(change, budget, told):
    with pytest.raises(EvaluationError, match=told):
        judged(changed(**change), budget)
    # Nothing is read where there is no limit.
    assert judged(changed(**change), budget, max_distortion=None).decision == "allow"


def test_answers_decide_only_where_no_loss_is_known():
    odd = answers(0.1, 0.9)
    assert judged(changed(predictive=odd)).decision == "allow"
    lossless = (loss(-5.0), loss(None, "task1", 1))
    for tasks in ((loss(-5.0),), lossless):
        (reason,) = judged(changed(predictive=odd, tasks=tasks)).reasons
        assert (reason.rule, reason.subject) == ("max_own_distortion", "odd on task1")
        assert reason.reading == "measured on own tasks, predictive space"
        assert "With a target: the task is scored" in reason.advice
    # A task that is no expert's is nobody's answers.
    ownerless = dataclasses.replace(odd, own_task=(MeasuredTask("task1", None, 9.0, None),))
    assert judged(changed(predictive=ownerless, tasks=())).decision == "allow"


def test_answers_of_experts_that_are_given_up_decide_nothing():
    lost = changed(predictive=answers(0.1, 0.9), tasks=())
    verdict = judged(lost, given_up=["odd"])
    assert (verdict.decision, verdict.exit_code) == ("modified", 0)
    assert rules(verdict) == ["max_own_distortion"]


UNREAD = {"predictive": None, "predictive_reason": "an encoder has no next token"}


def test_answers_that_were_not_read_are_noted_and_refuse_nothing_by_default():
    found = changed(tasks=(loss(-5.0),), **UNREAD)
    assert judged(found).decision == "allow"
    (note,) = unjudged(found, EvaluateBlock())
    assert note.endswith("evaluate.max_own_distortion: task1 (an encoder has no next token)")
    nothing_to_say = (
        (changed(**UNREAD), {}),
        (changed(tasks=()), {}),
        (found, {"max_own_distortion": None}),
        (changed(hidden=None, stopped_at=1, tasks=(), **UNREAD), {}),
    )
    for one, limits in nothing_to_say:
        assert unjudged(one, EvaluateBlock.model_validate(limits)) == ()


def test_answers_without_a_reason_were_not_measured():
    found = changed(tasks=(loss(-5.0),), predictive=None, predictive_reason=None)
    (note,) = unjudged(found, EvaluateBlock())
    assert note.endswith("evaluate.max_own_distortion: task1 (it was not measured)")
    with pytest.raises(EvaluationError, match="predictive space, but it was not measured; add"):
        judged(found, max_own_distortion=0.25)


@pytest.mark.parametrize("limit", [0.25, 0.9])
def test_a_limit_that_was_written_is_not_passed_over(limit):
    """Also one that is the default's number."""
    found = changed(tasks=(), **UNREAD)
    told = "an encoder has no next token; add predictive to compat.space, give the tasks a target:"
    with pytest.raises(EvaluationError, match=told):
        judged(found, max_own_distortion=limit)
    # Nor is one that is about nothing, since every task has its score.
    assert judged(changed(**UNREAD), max_own_distortion=limit).decision == "allow"
    stopped = changed(hidden=None, stopped_at=1, tasks=(), **UNREAD)
    assert judged(stopped, max_own_distortion=limit).decision == "allow"


def test_answers_that_are_undefined_allow_nothing():
    tasks = (MeasuredTask("task0", 0, None, "its answers are all alike"),)
    broken = dataclasses.replace(answers(0.1, 0.1), own_task=tasks)
    with pytest.raises(EvaluationError, match="near on task0 is undefined: its answers are all"):
        judged(changed(predictive=broken, tasks=()))


def test_what_a_stopped_merge_lacks_is_not_read():
    """The stop is a reason of its own, which the watch gives."""
    found = changed(hidden=None, predictive=None, tasks=(), checks=(), stopped_at=1)
    assert judged(found).decision == "allow"
    over = dataclasses.replace(found, layers=(layer(1, 0.1),))
    assert rules(judged(over)) == ["min_variance_ratio"]


def test_a_passed_limit_is_a_number_or_says_that_it_is_none():
    of = {"reading": "r", "subject": "s", "limit": 1.0, "advice": "a"}
    assert passed("stop_at", value=2.0, **of).value == 2.0
    assert passed("stop_at", value=math.nan, **of).value is None
