"""Rows of predictors.csv: made of pairs, added once, resumed."""

import csv
import math

import collapse_benchmark  # noqa: F401  (for the path)
import numpy as np
import pytest

# isort: split
from predictor_rows import PredictorRow, append, left_to_do, pair_rows, read_groups, row


def test_pairs_make_rows_of_a_group_and_its_experts():
    pairs = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 6.0], [2.0, 6.0, 0.0]])
    rows = list(pair_rows(("a", "b", "c"), "far", pairs, 0.5))
    assert [(r.expert, r.predictor, r.value) for r in rows] == [
        ("", "far", 3.0),
        ("", "far_max", 6.0),
        ("a", "far", 1.5),
        ("b", "far", 3.5),
        ("c", "far", 4.0),
    ]
    assert {(r.members, r.method, r.seconds) for r in rows} == {("a+b+c", "", 0.5)}


def test_rows_are_added_once_and_what_is_left_is_known(tmp_path):
    output = tmp_path / "predictors.csv"
    assert left_to_do([("a", "b")], ["x"], output) == [("a", "b")]
    first = [row("a+b", "", "x", 1 / 3, 0.1234567), row("a+b", "a", "x", math.nan, 1.0)]
    assert append(output, first) == 2
    assert append(output, [*first, row("a+c", "", "x", 2.0, 1.0)]) == 1
    with output.open(encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found == [
        list(PredictorRow._fields),
        ["a+b", "", "", "x", "0.333333333", "0.123"],
        ["a+b", "", "a", "x", "", "1"],
        ["a+c", "", "", "x", "2", "1"],
    ]
    groups = [("a", "b"), ("a", "c"), ("b", "c")]
    assert left_to_do(groups, ["x"], output) == [("b", "c")]
    assert left_to_do(groups, ["x", "y"], output) == groups


def test_an_interrupted_run_keeps_what_it_found(tmp_path):
    output = tmp_path / "predictors.csv"

    def stopped():
        yield row("a+b", "", "x", 1.0, 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append(output, stopped())
    assert left_to_do([("a", "b")], ["x"], output) == []


def test_groups_are_read_from_lines_a_table_or_all_pairs(tmp_path):
    lines, table = tmp_path / "groups.txt", tmp_path / "outcomes.csv"
    lines.write_text("a+b\n\na+b+c\na+b\n")
    table.write_text("merge,members,loss\n1,a+b,0\n2,a+b,1\n3,c+d,2\n")
    assert read_groups(lines, tmp_path) == [("a", "b"), ("a", "b", "c")]
    assert read_groups(table, tmp_path) == [("a", "b"), ("c", "d")]
    for name in "bac":
        (tmp_path / "experts" / name).mkdir(parents=True)
        (tmp_path / "experts" / name / "training.json").write_text("{}")
    assert read_groups(None, tmp_path) == [("a", "b"), ("a", "c"), ("b", "c")]
