"""Workflow commands and the step's summary, read as GitHub's runner reads them."""

import os
import re

import made_documents
import pytest

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.formats.github import annotate, append_summary

pytestmark = pytest.mark.slow

ON = {"GITHUB_ACTIONS": "true"}
LIMIT = 1024 * 1024


def commands(text):
    """Kind, properties and message of each line, by the rules of the runner.

    It takes a line that starts with `::`, and else one with `##[` anywhere in it.
    """
    found = []
    for line in re.split(r"\r\n|\r|\n", text):
        if not line:
            continue
        assert line.startswith("::"), line
        head, message = line[2:].split("::", 1)
        kind, _, rest = head.partition(" ")
        properties = dict(part.split("=", 1) for part in rest.split(",") if part)
        found.append((kind, {k: unescaped(v) for k, v in properties.items()}, unescaped(message)))
    return found


def unescaped(text):
    for code, mark in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, mark)
    return text


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("allowed", ["notice"]),
        ("nothing merged", ["notice"]),
        ("published", ["notice"]),
        ("warned", ["warning", "warning"]),
        ("refused", ["error", "error"]),
        ("rejected", ["error", "error", "error"]),
        ("rehearsed", ["error"]),
        ("stopped", ["error"]),
        ("overruled", ["warning"]),
        ("made before", ["warning"]),
        ("hostile", ["error", "error", "error"]),
    ],
)
def test_a_command_for_each_reason(name, kinds):
    document = made_documents.MAKERS[name][0]()
    found = commands(annotate(document, ON))
    assert [kind for kind, _, _ in found] == kinds
    assert all(set(properties) == {"title"} for _, properties, _ in found)
    assert annotate(document, {}) == ""
    assert annotate(document, {"GITHUB_ACTIONS": "false"}) == ""


def test_the_message_is_the_reason_and_the_title_the_stage():
    found = commands(annotate(made_documents.rejected(), ON))
    assert found[1] == (
        "error",
        {"title": "mergekit-collapse, evaluation: refuse"},
        "max_merging_loss of near on first (accuracy .8 became .6) is 25, limit 20. Mend it.",
    )


def test_a_stranger_s_name_gives_no_command_and_is_shown_whole():
    text = annotate(made_documents.hostile(), ON)
    assert text.count("\n") == 3
    message = commands(text)[0][2]
    assert r"::error::x\n::set-output name=a::b" in message
    # A per cent sign is not taken for a code: `%0A` in a name is no line end.
    document = made_documents.refused()
    document["verdict"]["reasons"][0]["subject"] = "100%0A::error::y"
    document["gate"] = document["verdict"]
    (first, *_) = commands(annotate(document, ON))
    assert "100%0A::error::y" in first[2]


def test_the_recipe_is_named_relative_to_the_checkout(tmp_path, monkeypatch):
    inside = tmp_path / "checkout" / "merges" / "a,b:c.yml"
    inside.parent.mkdir(parents=True)
    document = made_documents.refused()
    environ = {**ON, "GITHUB_WORKSPACE": str(tmp_path / "checkout")}
    document["recipe"]["path"] = str(inside)
    assert commands(annotate(document, environ))[0][1]["file"] == "merges/a,b:c.yml"
    monkeypatch.chdir(inside.parent)
    document["recipe"]["path"] = "a,b:c.yml"
    assert commands(annotate(document, environ))[0][1]["file"] == "merges/a,b:c.yml"
    document["recipe"]["path"] = str(tmp_path / "elsewhere.yml")
    assert "file" not in commands(annotate(document, environ))[0][1]


def test_no_more_than_github_shows():
    document = made_documents.refused()
    document["verdict"]["reasons"] *= 8
    document["gate"] = document["verdict"]
    found = commands(annotate(document, ON))
    assert len(found) == 10
    assert found[-1][2].startswith("and 7 more reasons")


def test_the_summary_is_appended(tmp_path):
    path = tmp_path / "summary"
    append_summary(made_documents.refused(), {})
    append_summary(made_documents.refused(), {"GITHUB_STEP_SUMMARY": ""})
    assert not path.exists()
    path.write_text("before\n", encoding="utf-8")
    append_summary(made_documents.hostile(), {"GITHUB_STEP_SUMMARY": str(path)})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n\n## mergekit-collapse: rejected\n")


@pytest.mark.parametrize("before", [0, LIMIT - 3000, LIMIT - 100, LIMIT + 5])
def test_a_long_summary_is_cut_with_a_note(tmp_path, before):
    path = tmp_path / "summary"
    path.write_bytes(b"x" * before)
    document = made_documents.refused()
    reasons = document["verdict"]["reasons"]
    reasons[0]["advice"] = "é" * 500
    document["verdict"]["reasons"] = reasons * 1500
    append_summary(document, {"GITHUB_STEP_SUMMARY": str(path)})
    assert before <= path.stat().st_size <= max(before, LIMIT - 2)
    added = path.read_bytes()[before:].decode()
    if before < LIMIT - 2000:
        assert added.endswith("report.json has all of it.\n")
        assert all(line.startswith("- ") for line in added.splitlines()[6:-3])
    else:
        assert added == ""


@pytest.mark.skipif(os.name != "posix", reason="a folder opens nowhere else like this")
def test_a_summary_that_cannot_be_written_says_where(tmp_path):
    with pytest.raises(EvaluationError, match=r"GITHUB_STEP_SUMMARY: .* cannot be written"):
        append_summary(made_documents.allowed(), {"GITHUB_STEP_SUMMARY": str(tmp_path)})
