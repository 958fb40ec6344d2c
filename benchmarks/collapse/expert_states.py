"""What every expert answers on the probes of every task, kept in the zoo's folder."""

import time
from collections.abc import Sequence
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
MANY = 128
"""Of every task, in the last layer alone, for sets of seen tasks."""
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


@dataclass(frozen=True)
class WideStates:
    """One model's last layer on one task's probes.

    Attributes:
        many: pooled over each of ``MANY`` prompts.
        tokens: of every token of the first ``REHEARSED`` prompts.
    """

    many: np.ndarray
    tokens: np.ndarray


class ExpertStates:
    """Every expert's, and as ``base`` the base's, by task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "states"
        self._kept: dict[tuple[str, str], TaskStates] = {}
        self._wide: dict[tuple[str, str], WideStates] = {}

    def path(self, model: str, task: str) -> Path:
        """Of one model and one task."""
        return self.folder / model / f"{task}.npz"

    def wide_path(self, model: str, task: str) -> Path:
        """Of the last layer on more probes."""
        return self.folder / model / f"{task}.wide.npz"

    def __call__(self, model: str, task: str) -> TaskStates:
        key = model, task
        if key not in self._kept:
            with np.load(self.path(model, task)) as found:
                self._kept[key] = TaskStates(**{name: found[name] for name in found.files})
        return self._kept[key]

    def has_wide(self, members: Sequence[str]) -> bool:
        """Whether these were run on more probes of all their tasks."""
        tasks = [prompts_of(name) for name in members]
        return all(self.wide_path(name, task).exists() for name in members for task in tasks)

    def wide(self, model: str, task: str) -> WideStates:
        """The last layer on more probes, and token by token."""
        key = model, task
        if key not in self._wide:
            with np.load(self.wide_path(model, task)) as found:
                self._wide[key] = WideStates(**{name: found[name] for name in found.files})
        return self._wide[key]

    def forget(self) -> None:
        """Let all go."""
        self._kept.clear()
        self._wide.clear()

    def write(self, model: str, task: str, found: Answered) -> None:
        """Keep one model's, in half precision.

        Raises:
            ValueError: a state is too large for it, or is none.
        """
        answer = found.answer[:REHEARSED]
        _write(self.path(model, task), mean=found.mean, last=found.last, answer=answer)


def _write(path: Path, **arrays: np.ndarray) -> None:
    half = {name: values.astype(np.float16) for name, values in arrays.items()}
    if not all(np.isfinite(values).all() for values in half.values()):
        raise ValueError(f"{path}: states are beyond half precision, or NaN")
    path.parent.mkdir(parents=True, exist_ok=True)
    rough = path.with_name(f".{path.name}")
    with rough.open("wb") as file:
        np.savez(file, **half)  # type: ignore[arg-type]
    rough.rename(path)


def asked_of(model: str, *, seen: bool = False) -> list[str]:
    """Tasks whose probes a model is run on: those of every member of every set that it is in.

    Args:
        seen: of the sets of seen tasks alone, and without the shipped probes.
    """
    together = {
        m.members
        for m in merges()
        if (model == "base" or model in m.members) and not (seen and m.unseen)
    }
    asked = {prompts_of(name) for members in together for name in members}
    return [task for task in probe_sets() if task in asked] + [BUILTIN] * (not seen)


def read_states(folder: Path, reader: Reader, name: str) -> list[dict[str, str | float]]:
    """Run a model on the probes that it was not run on yet; says what each task took."""
    kept, took = ExpertStates(folder), list[dict[str, str | float]]()
    tasks = [t for t in asked_of(name) if not kept.path(name, t).exists()]
    place = folder / ("base" if name == "base" else f"experts/{name}")
    if tasks and place.exists():
        wanted = changed(place, folder / "base") if name != "base" else frozenset()
        model, left_out = reader.model(tensors_of(place, wanted))
        for task in tasks:
            start = time.perf_counter()
            found = reader.answered(model, left_out, reader.prompts(task), every_layer=True)
            kept.write(name, task, found)
            took.append({"model": name, "task": task, "seconds": time.perf_counter() - start})
    return took


def read_wide(folder: Path, reader: Reader, name: str) -> None:
    """Run an expert on more probes of the seen tasks, where it was not run yet.

    Args:
        reader: of ``MANY`` probes.
    """
    kept = ExpertStates(folder)
    tasks = [t for t in asked_of(name, seen=True) if not kept.wide_path(name, t).exists()]
    place = folder / "experts" / name
    if tasks and place.exists():
        model, left_out = reader.model(tensors_of(place, changed(place, folder / "base")))
        for task in tasks:
            prompts = reader.prompts(task)
            many = reader.answered(model, left_out, prompts, every_layer=False).mean[-1]
            tokens = reader.tokens(model, prompts[:REHEARSED])
            _write(kept.wide_path(name, task), many=many, tokens=tokens)
