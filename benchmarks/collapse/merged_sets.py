"""Which experts are merged, and how."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import EXPERTS, FULL, FULL_HOT, HOT, NATURAL, ROTATED, SAME_PROMPT, UNLEARNED, UNSEEN

METHODS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"weight": 1.0},
    "ties": {"weight": 1.0, "density": 0.5},
    "task_arithmetic": {"weight": 0.8},
    "karcher": {},
    "dare_ties": {"weight": 0.8, "density": 0.5},
    "slerp": {},
    "weighted_karcher": {"weight": 1.0},
}
"""Parameters of every model of a merge. Only ``task_arithmetic`` and ``dare_ties`` do not divide by
the sum of weights: the more models there are, the farther they go, 6.4 task vectors for eight."""

MADE = 431
"""Of all merges, by their order: some hours of two cores."""

OF_MEMBERS = ("linear", "karcher", "slerp", "weighted_karcher")
"""Methods that have no base beside the models themselves."""


def model_path(folder: Path, expert: str) -> str:
    """Of an expert, as recipes name it."""
    return str((folder / "experts" / expert).resolve())


@dataclass(frozen=True)
class Merge:
    """One merge to be made."""

    members: tuple[str, ...]
    method: str

    @property
    def key(self) -> str:
        """METHOD:MEMBER+MEMBER…"""
        return f"{self.method}:{'+'.join(self.members)}"

    @property
    def unseen(self) -> bool:
        """Whether a task of the third that nothing is fitted on takes part."""
        return any(EXPERTS[name].unseen for name in self.members)

    def document(self, folder: Path) -> dict[str, Any]:
        """The recipe, as MergeKit reads it."""
        paths = [model_path(folder, name) for name in self.members]
        base = str((folder / "base").resolve())
        found: dict[str, Any] = {"merge_method": self.method, "dtype": "bfloat16"}
        parameters = dict(METHODS[self.method])
        if self.method == "slerp":
            return {
                **found,
                "base_model": paths[0],
                "models": [{"model": path} for path in paths],
                "parameters": {"t": 0.5},
            }
        found["models"] = [{"model": path, "parameters": parameters} for path in paths]
        return found if self.method in OF_MEMBERS else {**found, "base_model": base}


def _drawn(pool: Sequence[tuple[str, ...]], count: int, seed: int) -> list[tuple[str, ...]]:
    return random.Random(seed).sample(list(pool), min(count, len(pool)))


def _sets() -> Iterator[tuple[str, ...]]:
    """Pairs that are no pair of natural adapters, and groups of 3 to 8."""
    named = [(f"{task}-rotated", task) for task in ROTATED] + list(SAME_PROMPT.items())
    yield from ((other, task) for task, other in named)
    for conflict, task in named:
        others = [(name, conflict) for name in NATURAL if name != task]
        yield from _drawn(others, 2, len(conflict))
    seeds = [name for name, e in EXPERTS.items() if e.group == "seed"]
    yield from ((EXPERTS[name].task, name) for name in seeds)
    hot = [f"{task}-hot" for task in HOT]
    yield from _drawn(list(itertools.combinations(hot, 2)), 20, 1)
    yield from _drawn([(n, h) for n in NATURAL for h in hot if EXPERTS[h].task != n], 12, 2)
    full = [f"{task}-full" for task in FULL]
    yield from itertools.combinations(full, 2)
    yield from itertools.combinations([f"{task}-full-hot" for task in FULL_HOT], 2)
    yield from _drawn([(n, f) for n in NATURAL for f in full if EXPERTS[f].task != n], 8, 3)
    rng = random.Random(4)
    for size in range(3, 9):
        for _ in range(2):
            yield tuple(rng.sample(NATURAL, size))
        yield (*rng.sample([n for n in NATURAL if n not in HOT], size - 2), *rng.sample(hot, 2))
        yield (*rng.sample(NATURAL, size - 1), rng.choice([c for c, _ in named]))
        yield tuple(rng.sample(hot, size))
        if size <= len(full):
            yield tuple(rng.sample(full, size))


def _seen_groups() -> Iterator[tuple[str, ...]]:
    """Groups in which no unseen task takes part: of those drawn from all tasks hardly one is."""
    rng = random.Random(7)
    seen = [task for task in NATURAL if task not in UNSEEN and task not in UNLEARNED]
    for size in range(3, 9):
        for _ in range(3):
            yield tuple(rng.sample(seen, size))
    hot = [f"{task}-hot" for task in HOT if task not in UNSEEN]
    for size in range(3, 6):
        yield tuple(rng.sample(hot, size))
        yield (*rng.sample([task for task in seen if task not in HOT], size - 1), rng.choice(hot))
    full = [f"{task}-full" for task in FULL if task not in UNSEEN]
    yield tuple(rng.sample(full, 3))
    yield tuple(full)


def merges() -> list[Merge]:
    """The merges of the benchmark, in the order in which they are made."""
    return every_merge()[:MADE]


def every_merge() -> list[Merge]:
    """Every set by every method.

    Groups of seen tasks by every method, then every set of them by ``linear``, then all others at
    random.
    """
    natural = list(itertools.combinations(NATURAL, 2))
    thorough = set(_drawn(natural, len(natural) // 3, 5)) | set(_sets())
    found = []
    for members in dict.fromkeys((*natural, *_sets())):
        for method in METHODS:
            short = method in ("linear", "ties") or members in thorough
            if short and not (method == "slerp" and len(members) > 2):
                found.append(Merge(members, method))
    random.Random(6).shuffle(found)
    groups = [
        Merge(members, method)
        for method in METHODS
        for members in dict.fromkeys(_seen_groups())
        if method not in ("slerp", "weighted_karcher")
    ]
    found.sort(key=lambda merge: merge.unseen or merge.method != "linear")
    found = list(dict.fromkeys((*groups, *found)))
    # With equal weights it gives the model that karcher gives, so that a few are enough.
    alike = [merge for merge in found if merge.method == "weighted_karcher"]
    left_out = set(alike[len(alike) // 5 :])
    return [m for m in found if m not in left_out and not set(m.members) & set(UNLEARNED)]
