"""MergeLens run beside: how its numbers are asked for, turned and refused."""

import json

import pytest
from collapse_benchmark import value_of

# isort: split
import mergelens_scores
from mergelens_scores import answer_rows


def pair_answer(score, unrounded):
    return {"score": score, "unrounded": unrounded, "seconds": 2.0}


ANSWER = {
    "based": [pair_answer(99.9, 99.91), pair_answer(70.0, 70.02)],
    "bare": [pair_answer(None, None)],
    "task_vectors": {"sign_disagreement_rate": 0.25, "tsv_interference": None, "seconds": 3.0},
    "diagnose": {"interference": 0.5, "seconds": 1.0},
}


def test_mergelens_is_turned_so_that_higher_is_worse():
    rows = list(answer_rows(("a", "b"), ANSWER))
    assert value_of(rows, "mergelens") == 30
    assert value_of(rows, "mergelens_unrounded") == pytest.approx(29.98)
    assert value_of(rows, "mergelens", "a") == pytest.approx(0.1)
    assert value_of(rows, "mergelens_no_base") is None
    assert value_of(rows, "mergelens_sign_disagreement") == 0.25
    assert value_of(rows, "mergelens_tsv_interference") is None
    assert value_of(rows, "mergelens_diagnose") == 0.5
    assert {r.seconds for r in rows if r.predictor == "mergelens"} == {4.0}
    named = {name for names in mergelens_scores.CALLS.values() for name in names}
    assert {r.predictor for r in rows} == named


def stand_in(tmp_path, version, count):
    """A program in the place of MergeLens's Python, that answers so many groups."""
    lines = "".join(f"read asked\necho '{json.dumps(ANSWER)}'\n" for _ in range(count))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{json.dumps({'version': version})}'\n{lines}")
    program.chmod(0o755)
    return program


def test_mergelens_is_asked_group_by_group(tmp_path):
    program = stand_in(tmp_path, "2.0.3", 2)
    groups = [("a", "b"), ("c", "d")]
    rows = list(mergelens_scores.scores(tmp_path, groups, program))
    assert [r.members for r in rows if r.predictor == "mergelens" and not r.expert] == [
        "a+b",
        "c+d",
    ]


def test_another_mergelens_is_refused(tmp_path):
    program = stand_in(tmp_path, "1.9", 1)
    with pytest.raises(SystemExit, match=r"has mergelens 1\.9, .* pip install mergelens==2\.0\.3"):
        list(mergelens_scores.scores(tmp_path, [("a", "b")], program))


def test_an_end_of_mergelens_is_told(tmp_path):
    program = stand_in(tmp_path, "2.0.3", 1)
    with pytest.raises(SystemExit, match="MergeLens ended with status 0"):
        list(mergelens_scores.scores(tmp_path, [("a", "b"), ("c", "d")], program))


def test_a_python_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SystemExit, match="nowhere cannot be run"):
        list(mergelens_scores.scores(tmp_path, [("a", "b")], tmp_path / "nowhere"))


def test_an_environment_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(mergelens_scores, "REQUIREMENTS", ("mergelens==2.0.3",))
    place = tmp_path / "mergelens-env" / "bin"

    def create(*_, **__):
        place.mkdir(parents=True)
        (place / "python").write_text("#!/bin/sh\necho 'No matching distribution' >&2\nexit 1\n")
        (place / "python").chmod(0o755)

    monkeypatch.setattr(mergelens_scores.venv, "create", create)
    with pytest.raises(SystemExit, match="No matching distribution\ninstall them elsewhere"):
        mergelens_scores.environment(tmp_path)
