"""What models are asked in order to score them on their tasks, as token ids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import printable, shortened
from mergekit_collapse.probes.probes import Probe, ProbeSet
from mergekit_collapse.probes.tokens import ProbeEncoder, TokenizedProbe

Metric = Literal["accuracy", "likelihood"]


@dataclass(frozen=True)
class ScoredTask:
    """A task that has an owner and targets.

    Attributes:
        task: its index in the probe set.
        owner: index of the expert whose task it is.
    """

    name: str
    task: int
    owner: int
    metric: Metric
    rows: int


@dataclass(frozen=True)
class Ending:
    """One possible answer to one row.

    Attributes:
        sequence: index of the sequence that is read for it.
        tokens: the answer's; all but the last are the sequence's target without its last.
        task: index in the probe set.
        row: number of the row in its task.
        right: whether it is the row's own answer.
    """

    sequence: int
    tokens: tuple[int, ...]
    task: int
    row: int
    right: bool


@dataclass(frozen=True)
class ScoringSet:
    """What to read and what to look up in the answers.

    Attributes:
        sequences: prompt and answer. The last token of an answer is predicted and never
            read, so answers that differ in it alone, one-token choices above all, share one
            sequence; its last token is then that of the first of them.
        endings: every answer that is looked up.
    """

    tasks: tuple[ScoredTask, ...]
    sequences: tuple[TokenizedProbe, ...]
    endings: tuple[Ending, ...]

    def digest(self, task: int) -> str:
        """Of all that the scores of one task (its index in the probe set) depend on."""
        metric = next(t.metric for t in self.tasks if t.task == task)
        asked = [
            (self.sequences[e.sequence].prompt, e.tokens, e.row, e.right)
            for e in self.endings
            if e.task == task
        ]
        return hashlib.sha256(repr((metric, asked)).encode()).hexdigest()


def scoring_set(
    probe_set: ProbeSet,
    choices: Sequence[tuple[str, ...] | None],
    tokenizer: Any,
    max_tokens: int,
    *,
    encoder_decoder: bool,
) -> ScoringSet:
    """Every row of every task that has an owner and targets, with each of the task's choices.

    A choice stands where the target's own words stand, with the target's white space around
    it. The prompt is cut for the longest choice, so that all choices follow the same text.

    Args:
        choices: per task of the probe set, the answers to choose from, or None.
        tokenizer: of the models, as transformers loads it.
        max_tokens: of a sequence, as for the probes themselves.

    Raises:
        InvalidRecipeError: fewer than two choices, a row whose target is not among them, a
            choice without tokens, or one that begins another and so would always beat it.
    """
    encoder = ProbeEncoder(tokenizer, max_tokens, encoder_decoder)
    tasks: list[ScoredTask] = []
    endings: list[Ending] = []
    sequences: list[TokenizedProbe] = []
    place_of: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for index, (task, offered) in enumerate(zip(probe_set.tasks, choices, strict=True)):
        rows = [p for p in probe_set.probes if p.task == index and p.target is not None]
        if task.owner is None or not rows:
            continue
        where = f"probe task {printable(task.name)!r}"
        metric: Metric = "likelihood" if offered is None else "accuracy"
        for number, row in enumerate(rows):
            for probe, right in _answers(row, offered, encoder, where):
                # What is read, which need not be all of what is predicted.
                read = probe.prompt, probe.target[:-1]
                place = place_of.setdefault(read, len(sequences))
                if place == len(sequences):
                    sequences.append(probe)
                endings.append(Ending(place, probe.target, index, number, right))
        tasks.append(ScoredTask(task.name, index, task.owner, metric, len(rows)))
    return ScoringSet(tuple(tasks), tuple(sequences), tuple(endings))


def _answers(
    row: Probe, offered: tuple[str, ...] | None, encoder: ProbeEncoder, where: str
) -> list[tuple[TokenizedProbe, bool]]:
    """The row's possible answers, and which is right."""
    target = row.target or ""
    words = target.strip()
    if offered is None:
        texts, right = [target], 0
    else:
        stripped = [choice.strip() for choice in offered]
        if len(set(stripped)) != len(stripped) or len(stripped) < 2 or "" in stripped:
            raise InvalidRecipeError(
                f"{where}: choices {list(offered)!r} must be at least two different answers,"
                " none of them empty; mend choices: in the compat block"
            )
        if words not in stripped:
            raise InvalidRecipeError(
                f"{where}: the row {_short(row.prompt)} has the target {_short(target)}, which is"
                f" not among the choices {shortened(map(repr, stripped), 8)}; add it to choices:,"
                " or mend target: or the row"
            )
        right = stripped.index(words)
        lead = target[: len(target) - len(target.lstrip())]
        tail = target[len(target.rstrip()) :]
        texts = [f"{lead}{choice}{tail}" for choice in stripped]
    probes = encoder.with_each(row.prompt, texts)
    if not all(probe.prompt and probe.target for probe in probes):
        raise InvalidRecipeError(
            f"{where}: the tokenizer gives no token for the row {_short(row.prompt)} or for one of"
            f" its answers {shortened(map(repr, texts), 8)}; mend or remove it"
        )
    for i, short in enumerate(probes):
        for j, long in enumerate(probes):
            if i != j and long.target[: len(short.target)] == short.target:
                raise InvalidRecipeError(
                    f"{where}: the choice {texts[i]!r} begins the choice {texts[j]!r} in tokens, so"
                    " that the longer one could never be the likelier; reword them, end every"
                    " target and choice with the same mark (such as a full stop), or raise"
                    " probes.max_tokens if they are longer than half of it"
                )
    return [(probe, place == right) for place, probe in enumerate(probes)]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
