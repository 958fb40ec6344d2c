"""The command, and the page whose every number it prints."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergekit_collapse.cli import main
from mergekit_collapse.study.columns import columns, p_text

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parent.parent / "docs" / "paper.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-\d+)?")


def command(*arguments):
    return CliRunner().invoke(
        main, ["study", "paper", *map(str, arguments)], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def output():
    done = command()
    assert done.exit_code == 0
    return done.stdout


def numbers(text):
    return set(NUMBER.findall(text))


def rows_of(page):
    lines = (line for line in page.splitlines() if line.startswith("|"))
    return [row for line in lines if numbers(row := line.split("|", 2)[2])]


def unprinted(page, output):
    """Numbers that no line has, and rows of tables whose numbers no single line has."""
    # The same number is a loss in a table and a percentage lost in a sentence.
    known = numbers(output) | {number.lstrip("-") for number in numbers(output)}
    lines = [numbers(line) for line in output.splitlines()]
    prose = "\n".join(line for line in page.splitlines() if not line.startswith("|"))
    return sorted(numbers(prose) - known) + [
        row for row in rows_of(page) if not any(numbers(row) <= line for line in lines)
    ]


def test_every_number_of_the_page_is_printed(output):
    assert len(rows_of(PAGE)) > 40
    assert unprinted(PAGE, output) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("0.00087", "0.00088"),
        ("| 0.00125 | 0.02871 |", "| 0.02871 | 0.00130 |"),
        ("AUROC | limit", "AUROC | limit 17.3"),
        ("down to 11.2", "down to 11.1"),
    ],
)
def test_a_wrong_number_would_be_found(output, right, wrong):
    assert right in PAGE
    assert unprinted(PAGE.replace(right, wrong), output)


def test_the_page_names_its_command_and_sections(output):
    assert "    mergekit-collapse study paper " in PAGE
    named = re.findall(r"^## .*\(sections? (\d(?: and \d)?)", PAGE, re.MULTILINE)
    sections = [number for group in named for number in group.split(" and ")]
    assert sections == re.findall(r"^(\d)\. ", output, re.MULTILINE)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (
            target.startswith("https://")
            or (Path(__file__).parent.parent / "docs" / target).resolve().exists()
        )


def test_the_computed_p_values_stand_beside_the_printed(output):
    lines = [line.split() for line in output.splitlines()]
    assert ["printed", "0.0032", "0.0013", "0.0288", "0.0059"] in lines
    assert ["best", "0.00326*", "0.00125*", "0.02871*", "0.00575*"] in lines
    assert "  In all 4 groups: best\n" in output


def test_the_stronger_factor_is_named(output):
    """The line of the method, and below it that of the task."""
    lines = output.splitlines()
    (at,) = (i for i, line in enumerate(lines) if "7B: LA, TA, TIES, DARE, SLERP" in line)
    assert "stronger" in lines[at]
    assert "stronger" not in lines[at + 1]
    (at,) = (i for i, line in enumerate(lines) if "7B: LA, TA, TIES, SLERP" in line)
    assert "stronger" not in lines[at]
    assert "stronger" in lines[at + 1]


def test_the_selection_guide_is_shown_as_printed(output):
    guide = output[output.index("8. ") :]
    for row in (["a", "5.05", "-70.8"], ["a1", "2.52", "-17.8"], ["a2", "2.89", "-19.1"]):
        assert row in [line.split() for line in guide.splitlines()]
    assert "From the table of group a: highest MDS 5.05, lowest best loss -70.8" in guide


def test_the_document_has_the_same_numbers(tmp_path, output):
    path = tmp_path / "paper.json"
    assert command("--json", path).stdout == output
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["format_version"] == 1
    best = document["tests"][0]
    assert [round(p["value"], 5) for p in best["p"]] == [0.00326, 0.00125, 0.02871, 0.00575]
    assert document["tables"]["groups"][1]["mds"][5] == 5.05
    group = document["robustness"][2]
    assert round(group["without"][5]["rest"]["pearson"]["p_value"], 2) == 0.72
    assert document["consistency"][3]["furthest"] == [[2, 4]]


def test_the_document_has_standard_output_to_itself():
    done = command("--json", "-")
    assert json.loads(done.stdout)["tables"]["source"].startswith("arXiv 2603.09463v1")
    assert done.stderr.startswith("The printed tables, recomputed")


def test_a_file_that_cannot_be_written_is_said_first(tmp_path):
    done = command("--json", tmp_path / "missing" / "paper.json")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


def test_columns_are_aligned_and_p_values_keep_their_digits():
    assert columns(["a", "b"], [["long", "1"], ["x", "22"]]) == [
        "  a      b",
        "  long   1",
        "  x     22",
    ]
    assert [p_text(p) for p in (0.5, 0.00005, 0.0000499, float("nan"))] == [
        "0.50000",
        "0.00005",
        "5.0e-05",
        "nan",
    ]
    with pytest.raises(ValueError, match="shorter"):
        columns(["a", "b"], [["one"]])
