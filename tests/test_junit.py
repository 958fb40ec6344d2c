"""JUnit XML: what CI systems accept, and that it fails exactly where the command does."""

import re
from xml.etree import ElementTree as ET

import made_documents
import pytest

from mergekit_collapse.formats.junit import error_junit, to_junit

TIME = re.compile(r"\d{1,3}\.\d{3}")
# Children and attributes as in the schema of Jenkins' xUnit plugin; the starred are required.
SCHEMA = {
    "testsuites": ({"testsuite"}, {"name", "time", "tests", "failures", "errors"}),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err"},
        {"name*", "tests*", "failures*", "errors*", "skipped", "time"},
    ),
    "properties": ({"property"}, set()),
    "property": (set(), {"name*", "value*"}),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name*", "classname", "time"},
    ),
    "failure": (set(), {"type", "message"}),
    "error": (set(), {"type", "message"}),
    "skipped": (set(), {"type", "message"}),
    "system-out": (set(), set()),
}


def require_valid(root):
    assert root.tag == "testsuites"
    for element in root.iter():
        children, attributes = SCHEMA[element.tag]
        assert {child.tag for child in element} <= children
        assert set(element.attrib) <= {name.rstrip("*") for name in attributes}
        assert {name[:-1] for name in attributes if name.endswith("*")} <= set(element.attrib)
        if (time := element.get("time")) is not None:
            assert TIME.fullmatch(time)
    for suite in root:
        cases = suite.findall("testcase")
        names = [(case.get("classname"), case.get("name")) for case in cases]
        assert len(set(names)) == len(names)
        assert int(suite.get("tests")) == len(cases)
        for attribute, tag in (
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert int(suite.get(attribute)) == len(suite.findall(f"testcase/{tag}"))
        assert float(suite.get("time")) == pytest.approx(
            sum(float(case.get("time")) for case in cases)
        )
    for attribute in ("tests", "failures", "errors"):
        assert int(root.get(attribute)) == sum(int(suite.get(attribute)) for suite in root)


def suites(document):
    root = ET.fromstring(to_junit(document))
    return {suite.get("name"): {c.get("name"): c for c in suite.iter("testcase")} for suite in root}


@pytest.mark.parametrize("name", made_documents.MAKERS)
def test_the_file_is_valid_and_fails_exactly_where_the_command_does(name):
    make, exit_code = made_documents.MAKERS[name]
    root = ET.fromstring(to_junit(make()))
    require_valid(root)
    failed = int(root.get("failures")) + int(root.get("errors"))
    assert (failed > 0) == (exit_code != 0)


def test_a_change_stands_beside_the_gates_cases():
    root = ET.fromstring(to_junit(made_documents.changed()))
    line = "substitute: without odd; with close; distortion 1.5 → 0.0625"
    found = {p.get("name"): p.get("value") for p in root.iter("property")}
    assert found["remedy"] == line
    told = root.find("testsuite/system-out").text
    assert told.startswith(f"{line}\nnote: close takes the place of odd\n--- recipe.yml")
    assert "\n+- model: close" in told
    assert "name: group-2" in to_junit(made_documents.split())


def test_a_case_for_every_limit_says_what_was_read():
    cases = suites(made_documents.refused())["gate"]
    mds = [name for name in cases if name.startswith("MDS of ")]
    assert mds == [f"MDS of {name} (hidden)" for name in ("near", "close", "odd")]
    assert "limit 3" in cases[mds[0]].find("system-out").text
    failure = cases[mds[2]].find("failure")
    assert failure.get("type") == "mds"
    assert "is infinite, limit 3. Leave odd out" in failure.get("message")
    (distortion,) = (case for name, case in cases.items() if name.startswith("distortion"))
    assert "limit 0.3" in distortion.find("failure").text


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"rule": "corollary"}, ["distortion of near and close (hidden)"]),
        (
            {"rule": "weights", "mds": None},
            ["distortion of near (hidden)", "distortion of close (hidden)"],
        ),
        ({"over": "own_task"}, ["distortion of near, close (hidden)"]),
        (
            {"over": "own_task", "rule": "weights"},
            ["distortion of near on first (hidden)", "distortion of close on second (hidden)"],
        ),
        ({"distortion": None}, []),
    ],
)
def test_cases_follow_the_budget(budget, expected):
    document = made_documents.allowed(**budget)
    cases = suites(document)["gate"]
    assert [name for name in cases if name.startswith("distortion")] == expected
    assert sum(name.startswith("MDS") for name in cases) == (
        0 if budget.get("mds", 3) is None else 2
    )
    # And with a limit that nothing keeps, each of them fails and no other is made.
    refused = made_documents.allowed(**{**budget, "mds": 1.0, "distortion": 1e-9})
    cases = suites(refused)["gate"]
    distortions = [case for name, case in cases.items() if name.startswith("distortion")]
    assert len(distortions) == len(expected) or not expected
    assert all(case.find("failure") is not None for case in distortions)


def test_a_warning_passes_and_says_so():
    cases = suites(made_documents.warned())["gate"]
    said = cases["MDS of odd (hidden)"].find("system-out").text
    assert said.startswith("WARNING: ")
    assert "limit 3" in said


def test_what_was_found_after_the_merge():
    cases = suites(made_documents.rejected())["evaluation"]
    assert "25, limit 20" in cases["merging loss of near on first"].find("failure").text
    assert "keys are missing" in cases["loads"].find("failure").text
    assert cases["finite"].find("failure") is None
    # What no reading is about is a case of its own, and what is undefined is skipped.
    assert cases["other_thing of layer 7"].find("failure") is not None
    skipped = cases["merging loss of close on second"].find("skipped")
    assert skipped.get("message") == "the expert scores 0"
    assert cases["variance ratio of the worst layer"].find("system-out").text == "0.7, layer 2"
    assert cases["step: measured"].get("time") == "3.250"


def test_times_of_the_stages_are_the_document_s():
    root = ET.fromstring(to_junit(made_documents.published()))
    times = {suite.get("name"): suite.get("time") for suite in root}
    assert times == {"gate": "1.750", "evaluation": "3.250"}
    assert root.get("time") == "5.000"


def test_a_refusal_by_rehearsal_fails_there_and_once():
    found = suites(made_documents.rehearsed())
    failed = [
        (s, n) for s, cs in found.items() for n, c in cs.items() if c.find("failure") is not None
    ]
    assert failed == [("rehearsal", "distortion of close (hidden)")]


def test_a_merge_that_was_stopped_says_where():
    root = ET.fromstring(to_junit(made_documents.stopped()))
    found = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert found["note"] == "stopped at layer 2; nothing was written"


def test_a_refusal_without_a_reason_still_fails():
    document = made_documents.allowed()
    document["verdict"] = {"decision": "refuse", "exit_code": 3, "reasons": []}
    assert suites(document)["gate"]["verdict of the merge"].find("failure") is not None


def test_properties_name_digests_and_versions():
    root = ET.fromstring(to_junit(made_documents.allowed()))
    found = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert found["probes.digest"] == "0123456789abcdef0123"
    assert found["version.mergekit-collapse"] == "0.1.0"
    assert len(found["recipe.sha256"]) == 64


def test_hostile_names_stay_text():
    text = to_junit(made_documents.hostile())
    # Nothing that XML 1.0 forbids, and no line end within a name.
    assert not re.search("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    assert "\u202e" not in text
    assert "<script>" not in text
    assert ET.fromstring(text).find(".//script") is None
    assert r"\x1b[2J\x00\ufffe\u202e" in text


@pytest.mark.parametrize(("code", "kind"), [(1, "not evaluated"), (2, "invalid recipe")])
def test_what_could_not_be_judged_is_an_error(code, kind):
    root = ET.fromstring(error_junit("recipe.yml: no such file\x1b", code))
    require_valid(root)
    assert root.get("errors") == "1"
    error = root.find(".//error")
    assert error.get("type") == kind
    assert error.text == r"recipe.yml: no such file\x1b"
