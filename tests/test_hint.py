"""Where the geometry cannot tell, the report advises a rehearsal, in every form of it."""

import dataclasses
import math

import numpy as np
import pytest
from test_shown import PROBES, made_evaluation, made_report

from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.geometry.resampling import Interval
from mergekit_collapse.page.html import to_html
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.recipe.schema import TaskBlock
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import to_document
from mergekit_collapse.report.hint import hint
from mergekit_collapse.verdict import ALLOW, Reason, Verdict

OWN = tuple(TaskBlock(name=name, data="rows.txt", model=name) for name in ("near", "close"))
SCORED = tuple(task.model_copy(update={"target": "{label}"}) for task in OWN)


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(PROBES, 8))
    return made_report(common + 0.1 * rng.normal(size=(2, PROBES, 8)), names=("near", "close"))


def at(report, radius_squared, tasks=OWN, budget=None, **keys):
    """The report with that r², far from every limit unless it is one; allowed."""
    compat = report.recipe.compat.model_copy(update={"budget": BudgetBlock(**budget or {}), **keys})
    recipe = dataclasses.replace(report.recipe, compat=compat.with_tasks(tasks))
    hidden = report.measurement.hidden
    ball = dataclasses.replace(hidden.ball, radius_squared=radius_squared)
    around = Interval(radius_squared, radius_squared, None)
    confidence = dataclasses.replace(hidden.confidence, ball_radius_squared=around)
    hidden = dataclasses.replace(hidden, ball=ball, confidence=confidence)
    measurement = dataclasses.replace(report.measurement, hidden=hidden)
    return dataclasses.replace(report, recipe=recipe, measurement=measurement, verdict=ALLOW)


def beyond(value):
    return math.nextafter(value, 1)


@pytest.mark.parametrize(("tasks", "low", "high"), [(OWN, 0.2, 0.45), ((), 0.1, 0.25)])
def test_the_zone_ends_above_what_is_surely_good_and_at_the_limit(measured, tasks, low, high):
    for inside in (beyond(low), (low + high) / 2, high):
        assert "is where geometry cannot tell" in hint(at(measured, inside, tasks))
    for outside in (0.0, low, beyond(high)):
        assert hint(at(measured, outside, tasks)) is None


@pytest.mark.parametrize(("tasks", "rates"), [(OWN, "1 of 4"), ((), "1 of 6")])
def test_a_refusal_by_the_default_limit_says_what_it_is_worth(measured, tasks, rates):
    over = Reason("distortion", "a reading", "near", 0.9, None, 0.45, "advice")
    other = Reason("mds", "a reading", "near", 4.0, None, 3.0, "advice")

    def refused(*reasons, **keys):
        far = at(measured, 0.9, tasks, **keys)
        return hint(dataclasses.replace(far, verdict=Verdict("refuse", 3, reasons)))

    said = refused(over)
    assert f"collapses and {rates} good merges" in said
    assert "`rehearse: always`" in said
    # A limit that the author wrote is none of ours, and no rehearsal mends another rule.
    assert refused(over, budget={"distortion": 0.45}) is None
    assert refused(over, other) is None
    assert refused(over, pooling="last_token") is None


def test_what_is_said(measured):
    assert hint(at(measured, 0.31)) == (
        "r² 0.31 is where geometry cannot tell: of the measured merges between 0.2 and 0.45, "
        "4 or 5 of 10 collapsed (docs/evidence.md). A rehearsal measures the real merge "
        "(`rehearse: always`), and `model:` and `target:` of the tasks let it score them."
    )
    assert hint(at(measured, 0.31, SCORED)).endswith("(`rehearse: always`), and scores your tasks.")
    alone = hint(at(measured, 0.2, ()))
    assert "between 0.1 and 0.25, half collapsed" in alone
    assert alone.endswith("and tasks of your own with a `target:` let it score them.")


def test_a_tighter_limit_ends_the_zone_and_a_wider_one_does_not_widen_it(measured):
    assert hint(at(measured, 0.3, budget={"distortion": 0.3})) is not None
    assert hint(at(measured, 0.31, budget={"distortion": 0.3})) is None
    assert hint(at(measured, 0.45, budget={"distortion": 0.8})) is not None
    assert hint(at(measured, 0.46, budget={"distortion": 0.8})) is None
    assert hint(at(measured, 0.31, budget={"distortion": None, "mds": 3.0})) is None


@pytest.mark.parametrize(
    "other",
    [
        {"budget": {"rule": "weights"}},
        {"budget": {"rule": "corollary"}},
        {"budget": {"over": "own_task"}},
        {"pooling": "last_token"},
        {"scale": "unit"},
        {"layer": "all"},
    ],
)
def test_other_readings_were_not_counted(measured, other):
    assert "where geometry cannot tell" not in str(hint(at(measured, 0.31, **other)))


def test_the_zone_is_told_of_what_is_allowed_and_was_not_looked_at(measured):
    grey = at(measured, 0.31)
    over = Reason("mds", "a reading", "near", 4.0, None, 3.0, "advice")
    for verdict in (Verdict("refuse", 3, (over,)), Verdict("warn", 0, (over,))):
        assert hint(dataclasses.replace(grey, verdict=verdict)) is None
    rehearsed = dataclasses.replace(grey, rehearsal=made_evaluation("rehearsal"))
    assert hint(rehearsed) is None
    assert hint(dataclasses.replace(grey, evaluation=made_evaluation("merged"))) is None
    assert hint(dataclasses.replace(grey, measurement=None)) is None


def test_a_limit_within_the_interval_is_told_outside_the_zone(measured):
    near = at(measured, 0.15)
    hidden = near.measurement.hidden
    wide = dataclasses.replace(hidden.confidence, ball_radius_squared=Interval(0.1, 0.5, None))
    hidden = dataclasses.replace(hidden, confidence=wide)
    measurement = dataclasses.replace(near.measurement, hidden=hidden)
    said = hint(dataclasses.replace(near, measurement=measurement))
    assert said.startswith("The limit lies within the interval of the reading")


def test_every_form_of_the_report_has_it(measured):
    grey, clear = at(measured, 0.31), at(measured, 0.1)
    said = hint(grey)
    assert f"\n  {said}" in terminal.verdict(grey)
    document = to_document(grey)
    assert document["hint"] == said
    assert "is where geometry cannot tell" in to_markdown(document)
    assert said.replace("`", "") in to_html(document, charts=False).replace("`", "")
    document = to_document(clear)
    assert document["hint"] is None
    assert document["hint_reason"]
    for text in (terminal.verdict(clear), to_markdown(document), to_html(document, charts=False)):
        assert "cannot tell" not in text
    # One of an older version, which had none.
    del document["hint"], document["hint_reason"]
    assert "cannot tell" not in to_markdown(document) + to_html(document, charts=False)
