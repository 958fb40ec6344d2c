"""The Markdown summary: what it says, and that nothing of a stranger's is obeyed."""

import re

import made_documents
import pytest
from markdown_it import MarkdownIt

from mergekit_collapse.formats.card import add_to_card, card_section
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.formats.plain import plain

MARKS = {"em_open", "strong_open", "s_open", "link_open", "image", "html_inline", "html_block"}


def parsed(text):
    """As GitHub reads it: CommonMark with tables and strikethrough."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def inline(tokens):
    return [child for token in tokens for child in token.children or ()]


def rows_of(text):
    """Every table's rows, each as the texts of its cells."""
    rows = []
    for token in parsed(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level >= 4:
            rows[-1].append("".join(child.content for child in token.children))
    return rows


@pytest.mark.parametrize("write", [to_markdown, card_section])
@pytest.mark.parametrize("name", made_documents.MAKERS)
def test_every_document_is_well_formed(name, write):
    text = write(made_documents.MAKERS[name][0]())
    assert text.endswith("\n")
    tokens = parsed(text)
    # Emphasis is ours alone: the decision of each stage.
    strong = sum(child.type == "strong_open" for child in inline(tokens))
    assert strong == text.count(": **")
    assert not {child.type for child in inline(tokens)} & (MARKS - {"strong_open"})
    assert not {token.type for token in tokens} & MARKS
    assert sum(token.type == "heading_open" for token in tokens) == 1
    # No cell is cut in two, and no line that is meant as a row is read as text.
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows_of(text)) == len(lines) - sum("| --- |" in line for line in lines)


def test_a_refusal_says_why_and_shows_the_numbers():
    text = to_markdown(made_documents.refused())
    assert text.startswith("## mergekit-collapse: refused\n")
    assert "Gate: **refuse**." in text
    assert "- mds of odd (unrelated, hidden space) is infinite, limit 3. Leave odd out" in text
    rows = rows_of(text)
    assert rows[0] == ["expert", "weight", "MDS (unrelated)", "predicted distortion"]
    assert rows[3][:3] == ["odd", "0.5", "∞"]
    assert rows[4] == ["", "1", "2", "3"]
    assert rows[5][:2] == ["1 near", "·"]
    assert rows[5][2] == rows[6][1]
    assert re.search(r"Δ² 4\.\d+ \(3\.\d+ to 4\.\d+\), every merge ≥ 1\.0\d, enclosing ball", text)
    assert "24 probes, token digest 0123456789abcdef" in text
    assert text.endswith("Versions: mergekit-collapse 0.1.0.\n")


def test_what_the_evaluation_found_is_there():
    for write in (to_markdown, card_section):
        text = write(made_documents.rejected())
        assert "Gate: **allow**." in text
        assert "Evaluation: **refuse**." in text
        assert "loads: keys are missing. Mend it." in text
        rows = rows_of(text)
        assert rows[0][-1] == "measured distortion"
        assert [row[-1] for row in rows[1:3]] == ["0.125", "0.25"]
        assert ["first", "accuracy", "12", "0.8", "0.6", "-25.0 %"] in rows
        assert ["second", "accuracy", "12", "0.8", "0.6", "-"] in rows
        assert ["evaluation", "loads", "loads: keys are missing. Mend it.", "failed"] in rows
        assert ["evaluation", "variance ratio of the worst layer", "0.7, layer 2", "passed"] in rows
    assert ["arc_easy", "acc,none", "0.5"] in rows_of(to_markdown(made_documents.rejected()))


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("rejected", "**allow**"),
        ("rehearsed", "**allow**"),
        ("stopped", "**allow**"),
        ("refused", "**refuse**"),
        ("warned", "**warn**"),
        ("overruled", "**refuse**, overruled by the rehearsal"),
        ("made before", "**refuse**, but the merge was made before"),
    ],
)
def test_the_gate_is_told_for_itself(name, gate):
    document = made_documents.MAKERS[name][0]()
    assert f"Gate: {gate}.\n" in to_markdown(document)
    if "," not in gate:
        # As from a document that has the last verdict alone.
        del document["gate"]
        assert f"Gate: {gate}.\n" in to_markdown(document)


def test_a_merge_that_was_stopped_says_where():
    for write in (to_markdown, card_section):
        text = write(made_documents.stopped())
        assert "Monitor: **refuse**, stopped at layer 2; nothing was written." in text


def test_a_change_is_shown_with_its_members_and_its_diff():
    for write in (to_markdown, card_section):
        text = write(made_documents.changed())
        assert "Gate: **modified**." in text
        line = "substitute: without odd; with close; distortion 1.5 → 0.0625"
        assert f"Changed ({line}):\n" in text
        rows = rows_of(text)
        assert rows[0][:3] == ["expert", "then", "weight before"]
        assert rows[1:4] == [
            ["near", "stays", "0.5", "0.25", "0.125", "0.0625"],
            ["odd", "left out", "0.5", "-", "1.75", "-"],
            ["close", "taken in", "-", "0.75", "-", "0.0312"],
        ]
        (code,) = [token.content for token in parsed(text) if token.type == "code_block"]
        assert code.startswith("--- recipe.yml\n+++ recipe.yml (changed)\n@@")
        assert "\n-- model: odd\n" in code
        assert "\n+- model: close\n" in code
        assert "- Note: close takes the place of odd" in text
    assert to_markdown(made_documents.changed()).startswith(
        "## mergekit-collapse: allowed after a change\n"
    )


def test_a_split_is_shown_as_what_could_be_merged():
    text = to_markdown(made_documents.split())
    assert "Could be merged as (split: distortion 1.5):\n" in text
    (code,) = [token.content for token in parsed(text) if token.type == "code_block"]
    assert code == "# near | odd\nname: group-1\n---\nname: group-2\n"
    assert "weight before" not in text


def test_where_nothing_was_merged_it_says_so():
    text = to_markdown(made_documents.nothing_merged())
    assert "## mergekit-collapse: allowed" in text
    assert "no two models are merged" in text
    assert not rows_of(text)


def test_hostile_names_are_shown_as_they_are():
    rows = rows_of(to_markdown(made_documents.hostile()))
    shown = [row[0].replace("\u200b", "") for row in rows[1:4]]
    assert shown == ["::error::x ::set-output name=a::b", *made_documents.HOSTILE[1:3]]


@pytest.mark.parametrize(
    "text",
    [
        *made_documents.HOSTILE,
        "_a_ __b__ ~~c~~ $d$ \\*e\\* `f",
        "[a]: http://b",
        "![a](b) <https://c> <!-- d -->",
        "&lt;b&gt; &#x3c;",
        "a\\|b",
    ],
)
def test_any_text_comes_out_of_a_cell_as_it_went_in(text):
    table = f"| a | b |\n| --- | --- |\n| x{plain(text)} | y |\n"
    (row,) = rows_of(table)[1:]
    assert row[1] == "y"
    once = " ".join(text.split())
    expected = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in once)
    assert row[0].replace("\u200b", "") == f"x{expected}"


@pytest.mark.parametrize("text", ["@someone", "see #12", "http://x", "www.x.y"])
def test_github_links_nothing_and_tells_no_one(text):
    assert "&#8203;" in plain(text)


def test_plain_names_stay_readable_as_they_are():
    name = "org/my_model-7B_v1.2, layer 3 (bf16) = 50%"
    assert plain(name) == name


def test_the_card_is_appended_once_the_merge_wrote_one(tmp_path):
    document = made_documents.published()
    add_to_card(document, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "README.md").write_text("---\ntags: []\n---\n# merged\n\n\n", encoding="utf-8")
    add_to_card(document, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\ntags: []\n---\n# merged\n\n## Compatibility\n\n")
    assert "Gate: **allow**." in text
    assert "Evaluation: **allow**." in text
    assert "Checked by mergekit-collapse 0.1.0." in text


def test_a_document_of_an_older_version_or_with_keys_lost_is_still_shown():
    document = made_documents.allowed()
    for key in ("warnings", "forward", "timing", "mds", "versions", "probes"):
        del document[key]
    del document["geometry"]["hidden"]["confidence"]
    text = to_markdown(document)
    assert "Gate: **allow**." in text
    # A verdict that is missing is no approval.
    del document["verdict"]
    assert "## mergekit-collapse: not evaluated" in to_markdown(document)
