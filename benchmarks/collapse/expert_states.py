"""What every expert answers on the probes of every task, kept in the zoo's folder."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from merged_sets import merges
from merging import changed, tensors_of
from reading import Answered, Reader
from zoo import EXPERTS, NATURAL, SAME_PROMPT

PROBES = 64
"""Of every task."""
REHEARSED = 32
"""Of every task, that merged models are held against; distributions are kept of these alone."""
BUILTIN = "builtin"


def probe_sets() -> tuple[str, ...]:
    """Tasks with prompts of their own; those that only ask for another answer have none."""
    return (*NATURAL, *SAME_PROMPT)


def prompts_of(expert: str) -> str:
    """Whose prompts an expert's task asks."""
    return EXPERTS[expert].task.removesuffix("-rotated")


@dataclass(frozen=True)
class TaskStates:
    """One model on one task's probes.

    Attributes:
        mean, last: per layer, pooled over the prompt, or the last token's.
        answer: square roots of next-token probabilities, of the first probes.
    """

    mean: np.ndarray
    last: np.ndarray
    answer: np.ndarray


class ExpertStates:
    """Every expert's, and as ``base`` the base's, by task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "states"
        self._kept: dict[tuple[str, str], TaskStates] = {}

    def path(self, model: str, task: str) -> Path:
        """Of one model and one task."""
        return self.folder / model / f"{task}.npz"

    def __call__(self, model: str, task: str) -> TaskStates:
        key = model, task
        if key not in self._kept:
            with np.load(self.path(model, task)) as found:
                self._kept[key] = TaskStates(**{name: found[name] for name in found.files})
        return self._kept[key]

    def forget(self) -> None:
        """Let all go."""
        self._kept.clear()

    def write(self, model: str, task: str, found: Answered) -> None:
        """Keep one model's, in half precision.

        Raises:
            ValueError: a state is too large for it, or is none.
        """
        path = self.path(model, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        for values in (found.mean, found.last, found.answer):
            if not np.isfinite(values.astype(np.float16)).all():
                raise ValueError(f"{model} on {task}: states are beyond half precision, or NaN")
        rough = path.with_name(f".{path.name}")
        with rough.open("wb") as file:
            np.savez(
                file,
                mean=found.mean.astype(np.float16),
                last=found.last.astype(np.float16),
                answer=found.answer[:REHEARSED].astype(np.float16),
            )
        rough.rename(path)


def asked_of(model: str) -> list[str]:
    """Tasks whose probes a model is run on: those of every member of every set that it is in."""
    together = {m.members for m in merges() if model == "base" or model in m.members}
    asked = {prompts_of(name) for members in together for name in members}
    return [task for task in probe_sets() if task in asked] + [BUILTIN]


def read_states(
    folder: Path, reader: Reader, models: Sequence[str]
) -> Iterator[dict[str, str | float]]:
    """Run models on the probes that they were not run on yet; says what each took."""
    kept = ExpertStates(folder)
    for name in models:
        tasks = [t for t in asked_of(name) if not kept.path(name, t).exists()]
        place = folder / ("base" if name == "base" else f"experts/{name}")
        if not tasks or not place.exists():
            continue
        wanted = changed(place, folder / "base") if name != "base" else frozenset()
        model, left_out = reader.model(tensors_of(place, wanted))
        for task in tasks:
            start = time.perf_counter()
            prompts = reader.prompts(task)
            found = reader.answered(model, left_out, prompts, every_layer=True)
            kept.write(name, task, found)
            yield {"model": name, "task": task, "seconds": time.perf_counter() - start}
