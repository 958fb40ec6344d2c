"""A merged model's measurements as JSON, from the real records, and what reads them."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from made_states import hidden_states
from test_shown import PROBES, TASK_OF_PROBE, made_report

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.merging_loss import TaskLoss
from mergekit_collapse.evaluation.smoke import Check
from mergekit_collapse.formats.comparison import compare
from mergekit_collapse.formats.junit import to_junit
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import measured_distortion
from mergekit_collapse.page.html import to_html
from mergekit_collapse.parameters.conflict import ConflictSums
from mergekit_collapse.report.document import to_document, to_json, write_report
from mergekit_collapse.report.evaluation_document import evaluation_document
from mergekit_collapse.report.reader import read_report
from mergekit_collapse.report.terminal import merged
from mergekit_collapse.verdict import Reason, Verdict

NAMES = ("near", "close")


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    return rng.normal(size=(PROBES, 8)) + 0.4 * rng.normal(size=(2, PROBES, 8))


@pytest.fixture(scope="module")
def plain(states):
    return made_report(states, names=NAMES)


@pytest.fixture(scope="module")
def measured(states, plain):
    """Their mean, as measured."""
    experts, merged = hidden_states(states), hidden_states(states.mean(axis=0)[None])
    return measured_distortion(experts, merged, plain.measurement.hidden, TASK_OF_PROBE)


def layer(number, distortion=(0.1, 0.2), ratio=0.9, variance=2.0):
    return LayerReading(number, distortion, variance, ratio, variance, ratio)


STOPPED = Evaluation(
    "monitor",
    None,
    layers=(layer(1, (0.1, None)), layer(2, (math.nan, math.inf), math.nan, math.nan)),
    predictive_reason="the watch ended after layer 2",
    stopped_at=2,
    verdict=Verdict(
        "refuse",
        4,
        (
            Reason("stop_at", "measured", "near", None, "not a finite number", 0.5, "look"),
            Reason("finite", "NaN after layer 2", "layer 2", None, "not finite", None, "look"),
        ),
    ),
    seconds=1.23456,
)


@pytest.fixture(scope="module")
def evaluation(measured):
    return Evaluation(
        "merged",
        "out",
        hidden=measured,
        predictive_reason="it was not asked for",
        layers=(layer(1), layer(2, (0.1, None), None)),
        tasks=(
            TaskLoss("first", 0, "accuracy", 12, 0.8, 0.6, -25.0, None),
            TaskLoss("second", 1, "likelihood", 12, 0.0, 0.1, None, "the expert scores 0"),
        ),
        checks=(Check("finite", True, "no NaN"), Check("keys", False, "one is missing")),
        lm_eval={"arc_easy": {"acc,none": 0.5}},
        notes=("read with care",),
        verdict=Verdict("refuse", 4, (Reason("check", "one", "keys", None, "f", None, "mend"),)),
        seconds=3.2,
    )


@pytest.fixture(scope="module")
def conflict():
    sums = ConflictSums(2)
    sums.add(torch.tensor([[1.0, -2.0, 0.0], [1.0, 1.0, 3.0]], dtype=torch.float64))
    return sums.result("./base", NAMES, 1, ("one tensor is tied",), 0.5)


@pytest.fixture(scope="module")
def full(plain, evaluation, measured, conflict):
    """All that a report can hold; no merge is both stopped in the middle and evaluated."""
    return dataclasses.replace(
        plain,
        rehearsal=Evaluation(
            "rehearsal",
            None,
            hidden=measured,
            predictive_reason="it was not asked for",
            layers_reason="this model has no layers",
        ),
        rehearsal_reason=None,
        monitor=STOPPED,
        monitor_reason=None,
        evaluation=evaluation,
        evaluation_reason=None,
        parameters=conflict,
        parameters_reason=None,
    )


def documented(found, report):
    return evaluation_document(found, report.measurement.hidden, None)


def nulls_without_reason(value, where=""):
    if isinstance(value, dict):
        for key, one in value.items():
            if one is None and not value.get(f"{key}_reason"):
                yield f"{where}.{key}"
            yield from nulls_without_reason(one, f"{where}.{key}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from nulls_without_reason(one, f"{where}[{index}]")


def test_the_numbers_are_the_records(evaluation, plain, measured):
    found = documented(evaluation, plain)
    geometry = plain.measurement.hidden
    assert (found["source"], found["model"], found["seconds"]) == ("merged", "out", 3.2)
    assert found["hidden"]["distortion"] == list(measured.distortion)
    assert found["hidden"]["worst"] == max(measured.distortion)
    assert found["hidden"]["own_task"]["second"] == {
        "owner": 1,
        "distortion": measured.own_task[1].distortion,
    }
    assert found["hidden"]["own_task_worst"] == measured.own_task_worst
    assert found["hidden"]["predicted_distortion"] == list(geometry.predicted)
    assert found["hidden"]["lower_bound"] == geometry.bounds.diameter_squared / 4
    assert found["hidden"]["ball_radius_squared"] == geometry.ball.radius_squared
    assert [one["layer"] for one in found["layers"]] == [1, 2]
    assert found["layers"][1]["distortion"] == [0.1, None]
    assert found["tasks"][0] == {
        **{"name": "first", "owner": 0, "metric": "accuracy", "rows": 12},
        **{"expert": 0.8, "merged": 0.6, "loss_percent": -25.0},
    }
    assert found["checks"][1] == {"name": "keys", "passed": False, "detail": "one is missing"}
    assert found["lm_eval"] == {"arc_easy": {"acc,none": 0.5}}
    assert found["notes"] == ["read with care"]
    assert "layers_reason" not in found


def test_a_mean_of_two_is_measured_at_its_prediction(evaluation, plain):
    """Measured and predicted stand side by side, in the same units."""
    hidden = documented(evaluation, plain)["hidden"]
    assert hidden["distortion"] == pytest.approx(hidden["predicted_distortion"], rel=1e-5)
    assert hidden["worst"] == pytest.approx(hidden["ball_radius_squared"], rel=1e-5)
    assert hidden["lower_bound"] <= hidden["worst"]


def test_what_is_no_number_is_null_with_its_reason(plain):
    found = json.loads(json.dumps(documented(STOPPED, plain), allow_nan=False))
    assert (found["stopped_at"], found["seconds"]) == (2, 1.235)
    assert (found["hidden"], found["predictive"]) == (None, None)
    assert found["hidden_reason"] == "the watch ended at layer 2, before the last one was read"
    assert found["layers"][1]["distortion"] == [None, None]
    assert found["layers"][1]["variance_ratio_reason"] == "NaN or infinite"
    assert found["layers"][1]["variance_reason"] == "NaN or infinite"
    reasons = found["verdict"]["reasons"]
    assert [reason["value"] for reason in reasons] == [None, None]
    assert (reasons[0]["limit"], reasons[1]["limit"]) == (0.5, None)


def test_a_model_that_failed_its_checks_says_so_of_either_space(plain):
    checks = (Check("loads", True, "yes"), Check("finite", False, "NaN"))
    found = documented(Evaluation("merged", "out", checks=checks), plain)
    assert found["hidden"] is None
    assert found["hidden_reason"] == "the model failed its checks, and was not run: finite"
    assert found["tasks_reason"] == found["lm_eval_reason"] == found["hidden_reason"]


def test_where_there_are_no_scores_the_reason_is_of_the_stage(plain, evaluation):
    unscored = dataclasses.replace(evaluation, tasks=(), lm_eval=None)
    found = documented(unscored, plain)
    assert "no task has targets" in found["tasks_reason"]
    # The answers were measured, though a check failed.
    assert found["lm_eval_reason"] == "it was not asked for"
    watched = documented(dataclasses.replace(unscored, source="monitor"), plain)
    assert watched["tasks_reason"] == "the watch scores nothing; the evaluation does"
    assert "tasks_reason" not in documented(evaluation, plain)


def test_nan_is_the_lowest_ratio(plain):
    shown = merged(dataclasses.replace(plain, monitor=STOPPED))
    assert "variance nan of the experts' (layer 2)" in shown
    back = dataclasses.replace(STOPPED, layers=STOPPED.layers[::-1])
    assert merged(dataclasses.replace(plain, monitor=back)) == shown


def test_a_ratio_to_no_expert_says_so(evaluation, plain):
    found = documented(evaluation, plain)["layers"][1]
    assert found["variance_ratio"] is None
    assert "no expert has this layer" in found["variance_ratio_reason"]
    assert found["variance"] == 2.0


def test_a_stop_before_the_first_layer_says_so(plain):
    found = documented(dataclasses.replace(STOPPED, layers=(), stopped_at=0), plain)
    assert found["layers"] == []
    assert "before its first layer" in found["layers_reason"]


def test_every_null_has_its_reason(full):
    document = to_document(full)
    parts = {k: document[k] for k in ("rehearsal", "monitor", "evaluation", "parameters")}
    assert all(parts.values())
    assert list(nulls_without_reason(parts)) == []


def test_what_is_absent_is_null_beside_the_reason(plain):
    document = to_document(plain)
    for part in ("rehearsal", "monitor", "evaluation", "parameters"):
        assert document[part] is None
        assert document[f"{part}_reason"] == getattr(plain, f"{part}_reason")


def test_an_own_task_without_owner_and_without_prediction(plain, measured):
    own = (dataclasses.replace(measured.own_task[0], owner=None, distortion=None, reason="none"),)
    lacking = dataclasses.replace(
        measured, own_task=own, own_task_worst=None, own_task_reason="lacking"
    )
    geometry = dataclasses.replace(
        plain.measurement.hidden, predicted=None, predicted_reason="no weights"
    )
    found = evaluation_document(Evaluation("merged", "out", hidden=lacking), geometry, None)
    hidden = found["hidden"]
    assert hidden["own_task"] == {
        "first": {"owner": None, "distortion": None, "distortion_reason": "none"}
    }
    assert (hidden["own_task_worst_reason"], hidden["predicted_distortion_reason"]) == (
        *("lacking", "no weights"),
    )


def test_predictive_space_has_its_own_bounds(plain, measured):
    """The geometry of each space goes with its measurement."""
    ball = dataclasses.replace(plain.measurement.hidden.ball, radius_squared=0.125)
    other = dataclasses.replace(plain.measurement.hidden, space="predictive", ball=ball)
    found = evaluation_document(
        Evaluation("merged", "out", hidden=measured, predictive=measured),
        plain.measurement.hidden,
        other,
    )
    assert found["predictive"]["ball_radius_squared"] == 0.125
    assert found["hidden"]["ball_radius_squared"] != 0.125


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text = []

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def stored(full, tmp_path_factory):
    """Written and read again."""
    path = write_report(full, tmp_path_factory.mktemp("report")).path
    return read_report(path)


def test_a_stored_report_reads_as_it_was_made(full, stored):
    assert stored == json.loads(to_json(full))


@pytest.mark.slow
def test_the_page_shows_every_part(stored):
    page = _Text()
    page.feed(to_html(stored))
    text = " ".join(page.text)
    for said in ("near", "first", "one is missing", "arc_easy", "layer 2"):
        assert said in text, said
    assert not re.search(r"\bnan\b", text)


def test_junit_has_a_suite_for_each_stage_and_fails(stored):
    root = ET.fromstring(to_junit(stored))
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["gate", "rehearsal", "monitor", "evaluation"]
    failures = {name: int(suite.get("failures")) for name, suite in suites.items()}
    assert (failures["rehearsal"], failures["monitor"], failures["evaluation"]) == (0, 2, 1)


def test_markdown_shows_every_part(stored):
    text = to_markdown(stored)
    for said in ("near", "first", "arc_easy"):
        assert said in text, said
    assert not re.search(r"\bnan\b", text)


def test_the_report_is_compared_with_one_of_before_the_merge(stored, plain):
    before = to_document(plain)
    assert "Nothing changed." in compare(stored, stored)
    assert "verdict" in compare(before, stored)
    assert "rejected" in compare(before, stored)
    assert compare(stored, before)
