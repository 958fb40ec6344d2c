"""What is said to have changed between two reports."""

import copy

import made_documents
import pytest

from mergekit_collapse.formats.comparison import compare


def rows(text):
    """The table's lines by their names, each with the two values and the mark."""
    found = {}
    for line in text.split("\n\n")[0].splitlines():
        name, *values = [part.strip() for part in line.split("  ") if part.strip()]
        found[name] = values
    return found


@pytest.mark.parametrize("name", made_documents.MAKERS)
def test_a_report_and_itself_differ_in_nothing(name):
    document = made_documents.MAKERS[name][0]()
    text = compare(document, copy.deepcopy(document))
    assert text.endswith("\n\nNothing changed.")
    assert "*" not in text.replace("**d**", "")
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("one", made_documents.MAKERS)
@pytest.mark.parametrize("two", ["allowed", "nothing merged", "hostile", "rejected"])
def test_any_two_can_be_compared(one, two):
    text = compare(made_documents.MAKERS[one][0](), made_documents.MAKERS[two][0]())
    assert all(line.isprintable() for line in text.splitlines())
    assert text.splitlines()[1].startswith("verdict")


def test_numbers_verdict_and_members():
    text = compare(made_documents.refused(), made_documents.published())
    found = rows(text)
    assert found["verdict"] == ["refused", "allowed"]
    assert found["ball r²"][0].startswith("1.0")
    # Far below what resampling the probes of the first report gives.
    assert found["ball r²"][1].endswith(" *")
    assert found["worst measured distortion"] == ["-", "0.25"]
    assert found["measured distortion of close"] == ["-", "0.25"]
    assert found["merging loss of first, %"] == ["-", "-25"]
    assert "- expert odd" in text
    assert "+ expert" not in text
    assert "+ expert odd" in compare(made_documents.published(), made_documents.refused())
    assert text.endswith("* outside the first report's confidence interval")


def test_the_lines_are_aligned():
    text = compare(made_documents.refused(), made_documents.published())
    table = text.split("\n\n")[0].splitlines()
    second = table[0].index("second")
    assert {line[second - 1] for line in table} == {" "}
    assert all(line[second] != " " for line in table)


def test_a_change_within_the_interval_is_not_marked():
    one = made_documents.allowed()
    two = copy.deepcopy(one)
    interval = one["geometry"]["hidden"]["confidence"]["ball_radius_squared"]
    for value, marked in (
        (interval["low"], False),
        (interval["high"], False),
        (interval["high"] * 1.1, True),
        (interval["low"] * 0.9, True),
    ):
        two["geometry"]["hidden"]["ball_radius_squared"] = value
        (shown,) = (values for name, values in rows(compare(one, two)).items() if name == "ball r²")
        assert shown[1].endswith(" *") == marked


def test_an_infinite_score_is_beyond_any_interval():
    one = made_documents.refused()
    two = copy.deepcopy(one)
    two["mds"]["hidden"]["unrelated"][0] = None
    two["mds"]["hidden"]["unrelated_reason"][0] = "infinite"
    assert rows(compare(one, two))["MDS of near"][1] == "∞ *"
    # Back from infinity there is no interval to be outside of.
    assert not rows(compare(two, one))["MDS of near"][1].endswith("*")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["probes"].update(digest="other"), "the probes"),
        (lambda d: d["budget"].update(similarity="group_max"), "budget.similarity"),
        (lambda d: d["geometry"]["hidden"].update(pooling="last_token"), "pooling"),
        (lambda d: d["geometry"]["hidden"].update(layers=[3]), "layers"),
    ],
)
def test_numbers_of_different_things_are_said_to_be_so_and_not_marked(change, said):
    one, two = made_documents.refused(), made_documents.refused()
    two["geometry"]["hidden"]["ball_radius_squared"] = 9.0
    assert "*" in compare(one, two)
    change(two)
    text = compare(one, two)
    assert f"The numbers are not comparable: {said} differ." in text
    assert "*" not in text


def test_experts_are_matched_by_model_whatever_their_place():
    one = made_documents.allowed()
    two = copy.deepcopy(one)
    two["experts"].reverse()
    two["mds"]["hidden"]["unrelated"].reverse()
    two["geometry"]["hidden"]["predicted_distortion"].reverse()
    assert compare(one, two).endswith("Nothing changed.")


def test_budget_method_and_versions():
    one, two = made_documents.allowed(), made_documents.allowed()
    two["budget"]["distortion"] = 0.5
    two["recipe"] |= {"path": "second.yml", "method": "karcher"}
    two["versions"]["mergekit-collapse"] = "0.2.0"
    assert rows(compare(one, two)) == {
        "first": ["second.yml"],
        "verdict": ["allowed", "allowed"],
        "method": ["linear", "karcher"],
        "budget.distortion": ["0.3", "0.5"],
        "version of mergekit-collapse": ["0.1.0", "0.2.0"],
    }
