"""The prompts that models are measured on: shipped ones and the user's own tasks."""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from re import Match
from typing import Any

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.files import FILE_KINDS, read_hub, read_rows
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
    """All probes, task by task, and a digest of their texts."""

    tasks: tuple[ProbeTask, ...]
    probes: tuple[Probe, ...]
    digest: str


def gather_probes(block: ProbesBlock, owners: Sequence[int | None], folder: Path) -> ProbeSet:
    """Draw ``block.samples`` rows from every task, the shipped probes counting as one.

    The same seed draws the same rows, whatever other tasks the block has. A task with fewer
    rows gives all of them; its count in the record says so.

    Args:
        block: the ``probes`` part of the block.
        owners: per task of the block, the expert it belongs to.
        folder: what relative paths are relative to.

    Raises:
        EvaluationError: a file or data set is unreadable or empty, or a row lacks a field.
    """
    tasks: list[ProbeTask] = []
    probes: list[Probe] = []
    drawn: list[tuple[str, int | None, str, list[tuple[str, str | None]]]] = []
    if block.builtin:
        texts = [(row["text"], None) for row in builtin_rows()]
        chosen = _draw(texts, block, BUILTIN_TASK)
        drawn.append((BUILTIN_TASK, None, f"shipped probes, version {BUILTIN_VERSION}", chosen))
    for task, owner in zip(block.tasks, owners, strict=True):
        drawn.append((task.name, owner, task.data, _draw(_texts(task, folder), block, task.name)))
    for index, (name, expert, source, rows) in enumerate(drawn):
        if not rows:
            raise EvaluationError(
                f"probe task {name!r}: {source} holds no rows; give it some prompts"
            )
        tasks.append(ProbeTask(name, expert, source, len(rows)))
        probes.extend(Probe(index, prompt, target) for prompt, target in rows)
    digest = hashlib.sha256(
        json.dumps(
            [[t.name for t in tasks], [[p.task, p.prompt, p.target] for p in probes]]
        ).encode()
    )
    return ProbeSet(tuple(tasks), tuple(probes), digest.hexdigest())


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
    kept: list[tuple[int, tuple[str, str | None]]] = []
    for index, row in enumerate(rows):
        if index < block.samples:
            kept.append((index, row))
        elif (slot := rng.randrange(index + 1)) < block.samples:
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
