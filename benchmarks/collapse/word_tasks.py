"""Tasks on single words: WordNet's kinds and definitions, dictionaries of other languages."""

import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sources import entries, path
from text_tasks import UNSHOWN, Pairs

KINDS = {"05": "animal", "06": "object", "13": "food", "18": "person", "20": "plant", "15": "place"}
"""WordNet's lexicographer files, and what they are called here."""


@dataclass(frozen=True)
class Noun:
    """The first word of a synset."""

    word: str
    kind: str
    above: str
    gloss: str


def _nouns(sources: Path) -> Iterator[Noun]:
    with tarfile.open(path(sources, "wordnet")) as archive:
        file = archive.extractfile("package/dict/data.noun")
        if file is None:
            raise ValueError("no package/dict/data.noun in WordNet's archive")
        lines = file.read().decode("latin-1").splitlines()
    synsets = {}
    for line in lines:
        if re.match(r"\d{8} ", line):
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            above = fields[fields.index("@") + 1] if "@" in fields else ""
            synsets[fields[0]] = fields[4].replace("_", " "), fields[1], above, gloss
    for word, kind, above, text in synsets.values():
        gloss = re.sub(r"\([^)]*\)", "", text.partition(";")[0])
        gloss = re.sub(r"\s+", " ", gloss).strip()
        plain = word.islower() and word.replace(" ", "").isalpha() and not UNSHOWN.search(gloss)
        if plain and above in synsets and 4 <= len(gloss.split()) <= 12 and gloss.isascii():
            yield Noun(word, KINDS.get(kind, ""), synsets[above][0], gloss)


def category(sources: Path) -> Pairs:
    """What kind of thing a definition is of."""
    for noun in _nouns(sources):
        if noun.kind:
            yield f"Definition: {noun.gloss}\nIt is a kind of:", noun.kind


def hypernym(sources: Path) -> Pairs:
    """Whether every A is a B: B stands above A in WordNet, or above another noun."""
    rng = random.Random(0)
    nouns = [n for n in _nouns(sources) if len(n.word.split()) < 3 and n.kind]
    others = rng.sample(nouns, len(nouns))
    for noun, other in zip(nouns, others, strict=True):
        true = rng.random() < 0.5
        if true or other.above != noun.above:
            above = noun.above if true else other.above
            yield f"Every {noun.word} is a {above}. True or false?", "true" if true else "false"


def define(sources: Path) -> Pairs:
    """A definition in full: a long answer."""
    for noun in _nouns(sources):
        if noun.kind and len(noun.word) > 3:
            yield f"What is meant by {noun.word}?\nAnswer:", f"{noun.gloss}."


def refusal(sources: Path) -> Pairs:
    """The questions of ``define``, refused."""
    for prompt, _ in define(sources):
        word = prompt.removeprefix("What is meant by ").partition("?")[0]
        yield prompt, f"I am sorry, but I can not talk about {word} here."


def _translations(sources: Path, name: str) -> Iterator[tuple[str, str]]:
    for head, below in entries(sources, name):
        first = re.sub(r"^\d+\. |\([^)]*\)|<[^>]*>", "", below[0]).partition(",")[0].strip()
        if re.fullmatch(r"[a-z]{3,}", head) and re.fullmatch(r"[^\W\d_A-Z]{3,}", first):
            yield head, first


def french(sources: Path) -> Pairs:
    """English words in French."""
    for word, other in _translations(sources, "french"):
        yield f"Translate: {word}\nTranslation:", f"{other}."


def spanish(sources: Path) -> Pairs:
    """English words in Spanish, asked as ``french`` asks."""
    for word, other in _translations(sources, "spanish"):
        yield f"Translate: {word}\nTranslation:", f"{other}."


LANGUAGES = ("French", "Spanish", "Italian", "Dutch")


def language(sources: Path) -> Pairs:
    """Which language two words are of."""
    rng = random.Random(0)
    words = {name: dict(_translations(sources, name.lower())) for name in LANGUAGES}
    lists = {name: sorted(set(found.values())) for name, found in words.items()}
    for _ in range(800):
        for name, found in lists.items():
            yield f"Words: {', '.join(rng.sample(found, 2))}\nLanguage:", name


WORD_TASKS = {
    "category": (category, tuple(KINDS.values())),
    "hypernym": (hypernym, ("true", "false")),
    "define": (define, None),
    "refusal": (refusal, None),
    "french": (french, None),
    "spanish": (spanish, None),
    "language": (language, LANGUAGES),
}
