"""A report.json is a stranger's file: it reads, or it is said what is wrong with it."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import made_report
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.page.html import to_html
from mergekit_collapse.report import reader
from mergekit_collapse.report.document import FORMAT_VERSION
from mergekit_collapse.report.reader import parse_report, read_report

pytestmark = pytest.mark.slow

FULL = {**made_report.full(), "remedy": made_report.changed()["remedy"]}


def written(folder, document):
    path = folder / "report.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def changed(place, value):
    """The full report with another value at this place."""
    document = deepcopy(FULL)
    part = document
    *way, last = place
    for key in way:
        part = part[key]
    part[last] = value
    return document


def test_a_report_reads_as_it_was_written(tmp_path):
    document = made_report.full()
    assert read_report(written(tmp_path, document)) == json.loads(json.dumps(document))


def test_keys_of_later_versions_of_the_format_are_kept(tmp_path):
    document = made_report.report() | {"later": {"anything": [1, "two"]}}
    assert read_report(written(tmp_path, document))["later"] == document["later"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON (it ends in the middle, as if cut short)"),
        ('{"format_version": 1, "verdict": {"dec', "as if cut short"),
        ("[]", "holds a list, not an object"),
        ("null", "holds a NoneType"),
        ('{"format_version": NaN}', "NaN is no number in JSON"),
        ("hello", "not JSON: "),
        ("[" * 100_000, "lists within lists"),
        ("1" * 10_000, "not JSON"),
        ("{}", "it has no format_version"),
        ('{"format_version": 1}', "it has no verdict"),
        ('{"format_version": "1", "verdict": {}}', "it has no format_version"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, says):
    with pytest.raises(InvalidRecipeError) as refused:
        read_report(written(tmp_path, text))
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_report_cut_anywhere_is_refused(tmp_path):
    text = json.dumps(made_report.report(made_report.NAMES[:2]))
    for length in range(0, len(text), 97):
        with pytest.raises(InvalidRecipeError):
            read_report(written(tmp_path, text[:length]))


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(InvalidRecipeError, match="no such file"):
            read_report(path)


def test_a_file_of_bytes_is_refused(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(range(256)))
    with pytest.raises(InvalidRecipeError, match="not a text file"):
        read_report(tmp_path / "weights")


def test_a_file_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LARGEST_FILE", 100)
    with pytest.raises(InvalidRecipeError, match="no report has more than 100"):
        read_report(written(tmp_path, " " * 101))


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    document = made_report.report() | {"format_version": FORMAT_VERSION + 1}
    with pytest.raises(InvalidRecipeError, match="pip install -U mergekit-collapse"):
        read_report(written(tmp_path, document))


DISTANCES = ("geometry", "hidden", "squared_distance")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("experts",), [], "geometry.hidden: distances between 0 experts"),
        (("experts",), "three", "experts: Input should be a valid tuple (got 'three')"),
        (("experts", 0, "name"), None, "experts.0.name"),
        (("experts", 0, "weight"), True, "experts.0.weight"),
        (("verdict", "decision"), "perhaps", "verdict.decision"),
        (("verdict", "exit_code"), "3", "verdict.exit_code"),
        (("verdict", "reasons", 0, "value"), "0.3", "verdict.reasons.0.value"),
        (("verdict", "reasons"), {}, "verdict.reasons"),
        ((*DISTANCES, 0, 1), "1.2", "geometry.hidden.squared_distance.0.1"),
        ((*DISTANCES, 0, 1), 1e308, "no number that could have been measured"),
        ((*DISTANCES, 0, 1), 10**400, "geometry.hidden.squared_distance.0.1"),
        ((*DISTANCES, 0, 1), -1.0, "must not be negative"),
        ((*DISTANCES, 0, 1), None, "geometry.hidden.squared_distance.0.1"),
        ((*DISTANCES, 0), [0.0], "not 3 rows of 3 numbers for 3 experts"),
        (DISTANCES, [[[0.0]]], "geometry.hidden.squared_distance.0.0"),
        (("geometry", "hidden", "center"), [1.0], "center: 1 entries for 3"),
        (("geometry", "hidden", "diameter_pair"), [0, 7], "names expert 8 of 3"),
        (("geometry", "hidden", "diameter_pair"), [0, -1], "must not be negative"),
        (("geometry", "hidden", "confidence"), [], "geometry.hidden.confidence"),
        (("coefficients", "alpha"), [1.0], "coefficients.alpha: 1 entries for 4"),
        (("mds", "hidden", "unrelated"), [1.0], "mds.hidden.unrelated: not 3 entries"),
        (("mds", "hidden", "unrelated"), ["1", "2", "3"], "mds.hidden.unrelated"),
        (("groups", 0, "groups"), [[0, 9]], "groups (k = 1): names expert 10 of 3"),
        (("evaluation", "hidden", "distortion"), [1.0], "evaluation.hidden.distortion"),
        (("evaluation", "layers", 0, "distortion"), [1.0], "evaluation.layers (layer 1)"),
        (("evaluation", "tasks", 0, "owner"), 3, "evaluation.tasks: names expert 4 of 3"),
        (("evaluation", "tasks", 0, "owner"), 0.5, "evaluation.tasks.0.owner"),
        (("evaluation", "checks", 0, "passed"), "yes", "evaluation.checks.0.passed"),
        (("parameters", "cosine"), [[1.0]], "parameters.cosine: not 3 rows"),
        (("versions",), {"torch": 2}, "versions.torch"),
        (("timing", "states"), "fast", "timing.states"),
        (("recipe",), "text", "recipe"),
    ],
)
def test_a_value_that_the_page_relies_on_is_checked(tmp_path, place, value, says):
    with pytest.raises(InvalidRecipeError) as refused:
        read_report(written(tmp_path, changed(place, value)))
    assert says in str(refused.value)
    assert "make it again with `mergekit-collapse check RECIPE`" in str(refused.value)


def test_the_message_holds_nothing_that_a_terminal_obeys(tmp_path):
    with pytest.raises(InvalidRecipeError) as refused:
        read_report(written(tmp_path, changed(("versions",), {"\x1b[2J": 1})))
    assert "\x1b" not in str(refused.value)


def places(part: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*way, key))
        else:
            yield (*way, key)


PLACES = [place for place in places(FULL) if place]
ODD = [None, True, "x", "\x00<b>", -1, 0, 1e99, -1e99, 1e308, 10**400, [], [[]], {}, {"a": [1]}]


@settings(deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(ODD))
def test_whatever_reads_can_be_shown(place, value):
    """No value at any place ends in anything but a page or a message."""
    document = changed(place, value)
    try:
        parse_report(document)
    except InvalidRecipeError:
        return
    assert to_html(document, charts=False).endswith("</html>\n")


@settings(deadline=None)
@given(st.sampled_from(PLACES))
def test_no_key_is_missed(place):
    document = deepcopy(FULL)
    part = document
    for key in place[:-1]:
        part = part[key]
    if isinstance(part, list):
        return
    del part[place[-1]]
    try:
        parse_report(document)
    except InvalidRecipeError:
        return
    assert to_html(document, charts=False).endswith("</html>\n")
