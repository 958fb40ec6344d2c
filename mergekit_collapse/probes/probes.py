"""The prompts that models are measured on: shipped ones and the user's own tasks."""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from re import Match
from typing import Any

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.files import FILE_KINDS, read_hub, read_rows
from mergekit_collapse.probes.rounds import MOST, in_rounds
from mergekit_collapse.recipe.schema import BUILTIN_TASK, TEMPLATE_FIELD, ProbesBlock, TaskBlock

BUILTIN_VERSION = "1"
_BUILTIN_FILE = "builtin_probes.jsonl"


@dataclass(frozen=True)
class Probe:
    """One prompt, and the answer that should follow it, where the task gives one."""

    task: int
    prompt: str
    target: str | None


@dataclass(frozen=True)
class ProbeTask:
    """Where some probes come from and which expert they belong to (its index, or None)."""

    name: str
    owner: int | None
    source: str
    rows: int


@dataclass(frozen=True)
class ProbeSet:
    """All probes, and a digest of their texts.

    Attributes:
        probes: task by task, or where there are rounds, round by round.
        rounds: how many probes there are after each round; empty where they come all at once.
    """

    tasks: tuple[ProbeTask, ...]
    probes: tuple[Probe, ...]
    digest: str
    rounds: tuple[int, ...] = ()

    def first(self, rounds: int) -> "ProbeSet":
        """What there is after so many rounds, or after all where there are fewer."""
        if len(self.rounds) <= rounds:
            return self
        probes = self.probes[: self.rounds[rounds - 1]]
        tasks = tuple(
            replace(task, rows=sum(probe.task == index for probe in probes))
            for index, task in enumerate(self.tasks)
        )
        return ProbeSet(tasks, probes, _digest(tasks, probes), self.rounds[:rounds])


def gather_probes(block: ProbesBlock, owners: Sequence[int | None], folder: Path) -> ProbeSet:
    """Draw ``block.samples`` rows from every task, the shipped probes counting as one.

    The same seed draws the same rows, whatever other tasks the block has. A task with fewer
    rows gives all of them; its count in the record says so. Under ``auto`` it is at most 128
    rows, in the rounds of ``probes.rounds``.

    Args:
        block: the ``probes`` part of the block.
        owners: per task of the block, the expert it belongs to.
        folder: what relative paths are relative to.

    Raises:
        EvaluationError: a file or data set is unreadable or empty, or a row lacks a field.
    """
    tasks: list[ProbeTask] = []
    drawn: list[tuple[str, int | None, str, list[tuple[str, str | None]]]] = []
    if block.builtin:
        texts = [(row["text"], None) for row in builtin_rows()]
        chosen = _draw(texts, block, BUILTIN_TASK)
        drawn.append((BUILTIN_TASK, None, f"shipped probes, version {BUILTIN_VERSION}", chosen))
    for task, owner in zip(block.tasks, owners, strict=True):
        drawn.append((task.name, owner, task.data, _draw(_texts(task, folder), block, task.name)))
    for name, expert, source, rows in drawn:
        if not rows:
            raise EvaluationError(
                f"probe task {name!r}: {source} holds no rows; give it some prompts"
            )
        tasks.append(ProbeTask(name, expert, source, len(rows)))
    if block.samples == "auto":
        added = in_rounds([(name, rows) for name, _, _, rows in drawn], block.seed)
    else:
        added = [[(i, row) for i, (_, _, _, rows) in enumerate(drawn) for row in rows]]
    probes = [Probe(i, prompt, target) for one in added for i, (prompt, target) in one]
    ends = tuple(itertools.accumulate(map(len, added))) if block.samples == "auto" else ()
    return ProbeSet(tuple(tasks), tuple(probes), _digest(tasks, probes), ends)


def _digest(tasks: Sequence[ProbeTask], probes: Sequence[Probe]) -> str:
    texts = [[t.name for t in tasks], [[p.task, p.prompt, p.target] for p in probes]]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def builtin_rows() -> list[dict[str, str]]:
    """The shipped probes: mappings with ``id``, ``category``, ``language`` and ``text``."""
    text = resources.files("mergekit_collapse.data").joinpath(_BUILTIN_FILE).read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Replace each ``{field}`` by the row's value; ``{{`` and ``}}`` stand for braces.

    Plain substitution: a field is looked up by its whole name, so ``{a.b}`` and ``{a[0]}``
    reach no attribute or item, and a value that contains braces is not filled again.

    Raises:
        EvaluationError: the row lacks a field, or the value is null or no plain text or number.
    """

    def substitute(match: Match[str]) -> str:
        if match.group(0) in ("{{", "}}"):
            return match.group(0)[0]
        field = match.group(1)
        if field not in row:
            raise EvaluationError(
                f"{where}: no field {field!r} for the template {template!r}; "
                f"the row has {', '.join(map(repr, row)) or 'none'}"
            )
        value = row[field]
        # Tables hold NaN where a cell is missing.
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or not isinstance(value, str | int | float):
            kind = "null" if missing else type(value).__name__
            raise EvaluationError(
                f"{where}: the field {field!r} is {kind}; text or a number is needed"
            )
        text = str(value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise EvaluationError(
                f"{where}: the field {field!r} holds half of a surrogate pair, which is no text; "
                "mend the row"
            )
        return text

    return TEMPLATE_FIELD.sub(substitute, template)


def _draw(
    rows: Iterable[tuple[str, str | None]], block: ProbesBlock, name: str
) -> list[tuple[str, str | None]]:
    """A uniform sample without replacement in one pass (Vitter's algorithm R), in file order."""
    rng = random.Random(f"{block.seed}:{name}")
    samples = MOST if block.samples == "auto" else block.samples
    kept: list[tuple[int, tuple[str, str | None]]] = []
    for index, row in enumerate(rows):
        if index < samples:
            kept.append((index, row))
        elif (slot := rng.randrange(index + 1)) < samples:
            kept[slot] = (index, row)
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def _texts(task: TaskBlock, folder: Path) -> Iterator[tuple[str, str | None]]:
    """Each row's prompt and target; every row is checked, not only those that are drawn."""
    path = folder / task.data
    is_file = path.suffix.lower() in FILE_KINDS
    rows = (
        read_rows(path, task.name) if is_file else read_hub(task.data, task.split, task.name, path)
    )
    for where, row in rows:
        prompt = fill(task.text, row, where)
        if not prompt.strip():
            raise EvaluationError(f"{where}: the prompt is empty; remove the row or mend text:")
        target = fill(task.target, row, where) if task.target is not None else None
        if target is not None and not target.strip():
            raise EvaluationError(f"{where}: the target is empty; remove the row or mend target:")
        yield prompt, target
