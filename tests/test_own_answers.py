"""The answers on tasks without a loss, in every form of the report."""

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from test_shown import PROBES, made_report

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.judgement import judge_merged
from mergekit_collapse.evaluation.merging_loss import TaskLoss
from mergekit_collapse.formats.github import annotate
from mergekit_collapse.formats.junit import to_junit
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.geometry.measured import Measured, MeasuredTask
from mergekit_collapse.page.html import to_html
from mergekit_collapse.rehearsing import with_rehearsal
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import to_document
from mergekit_collapse.report.report import Report

LOSS = TaskLoss("first", 0, "accuracy", 8, 0.8, 0.8, 0.0, None)


@pytest.fixture(scope="module")
def measured():
    """An allowed check; its answers stand for those of predictive space."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(PROBES, 8))
    report = made_report(common + 0.1 * rng.normal(size=(2, PROBES, 8)), names=("near", "close"))
    predictive = dataclasses.replace(report.measurement.hidden, space="predictive", scale="none")
    found = dataclasses.replace(report.measurement, predictive=predictive, predictive_reason=None)
    return dataclasses.replace(report, measurement=found)


def evaluated(report: Report, *own: float, tasks: tuple[TaskLoss, ...] = ()) -> Report:
    recipe = report.recipe
    mine = tuple(
        MeasuredTask(name, i, value, None)
        for i, (name, value) in enumerate(zip(("first", "second"), own, strict=True))
    )
    space = Measured((1,), (0.1, 0.1), mine, max(own), None)
    hidden = dataclasses.replace(space, own_task=(), own_task_worst=None, own_task_reason="none")
    found = Evaluation("merged", "out", hidden=hidden, predictive=space, tasks=tasks)
    how = {"exit_code": 4, "warn_only": False}
    limits, budget = recipe.compat.evaluate, recipe.compat.budget
    verdict = judge_merged(found, limits, budget, recipe.names, **how)
    found = dataclasses.replace(found, verdict=verdict)
    own = report.verdict
    return dataclasses.replace(report, evaluation=found, verdict=verdict, geometry_verdict=own)


def cases(document):
    root = ET.fromstring(to_junit(document))
    return {case.get("name"): case for case in root.iter("testcase")}


def test_a_rejection_says_which_task_and_what_to_do(measured):
    rejected = evaluated(measured, 0.1, 0.5)
    said = "max_own_distortion of close on second (measured on own tasks, predictive space) is 0.5"
    assert f"{said}, limit 0.25." in terminal.verdict(rejected)
    document = to_document(rejected)
    assert document["evaluate"]["max_own_distortion"] == 0.25
    assert f"- {said}, limit 0.25." in to_markdown(document)
    found = cases(document)
    failure = found["distortion of answers of close on second (predictive)"].find("failure")
    assert failure.get("type") == "own_distortion"
    assert said in failure.get("message")
    passed = found["distortion of answers of near on first (predictive)"]
    assert "0.1, limit 0.25" in passed.find("system-out").text
    page = to_html(document, charts=False)
    assert "Distortion of answers after the merge" in page
    assert "<strong>Distortion of answers</strong>, limit" in page
    assert said in annotate(document, {"GITHUB_ACTIONS": "true"})


def test_an_accepted_merge_says_how_near_it_came(measured):
    assert "distortion of answers 0.2 is within 0.25" in terminal.verdict(
        evaluated(measured, 0.1, 0.2)
    )


def test_a_task_with_a_loss_is_no_case(measured):
    document = to_document(evaluated(measured, 0.9, 0.2, tasks=(LOSS,)))
    names = [name for name in cases(document) if name.startswith("distortion of answers")]
    assert names == ["distortion of answers of close on second (predictive)"]
    page = to_html(document, charts=False)
    assert "0.200" in page[page.index("Distortion of answers") :][:400]


def test_a_report_of_an_older_version_has_no_such_limit(measured):
    document = to_document(evaluated(measured, 0.1, 0.2))
    for change in (lambda d: d.pop("evaluate"), lambda d: d["evaluate"].pop("max_own_distortion")):
        old = {**document, "evaluate": dict(document["evaluate"])}
        change(old)
        assert not any(name.startswith("distortion of answers") for name in cases(old))
        assert "Distortion of answers" not in to_html(old, charts=False)


def test_a_rehearsal_notes_what_it_could_not_judge(measured):
    own = (MeasuredTask("first", 0, 0.1, None), MeasuredTask("builtin", None, None, "no owner"))
    hidden = Measured((1,), (0.1, 0.1), own, None, "not every expert owns a task")
    blind = Evaluation("rehearsal", None, hidden=hidden, predictive_reason="no head")
    found = with_rehearsal(measured, blind, warn_only=False)
    assert found.verdict.decision == "allow"
    (note,) = found.rehearsal.notes
    assert note == (
        "without a merging loss, and not held against evaluate.max_own_distortion: first (no head)"
    )
    assert note in terminal.merged(found)
    assert to_document(found)["rehearsal"]["notes"] == [note]
