"""Rows of a task, and how they are divided."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Part = Literal["train", "probes", "held_out"]

HELD_OUT = 208
"""Rows that outcomes are measured on."""
PROBES = 128
"""Rows that signals are measured on; no expert is trained on them, no outcome measured."""
TRAIN = 1400


@dataclass(frozen=True)
class Row:
    """One question: the model reads ``prompt``, then a space and ``answer`` is right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """Rows that no two parts share.

    Attributes:
        choices: the answers, for accuracy by likelihood; None scores the likelihood itself.
    """

    name: str
    choices: tuple[str, ...] | None
    train: tuple[Row, ...]
    probes: tuple[Row, ...]
    held_out: tuple[Row, ...]


def divide(name: str, choices: tuple[str, ...] | None, rows: Iterable[tuple[str, str]]) -> Task:
    """Rows shuffled, seeded by the name: every prompt once, every choice as often as others."""
    unique = [Row(prompt, answer) for prompt, answer in dict(rows).items()]
    shuffle = random.Random(name).shuffle
    shuffle(unique)
    groups = [[r for r in unique if r.answer == c] for c in choices] if choices else [unique]
    least = min(len(group) for group in groups)
    count = len(groups)
    if least * count < HELD_OUT + PROBES + 300:
        raise ValueError(f"task {name}: {[len(g) for g in groups]} rows are too few")
    parts: dict[str, tuple[Row, ...]] = {}
    start = 0
    for part, wanted in (("held_out", HELD_OUT), ("probes", PROBES), ("train", TRAIN)):
        end = min(start + -(-wanted // count), least)
        cut = [g[start:end] for g in groups]
        # Alternating, so that the first rows are balanced as well.
        parts[part] = tuple(r for same in zip(*cut, strict=True) for r in same)
        start = end
    return Task(name, choices, **parts)


def write(task: Task, folder: Path) -> None:
    """Write a task's parts to ``folder``/NAME."""
    place = folder / task.name
    place.mkdir(parents=True, exist_ok=True)
    for part in ("train", "probes", "held_out"):
        lines = [json.dumps(asdict(row), ensure_ascii=False) for row in getattr(task, part)]
        (place / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder: Path, task: str, part: Part) -> list[Row]:
    """The rows that ``write`` wrote."""
    lines = (folder / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]
