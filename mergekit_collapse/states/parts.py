"""Models that are to be run, dealt out in parts to other processes, and one part run there."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from mergekit.common import ModelPath, ModelReference

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, each_model
from mergekit_collapse.states.missing_states import MissingStates
from mergekit_collapse.states.model_identity import conditions
from mergekit_collapse.states.model_states import ModelStates
from mergekit_collapse.states.run_models import ANY_ROOM, LAYERED, WHOLE, Run, run_models
from mergekit_collapse.states.state_store import StateStore
from mergekit_collapse.states.streaming import Asked, Beside, Extra

# Of one part, so that no more are lost with its process.
_MOST = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What is the same for every part.

    Attributes:
        trial: its outcome known; None to have every model whole in memory.
        threads: of torch, since sums are rounded by how they are divided.
        conditions: what the numbers depend on, where the parts are dealt out.
        folders: of models, which must be found by the same names.
        store: of earlier results, used where its folder is.
        together: how many models run at a time, at most.
    """

    probes: TokenizedProbes
    options: LoadOptions
    trial: LayeredTrial | None
    threads: int
    conditions: tuple[object, ...]
    folders: frozenset[str]
    store: StateStore
    together: int


@dataclass(frozen=True)
class Part:
    """Models that run together, and what else each of them is run for, by its index."""

    models: tuple[Asked, ...]
    extras: Mapping[int, Extra]

    @property
    def names(self) -> str:
        """The models, for messages."""
        return ", ".join(one.name for one in self.models)


@dataclass(frozen=True)
class PartStates:
    """What a part's models answered, by their indices; ``reasons`` as of ``run_models``."""

    states: Mapping[int, ModelStates]
    reasons: Mapping[int, str]
    extras: Mapping[int, Extra]


def prepare(run: Run, store: StateStore) -> Work:
    """What all parts need, for models with ``absolute`` names; one model is tried here if need be.

    Raises:
        EvaluationError: a model's files are not there, or cannot be read.
    """
    options, trial = run.options, run.trial
    paths = {path.path for one in run.models for path in _paths(one.reference)}
    cache = options.cache_dir and os.path.abspath(options.cache_dir)
    if trial is not None:
        trial.settle(one.reference for one in run.models)
    work = Work(
        probes=run.probes,
        options=options,
        trial=trial,
        threads=torch.get_num_threads(),
        conditions=conditions(options),
        folders=frozenset(path for path in paths if Path(path).is_dir()),
        store=store,
        together=run.room.together,
    )
    return on_device(work, replace(options, cache_dir=cache, progress=False))


def on_device(work: Work, options: LoadOptions) -> Work:
    """The same for another device."""
    trial = work.trial.elsewhere(options) if work.trial is not None else None
    return replace(work, options=options, trial=trial)


def absolute(models: Sequence[Asked]) -> list[Asked]:
    """The same models, their folders named so that any working directory will do."""
    return [replace(one, reference=_absolute(one.reference)) for one in models]


def deal(models: Sequence[Asked], places: int, beside: Beside | None = None) -> list[Part]:
    """Parts for so many processes, those with the most models first.

    A base and its adapters stay together as far as all processes have something to do, since
    the base is read once for each part.
    """
    groups: dict[ModelReference, list[Asked]] = {}
    for one in models:
        groups.setdefault(one.base, []).append(one)
    most = min(_MOST, -(-len(models) // places))
    parts = [part for group in groups.values() for part in evenly(group, most)]
    return [Part(part, _extras(part, beside)) for part in sorted(parts, key=len, reverse=True)]


def evenly(items: Sequence[T], most: int) -> list[tuple[T, ...]]:
    """As few runs of at most ``most`` items as there can be, whose lengths differ by 1 at most."""
    count = -(-len(items) // most)
    ends = [len(items) * i // count for i in range(count + 1)]
    return [tuple(items[a:b]) for a, b in pairwise(ends)]


def run_part(part: Part, work: Work) -> PartStates:
    """Run one part in this process, or find its states in the store.

    Raises:
        EvaluationError: as ``run_models``; numbers would be others here than where the parts
            were dealt out, or a model is not here.
    """
    _require_alike(work)
    states: dict[int, ModelStates] = {}
    missing = MissingStates(
        part.models,
        work.probes,
        work.options,
        store=work.store.where_it_is(),
        engine=WHOLE if work.trial is None else LAYERED,
        take=states.__setitem__,
    )
    missing.find()
    beside = _Extras(part.extras)
    reasons = run_models(
        Run(
            models=missing.asked(),
            probes=work.probes,
            options=work.options,
            trial=work.trial,
            beside=beside,
            each=each_model,
            # Parts are no larger than their models were when the room was found.
            room=replace(ANY_ROOM, together=work.together),
            put=missing.put,
        )
    )
    return PartStates(states, reasons, beside.done)


class _Extras:
    """What else a part's models are run for, handed back with their states.

    A model that is whole in memory is not asked: it stays due where the parts were dealt out.
    """

    def __init__(self, extras: Mapping[int, Extra]) -> None:
        self._extras = extras
        self.done: dict[int, Extra] = {}

    def due(self, index: int) -> Extra | None:
        return self._extras.get(index)

    def settle(self, index: int, extra: Extra) -> None:
        self.done[index] = extra

    def visit(self, index: int, model: Any) -> None:
        pass


def _extras(models: Sequence[Asked], beside: Beside | None) -> dict[int, Extra]:
    if beside is None:
        return {}
    due = ((one.index, beside.due(one.index)) for one in models)
    return {index: extra for index, extra in due if extra is not None}


def _require_alike(work: Work) -> None:
    torch.set_num_threads(work.threads)
    here = platform.node() or "another machine"
    for folder in sorted(work.folders):
        if not Path(folder).is_dir():
            raise EvaluationError(
                f"{here}: there is no folder {folder}, which is on the machine that asks for it; "
                "put the models where every node finds them by the same path, such as on a "
                "shared file system"
            )
    pairs = zip_longest(conditions(work.options), work.conditions)
    if differing := [f"{str(a)[:40]} and not {str(b)[:40]}" for a, b in pairs if a != b]:
        raise EvaluationError(
            f"{here}: would give other numbers than the machine that asks for them: it has "
            f"{', '.join(differing)}; use machines with the same kind of processor or GPU and the "
            "same versions of Python packages"
        )


def _paths(reference: ModelReference) -> Iterator[ModelPath]:
    yield reference.model
    if reference.lora is not None:
        yield reference.lora


def _absolute(reference: ModelReference) -> ModelReference:
    def placed(path: ModelPath | None) -> ModelPath | None:
        # What is no folder is a name on the Hub.
        if path is None or not Path(path.path).is_dir():
            return path
        return path.model_copy(update={"path": os.path.abspath(path.path)})

    update = {"model": placed(reference.model), "lora": placed(reference.lora)}
    return reference.model_copy(update=update)
