"""The shipped probe set: complete, varied, clean, and free of near-duplicates."""

import json
import re
import unicodedata
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import combinations

CATEGORIES = {
    "mathematics",
    "code",
    "dialogue",
    "news",
    "question_answering",
    "reasoning",
    "translation",
    "instructions",
}
UNSPACED = {"zh", "ja"}  # written without spaces: counted by character


@cache
def content() -> str:
    data = files("mergekit_collapse.data") / "builtin_probes.jsonl"
    return data.read_bytes().decode("utf-8")  # bytes: no newline translation


@cache
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in content().split("\n")[:-1]]


def terms(row: dict[str, str]) -> set[str]:
    """What two texts are compared by: words, or pairs of characters where words are unspaced."""
    text = row["text"].casefold()
    if row["language"] in UNSPACED:
        return {text[i : i + 2] for i in range(len(text) - 1)}
    return {word for piece in text.split() if (word := re.sub(r"\W", "", piece))}


def test_there_are_enough_rows() -> None:
    assert len(rows()) >= 256


def test_file_is_normalised_with_plain_line_ends() -> None:
    assert unicodedata.is_normalized("NFC", content())
    assert content().endswith("\n")
    assert "\r" not in content()
    assert not content().startswith("\ufeff")


def test_lines_are_written_in_one_way() -> None:
    for line, row in zip(content().split("\n"), rows(), strict=False):
        assert list(row) == ["id", "category", "language", "text"], line
        assert all(isinstance(value, str) and value for value in row.values()), line
        assert line == json.dumps(row, ensure_ascii=False)


def test_ids_and_texts_are_unique() -> None:
    for key in ("id", "text"):
        repeated = [v for v, n in Counter(row[key] for row in rows()).items() if n > 1]
        assert not repeated, key


def test_every_category_is_well_filled() -> None:
    counts = Counter(row["category"] for row in rows())
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 30, counts


def test_languages_are_many() -> None:
    counts = Counter(row["language"] for row in rows())
    assert all(re.fullmatch("[a-z]{2}", language) for language in counts)
    assert len(counts) >= 12, counts
    assert counts.total() - counts["en"] >= 64, counts


def test_first_64_rows_hold_all_categories_equally() -> None:
    first = Counter(row["category"] for row in rows()[:64])
    assert first == dict.fromkeys(CATEGORIES, 8)


def test_texts_are_short_and_trimmed() -> None:
    for row in rows():
        text = row["text"]
        length = len(text) if row["language"] in UNSPACED else len(text.split())
        assert 3 <= length <= 120, row["id"]
        assert text == text.strip(), row["id"]
        assert all(line == line.rstrip() for line in text.split("\n")), row["id"]
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in text), row["id"]


def test_no_two_texts_are_nearly_the_same() -> None:
    compared = [(row["id"], terms(row)) for row in rows()]
    assert all(own for _, own in compared)
    for (left, a), (right, b) in combinations(compared, 2):
        shared = len(a & b)
        assert shared < 0.8 * (len(a) + len(b) - shared), (left, right)
