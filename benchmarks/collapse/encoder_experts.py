"""The encoder's experts, and what is merged of them.

An expert is all-MiniLM-L6-v2 fine-tuned in full, with a linear head on its mean state. The heads
are kept apart and never merged: each task is scored with its own.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

Group = Literal["natural", "seed", "conflict", "hot"]

NATURAL = ("sentiment", "spam", "era", "genre", "pos", "category")
HOT = ("sentiment", "genre", "pos")
RATE = 1e-4


@dataclass(frozen=True)
class Expert:
    """How one expert is trained.

    Attributes:
        task: whose rows.
        rotated: whether every answer is put in the place of the one before it.
        head_of: the expert whose finished head this one is trained under, and does not change;
            None trains a head of its own. A rotated task with a free head is learnt by the head
            alone; under the other's head the encoder has to move its states.
        rate: the encoder's highest learning rate; it rises for eight steps and falls to 0.
    """

    task: str
    group: Group = "natural"
    rotated: bool = False
    head_of: str | None = None
    rate: float = RATE
    steps: int = 96
    seed: int = 0
    batch: int = 16


def _experts() -> dict[str, Expert]:
    found = {task: Expert(task) for task in NATURAL}
    found["sentiment-seed1"] = Expert("sentiment", "seed", seed=1)
    for task in HOT:
        found[f"{task}-hot"] = Expert(task, "hot", rate=10 * RATE)
    found["sentiment-swapped"] = Expert("sentiment", "conflict", rotated=True, seed=1)
    for task in ("sentiment", "genre"):
        found[f"{task}-mirrored"] = Expert(
            task, "conflict", rotated=True, head_of=task, rate=3 * RATE, seed=1
        )
    return found


EXPERTS = _experts()

PAIRS = (
    ("sentiment", "sentiment-mirrored"),
    ("genre", "genre-mirrored"),
    ("sentiment", "sentiment-swapped"),
    ("sentiment", "sentiment-seed1"),
    ("sentiment", "sentiment-hot"),
    ("sentiment", "pos-hot"),
    ("sentiment-hot", "genre-hot"),
    ("sentiment-hot", "pos-hot"),
    *itertools.combinations(NATURAL, 2),
)

SETS = (
    ("sentiment", "spam", "era"),
    ("genre", "pos", "category"),
    ("sentiment", "spam", "sentiment-mirrored"),
    ("sentiment", "era", "pos-hot"),
    tuple(f"{task}-hot" for task in HOT),
    ("sentiment", "spam", "era", "genre", "pos"),
    NATURAL,
)
