"""Tasks on sentences that people wrote: reviews, mail, speeches, the Brown corpus."""

import io
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sources import path

# Nothing that a stranger would not want to read at work.
UNSHOWN = re.compile(
    r"sex|porn|xxx|penis|viagra|teen|nude|adult|fuck|erect|horny|slut|babe|viril|lolita|tits", re.I
)
Pairs = Iterator[tuple[str, str]]


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _fits(text: str, least: int, most: int) -> bool:
    return text.isascii() and least <= len(text.split()) <= most and not UNSHOWN.search(text)


def _members(archive: tarfile.TarFile, ending: str = ".txt") -> Iterator[tuple[str, bytes]]:
    for member in sorted(archive.getmembers(), key=lambda m: m.name):
        file = archive.extractfile(member) if member.name.endswith(ending) else None
        if file is not None:
            yield member.name, file.read()


def sentiment(sources: Path) -> Pairs:
    """Sentences of film and product reviews that people scored beyond 1.2 on a scale to 4."""
    with zipfile.ZipFile(path(sources, "reviews")) as outer:
        inner = outer.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        files = dict(_members(archive))
    for kind in ("movieReview", "amazonReview"):
        table = files[f"hutto_ICWSM_2014/{kind}Snippets_GroundTruth.txt"]
        for line in table.decode(errors="replace").splitlines():
            _, mean, text = line.split("\t", 2)
            text = _clean(text).replace("''", '"').strip('"')
            if abs(float(mean)) >= 1.2 and _fits(text, 5, 24):
                yield f"Review: {text}\nSentiment:", "positive" if float(mean) > 0 else "negative"


def spam(sources: Path) -> Pairs:
    """Subject lines of wanted and unwanted mail, without list tags and reply marks."""
    marks = re.compile(r"^((re|fw|fwd|aw): *|\[[^\]]*\] *)+", re.I)
    with tarfile.open(path(sources, "mail")) as archive:
        for name, data in _members(archive):
            found = re.search(r"^Subject: *(.*)$", data.decode("latin-1"), re.MULTILINE)
            text = _clean(marks.sub("", found[1].strip())) if found else ""
            if _fits(text, 3, 16) and "=?" not in text:
                yield f"Subject: {text}\nMail:", "spam" if "/spam-" in name else "personal"


def era(sources: Path) -> Pairs:
    """Sentences of State of the Union addresses, to 1860 or from 1960."""
    with tarfile.open(path(sources, "speeches")) as archive:
        for name, data in _members(archive):
            year = re.search(r"/speeches/(\d{4})-", name)
            if year and not 1860 < int(year[1]) < 1960:
                for text in re.split(r"(?<=[.!?])\s+", _clean(data.decode(errors="replace"))):
                    if _fits(text, 8, 20):
                        yield f"Speech: {text}\nEra:", "old" if int(year[1]) <= 1860 else "modern"


def _brown(sources: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Sentences of the Brown corpus: letter of the category, words with their tags."""
    with tarfile.open(path(sources, "brown")) as archive:
        for name, data in _members(archive, ""):
            file = name.rpartition("/")[2]
            if re.fullmatch(r"c[a-r]\d\d", file):
                for line in data.decode("latin-1").splitlines():
                    words = [tuple(w.rsplit("/", 1)) for w in line.split() if "/" in w]
                    if words and all(len(w) == 2 for w in words):
                        yield file[1], words  # type: ignore[misc]


def _sentence(words: list[tuple[str, str]]) -> str:
    text = " ".join(word for word, _ in words).replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([.,;:!?])", r"\1", text)


GENRES = {"a": "news", "d": "religion", "j": "science", "n": "adventure", "p": "romance"}


def genre(sources: Path) -> Pairs:
    """Sentences of four kinds of text; adventure and romance are one kind, fiction."""
    for letter, words in _brown(sources):
        if letter in GENRES and _fits(text := _sentence(words), 9, 20):
            kind = "fiction" if letter in "np" else GENRES[letter]
            yield f"Passage: {text}\nKind:", kind


def grammar(sources: Path) -> Pairs:
    """Sentences as written, or with two inner neighbours changed over."""
    rng = random.Random(0)
    for _, words in _brown(sources):
        if not _fits(_sentence(words), 7, 15):
            continue
        if rng.random() < 0.5:
            yield f"Sentence: {_sentence(words)}\nWord order:", "right"
            continue
        at = rng.randrange(1, len(words) - 3)
        moved = [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
        yield f"Sentence: {_sentence(moved)}\nWord order:", "wrong"


CLASSES = {"noun": "nn nns", "verb": "vb vbd vbz vbg", "adjective": "jj", "adverb": "rb"}


def pos(sources: Path) -> Pairs:
    """The part of speech of a word in its sentence."""
    kinds = {tag: kind for kind, tags in CLASSES.items() for tag in tags.split()}
    rng = random.Random(0)
    for _, words in _brown(sources):
        fit = [(w, kinds[t]) for w, t in words if t in kinds and w.isalpha() and len(w) > 3]
        if fit and _fits(text := _sentence(words), 6, 14):
            word, kind = rng.choice(fit)
            yield f"{text}\nWord: {word}\nClass:", kind


TEXT_TASKS = {
    "sentiment": (sentiment, ("negative", "positive")),
    "spam": (spam, ("personal", "spam")),
    "era": (era, ("old", "modern")),
    "genre": (genre, ("news", "religion", "science", "fiction")),
    "grammar": (grammar, ("right", "wrong")),
    "pos": (pos, tuple(CLASSES)),
}
