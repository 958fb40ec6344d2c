"""When a rehearsal is due, and what it may say against the geometry."""

import dataclasses
import itertools

import numpy as np
import pytest
from test_shown import PROBES, made_report
from test_verdict import geometry as made_geometry

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.known_losses import ROWS
from mergekit_collapse.evaluation.merging_loss import TaskLoss
from mergekit_collapse.evaluation.smoke import Check
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import Measured, MeasuredTask
from mergekit_collapse.geometry.resampling import Interval
from mergekit_collapse.judging import is_borderline
from mergekit_collapse.probes.probes import ProbeTask
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
from mergekit_collapse.recipe.schema import MonitorBlock, TaskBlock
from mergekit_collapse.rehearsing import as_rehearsal, is_due, may_be_overruled, with_rehearsal
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import to_document
from mergekit_collapse.verdict import Reason, Verdict

NEVER_WRONG = 1e9


@pytest.fixture(scope="module")
def report():
    """Two experts that are neither near nor far."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(PROBES, 8))
    return made_report(common + 0.7 * rng.normal(size=(2, PROBES, 8)), names=("near", "close"))


@pytest.fixture(scope="module")
def geometry():
    """Three experts that each own a task, merged by weights that are not the best."""
    states = np.random.default_rng(1).normal(size=(3, 36, 16))
    return made_geometry(states, alpha=(0.5, 0.3, 0.2))


def with_block(report, budget=None, **keys):
    """The report with other settings; its verdict is not judged again."""
    compat = report.recipe.compat
    changed = {"budget": compat.budget.model_copy(update=budget or {}), **keys}
    recipe = dataclasses.replace(report.recipe, compat=compat.model_copy(update=changed))
    return dataclasses.replace(report, recipe=recipe)


def interval_of(geometry, rule, over="pooled"):
    """The interval of what a rule reads, as a pair."""
    if over == "own_task":
        own = geometry.own_task
        found = own.predicted_interval if rule == "weights" else own.minimax_interval
        return found.low, found.high
    found = {
        "ball": geometry.confidence.ball_radius_squared,
        "weights": geometry.confidence.predicted_worst,
        "corollary": geometry.confidence.diameter_squared,
    }[rule]
    # In 16 dimensions the paper's bound is 16 / 34 of the squared diameter.
    share = 16 / 34 if rule == "corollary" else 1
    return found.low * share, found.high * share


READINGS = [("ball", "pooled"), ("weights", "pooled"), ("corollary", "pooled")]
READINGS += [("ball", "own_task"), ("weights", "own_task")]


@pytest.mark.parametrize(("rule", "over"), READINGS)
def test_a_limit_within_the_interval_is_borderline(geometry, rule, over):
    low, high = interval_of(geometry, rule, over)
    assert low < high

    def borderline(limit):
        change = {"rule": rule, "over": over, "distortion": limit}
        return is_borderline(geometry, BudgetBlock.model_validate({**change, "mds": 3}))

    assert [borderline(x) for x in (low, (low + high) / 2, high)] == [True, True, True]
    assert [borderline(x) for x in (low * 0.999, high * 1.001, 0.0)] == [False, False, False]
    assert not borderline(None)


def test_the_readings_have_intervals_of_their_own(geometry):
    """Else the test above would not tell which of them was read."""
    found = [interval_of(geometry, *reading) for reading in READINGS]
    assert all(a != b for a, b in itertools.combinations(found, 2))


def test_the_corollary_is_judged_and_borderline_by_the_same_number(geometry):
    low, high = interval_of(geometry, "corollary")
    assert low <= geometry.bounds.corollary <= high


@pytest.mark.parametrize(("low", "high"), [(None, None), (0.1, None), (None, 0.1)])
def test_an_interval_that_is_not_known_is_borderline(geometry, low, high):
    unknown = Interval(low, high, "undefined in 3 of 1000 resamples")
    confidence = dataclasses.replace(geometry.confidence, ball_radius_squared=unknown)
    changed = dataclasses.replace(geometry, confidence=confidence)
    assert is_borderline(changed, BudgetBlock(distortion=NEVER_WRONG))


def at_the_border(report, **keys):
    limit = report.deciding.ball.radius_squared
    return with_block(report, {"distortion": limit}, **keys)


@pytest.mark.parametrize(("wanted", "advised"), [("never", "auto"), ("auto", "always")])
def test_where_the_geometry_cannot_tell_a_rehearsal_is_advised(report, wanted, advised):
    near = at_the_border(report, rehearse=wanted)
    assert f"cannot tell; a rehearsal measures the real merge (`rehearse: {advised}`)" in (
        terminal.verdict(near)
    )
    far = with_block(report, {"distortion": NEVER_WRONG}, rehearse=wanted)
    assert "rehearse" not in terminal.verdict(far)


@pytest.mark.parametrize(
    ("wanted", "near", "far"),
    [("auto", True, False), ("always", True, True), ("never", False, False)],
)
def test_a_rehearsal_is_due_where_the_recipe_or_the_border_says_so(report, wanted, near, far):
    assert is_due(at_the_border(report, rehearse=wanted)) == near
    assert is_due(with_block(report, {"distortion": NEVER_WRONG}, rehearse=wanted)) == far
    assert is_due(with_block(report, {"distortion": None}, rehearse=wanted)) == far


@pytest.mark.parametrize("wanted", ["auto", "always", "never"])
def test_nothing_is_rehearsed_where_nothing_was_measured(report, wanted):
    nothing = dataclasses.replace(at_the_border(report, rehearse=wanted), measurement=None)
    assert not is_due(nothing)
    assert not may_be_overruled(nothing)


def reason(rule, subject="near"):
    return Reason(rule, "a reading", subject, 1.0, None, 0.5, "advice")


def refused(report, *rules):
    reasons = tuple(reason(rule) for rule in rules)
    return dataclasses.replace(report, verdict=Verdict("refuse", 3, reasons))


def test_only_a_borderline_distortion_may_be_overruled(report):
    near = at_the_border(report)
    assert may_be_overruled(refused(near, "distortion"))
    assert may_be_overruled(refused(near, "distortion", "distortion"))
    assert not may_be_overruled(refused(near, "distortion", "mds"))
    assert not may_be_overruled(refused(near, "mds"))
    far = with_block(report, {"distortion": 0.0})
    assert not may_be_overruled(refused(far, "distortion"))


def rehearsal(distortion=0.1, **keys):
    hidden = Measured((1,), (distortion, distortion / 2), (), None, "no task")
    return Evaluation("rehearsal", None, hidden=hidden, **keys)


def rules(verdict):
    return [one.rule for one in verdict.reasons]


def test_a_rehearsal_decides_in_the_place_of_a_borderline_distortion(report):
    near = refused(at_the_border(report), "distortion")
    found = with_rehearsal(near, rehearsal(0.1), warn_only=False)
    assert found.verdict == found.rehearsal.verdict == Verdict("allow", 0, ())
    assert found.rehearsal_reason is None
    worse = with_rehearsal(near, rehearsal(1.1), warn_only=False)
    assert (worse.verdict.decision, worse.verdict.exit_code) == ("refuse", 3)
    assert rules(worse.verdict) == ["max_distortion"]
    assert worse.rehearsal.verdict == worse.verdict


def test_a_rehearsal_refuses_what_the_geometry_allowed(report):
    near = at_the_border(report)
    near = dataclasses.replace(near, verdict=Verdict("allow", 0, ()))
    found = with_rehearsal(near, rehearsal(1.1), warn_only=False)
    assert (found.verdict.exit_code, rules(found.verdict)) == (3, ["max_distortion"])
    # The limits are those of evaluate, not of the budget.
    limits = near.recipe.compat.evaluate.model_copy(update={"max_distortion": 1.2})
    wide = with_rehearsal(with_block(near, evaluate=limits), rehearsal(1.1), warn_only=False)
    assert wide.verdict.decision == "allow"


def test_a_difficulty_over_its_limit_stands(report):
    near = refused(at_the_border(report), "distortion", "mds")
    found = with_rehearsal(near, rehearsal(0.1), warn_only=False)
    assert (found.verdict.exit_code, rules(found.verdict)) == (3, ["mds"])
    assert found.rehearsal.verdict.decision == "allow"


def test_a_distortion_far_over_its_limit_stands(report):
    far = refused(with_block(report, {"distortion": 0.0}, rehearse="always"), "distortion")
    found = with_rehearsal(far, rehearsal(0.1), warn_only=False)
    assert (found.verdict.exit_code, rules(found.verdict)) == (3, ["distortion"])


@pytest.fixture
def scored(report):
    """Over the default limit, far from its border; the tasks of both experts have answers."""
    tasks = tuple(
        TaskBlock(name=name, data="rows.txt", model=name, target="{label}")
        for name in report.recipe.names
    )
    written = {"budget": BudgetBlock(), "rehearse": "always"}
    compat = report.recipe.compat.model_copy(update=written).with_tasks(tasks)
    recipe = dataclasses.replace(report.recipe, compat=compat, owners=(0, 1))
    hidden = report.measurement.hidden
    far = dataclasses.replace(hidden.confidence, ball_radius_squared=Interval(0.8, 1.0, None))
    hidden = dataclasses.replace(hidden, confidence=far)
    probes = dataclasses.replace(
        report.measurement.probe_set,
        tasks=tuple(ProbeTask(t.name, i, t.data, ROWS) for i, t in enumerate(tasks)),
    )
    measurement = dataclasses.replace(report.measurement, hidden=hidden, probe_set=probes)
    return refused(
        dataclasses.replace(report, recipe=recipe, measurement=measurement), "distortion"
    )


def told(report, *percent, rows=ROWS, distortion=0.9, own=(0, 1), **keys):
    """A rehearsal that scored a task for each number, and knows of one for each of ``own``."""
    names = report.recipe.names
    tasks = tuple(
        TaskLoss(names[i], i, "accuracy", rows, 0.9, 0.9, loss, None if loss is not None else "why")
        for i, loss in enumerate(percent)
    )
    own_task = tuple(
        MeasuredTask(f"{names[i]}{'' if n < 2 else n}", i, 0.1, None) for n, i in enumerate(own)
    )
    hidden = Measured((1,), (distortion, distortion / 2), own_task, 0.1, None)
    return Evaluation("rehearsal", None, hidden=hidden, tasks=tasks, **keys)


def test_what_the_tasks_lose_decides_in_the_place_of_the_default_limit(scored):
    assert may_be_overruled(scored)
    # The default limit of a measured distortion gives way as well.
    for distortion in (0.9, 1.9):
        found = told(scored, 0.0, -19.0, distortion=distortion)
        good = with_rehearsal(scored, found, warn_only=False)
        assert good.verdict.decision == "allow"
        assert "needs `rehearse: always`" in good.rehearsal.notes[-1]
        # No form of the report shows a limit that gave way.
        assert to_document(good)["evaluate"]["max_distortion"] is None
        assert "measured distortion" not in terminal.verdict(good)
        assert "worst merging loss 19 % is within 20 %" in terminal.verdict(good)
    # Refused by both, it has both reasons.
    bad = with_rehearsal(scored, told(scored, 0.0, -21.0), warn_only=False)
    assert (bad.verdict.exit_code, rules(bad.verdict)) == (3, ["distortion", "max_merging_loss"])
    mixed = refused(scored, "distortion", "mds")
    assert "mds" in rules(with_rehearsal(mixed, told(mixed, 0.0, 0.0), warn_only=False).verdict)


@pytest.mark.parametrize(
    ("losses", "keys"),
    [
        ((0.0, None), {}),
        ((None, None), {}),
        ((0.0, float("nan")), {}),
        ((0.0,), {}),
        ((0.0, 0.0), {"rows": ROWS - 1}),
        # An expert's second task, that nothing is known of.
        ((0.0, 0.0), {"own": (0, 1, 1)}),
    ],
)
def test_a_loss_that_is_not_known_overrules_nothing(scored, losses, keys):
    found = with_rehearsal(scored, told(scored, *losses, **keys), warn_only=False)
    assert found.verdict.exit_code == 3
    assert "distortion" in rules(found.verdict)
    far = with_rehearsal(scored, told(scored, *losses, distortion=1.9, **keys), warn_only=False)
    assert "max_distortion" in rules(far.verdict)


def other_block(report, **keys):
    compat = report.recipe.compat.model_copy(update=keys)
    return dataclasses.replace(report, recipe=dataclasses.replace(report.recipe, compat=compat))


def test_a_limit_that_the_author_wrote_stands(scored):
    block = scored.recipe.compat
    for keys in (
        {"budget": BudgetBlock(distortion=0.45)},
        {"budget": block.budget.model_copy(update={"rule": "corollary"})},
        {"rehearse": "auto"},
        {"pooling": "last_token"},
        {"evaluate": block.evaluate.model_copy(update={"max_merging_loss": None})},
        {"evaluate": block.evaluate.model_copy(update={"max_merging_loss": 21.0})},
    ):
        other = other_block(scored, **keys)
        assert not may_be_overruled(other), keys
        found = with_rehearsal(other, told(other, 0.0, 0.0), warn_only=False)
        assert rules(found.verdict) == ["distortion"], keys
    written = other_block(scored, evaluate=EvaluateBlock(max_distortion=1.0))
    found = with_rehearsal(written, told(written, 0.0, 0.0, distortion=1.9), warn_only=False)
    assert rules(found.verdict) == ["distortion", "max_distortion"]


def test_too_little_is_scored_to_overrule(scored):
    nothing = dataclasses.replace(scored, measurement=None)
    assert not may_be_overruled(nothing)
    measured = scored.measurement
    first, second = measured.probe_set.tasks
    for tasks in (
        (first,),
        (first, dataclasses.replace(second, rows=ROWS - 1)),
        (first, second, dataclasses.replace(second, name="without answers")),
    ):
        probes = dataclasses.replace(measured.probe_set, tasks=tasks)
        measurement = dataclasses.replace(measured, probe_set=probes)
        assert not may_be_overruled(dataclasses.replace(scored, measurement=measurement))


def test_what_stopped_the_rehearsal_is_a_reason(report):
    near = refused(at_the_border(report), "distortion")
    finite = Reason("finite", "NaN", "layer 1", None, "not finite", None, "advice")
    stopped = Evaluation("rehearsal", None, stopped_at=1, verdict=Verdict("refuse", 3, (finite,)))
    found = with_rehearsal(near, stopped, warn_only=False)
    # It has measured no distortion that could go before the geometry's.
    assert (found.verdict.exit_code, rules(found.verdict)) == (3, ["distortion", "finite"])
    assert found.rehearsal.verdict.reasons == (finite,)


def test_what_could_not_be_watched_is_held_to_its_layers_afterwards(report):
    near = at_the_border(report, monitor=MonitorBlock(stop_at=0.5))
    far = LayerReading(2, (0.1, 0.7), 1.0, 1.0, 2.0, 1.0)
    whole = rehearsal(0.1, layers=(far,))
    found = with_rehearsal(near, whole, warn_only=False, watched=False)
    assert (found.verdict.exit_code, rules(found.verdict)) == (3, ["stop_at"])
    assert found.verdict.reasons[0].subject == near.recipe.names[1]
    assert with_rehearsal(near, whole, warn_only=False).verdict.decision == "allow"
    with pytest.raises(EvaluationError, match="no layer of the merged model"):
        with_rehearsal(near, rehearsal(0.1), warn_only=False, watched=False)


def test_without_a_limit_on_the_measured_distortion_the_geometrys_stands(report):
    limits = report.recipe.compat.evaluate.model_copy(update={"max_distortion": None})
    near = refused(at_the_border(report, evaluate=limits), "distortion")
    assert not may_be_overruled(near)
    found = with_rehearsal(near, rehearsal(0.1), warn_only=False)
    assert (found.verdict.exit_code, rules(found.verdict)) == (3, ["distortion"])


def test_warn_only_tells_of_the_rehearsal_and_allows(report):
    near = refused(at_the_border(report), "distortion", "mds")
    found = with_rehearsal(near, rehearsal(1.1), warn_only=True)
    assert (found.verdict.decision, found.verdict.exit_code) == ("warn", 0)
    assert rules(found.verdict) == ["mds", "max_distortion"]
    assert (found.rehearsal.verdict.decision, found.rehearsal.verdict.exit_code) == ("warn", 0)


def test_a_merging_loss_of_the_rehearsal_refuses(report):
    lost = TaskLoss("first", 0, "accuracy", 8, 0.8, 0.4, -50.0, None)
    near = refused(at_the_border(report), "distortion")
    found = with_rehearsal(near, rehearsal(0.1, tasks=(lost,)), warn_only=False)
    assert rules(found.verdict) == ["max_merging_loss"]


def test_an_undefined_reading_of_the_rehearsal_allows_nothing(report):
    near = with_block(at_the_border(report), {"over": "own_task"})
    with pytest.raises(EvaluationError, match="but no task"):
        with_rehearsal(near, rehearsal(0.1), warn_only=False)


def test_a_merge_read_back_whole_takes_the_place_of_a_rehearsal():
    check = Check("keys", True, "all there")
    merged = Evaluation("merged", "folder", checks=(check,), notes=("a note",))
    found = as_rehearsal(merged, "this model has no layers")
    assert (found.source, found.model, found.checks) == ("rehearsal", None, (check,))
    assert found.notes == ("a note", "made whole and read back, since this model has no layers")
