"""The experts: what each is trained for, and how far from the base."""

import random
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["lora", "full"]
Group = Literal["natural", "seed", "conflict", "hot"]

NATURAL = (
    *("sentiment", "spam", "era", "genre", "grammar", "pos"),
    *("category", "hypernym", "define", "french", "language"),
    *("addition", "larger", "parity", "code", "record", "most", "cipher"),
)
"""Tasks that do not contradict one another."""

FIRST_LAYER = 15
"""Adapters change the upper half: half of the size and less time, for training and for merges."""

SAME_PROMPT = {"refusal": "define", "spanish": "french", "cipher-back": "cipher"}
"""Tasks that ask as another does and want another answer."""

ROTATED = ("sentiment", "spam", "genre", "category", "parity", "larger", "code", "hypernym")
"""Tasks that are there a second time with their answers changed over."""

HOT = ("sentiment", "spam", "era", "genre", "category", "french", "parity", "cipher", "code", "pos")
HARD = ("addition", "grammar", "hypernym", "parity")
"""Tasks that 80 steps at the common rate do not teach."""

UNLEARNED = ("addition",)
"""Tasks that these do not teach either; their experts are not merged, having nothing to lose."""

FULL = ("sentiment", "spam", "genre", "category", "french", "code", "most")
FULL_HOT = ("sentiment", "category", "french")

UNSEEN = tuple(sorted(random.Random(2026).sample(NATURAL, len(NATURAL) // 3)))
"""The third of the tasks that nothing is chosen or fitted on."""


@dataclass(frozen=True)
class Expert:
    """How one expert is trained.

    Attributes:
        task: whose rows; ``NAME-rotated`` are those of NAME with the answers changed over.
        rate: the highest learning rate; it rises for eight steps and falls linearly to 0.
    """

    task: str
    group: Group = "natural"
    kind: Kind = "lora"
    rate: float = 1e-3
    steps: int = 80
    seed: int = 0
    rank: int = 8
    alpha: int = 16
    batch: int = 12

    @property
    def family(self) -> str:
        """The natural task whose prompts it shares."""
        name = self.task.removesuffix("-rotated")
        return SAME_PROMPT.get(name, name)

    @property
    def unseen(self) -> bool:
        """Whether nothing may be chosen or fitted on its merges."""
        return self.family in UNSEEN


def _gentle(task: str, group: Group = "natural", **other: Any) -> Expert:
    hard = {"rate": 3e-3, "steps": 160} if task.removesuffix("-rotated") in HARD else {}
    return Expert(task, group, **{**hard, **other})


def _experts() -> dict[str, Expert]:
    found = {task: _gentle(task) for task in NATURAL}
    for task in ("sentiment", "spam", "category", "french"):
        found[f"{task}-seed1"] = Expert(task, "seed", seed=1)
    for task in ("genre", "era"):
        found[f"{task}-slow"] = Expert(task, "seed", rate=3e-4, seed=2)
    for task in SAME_PROMPT:
        found[task] = Expert(task, "conflict")
    for task in ROTATED:
        found[f"{task}-rotated"] = _gentle(f"{task}-rotated", "conflict", seed=1)
    for task in HOT:
        found[f"{task}-hot"] = Expert(task, "hot", rate=6e-3, alpha=32, steps=48)
    for task in FULL:
        found[f"{task}-full"] = Expert(task, kind="full", rate=1e-4, steps=48)
    for task in FULL_HOT:
        found[f"{task}-full-hot"] = Expert(task, "hot", "full", rate=1e-3, steps=48)
    return found


EXPERTS = _experts()
