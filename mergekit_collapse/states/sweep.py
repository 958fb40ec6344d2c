"""Several models of one shape run together, a layer at a time, what they share only once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch

from mergekit_collapse.states.ahead import Ahead
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.forward import Outputs
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.lora_update import LoraAdapter
from mergekit_collapse.states.stage_reader import stage_reader
from mergekit_collapse.states.stage_tensors import StagedFiles, adapted, common_starts


@runtime_checkable
class Reader(Protocol):
    """Takes what one model gives for its batches, which come in any order."""

    def hidden(self, layer: int, batch: Batch, states: torch.Tensor) -> None:
        """States after a layer, from 0 (the embeddings) to L (after the final norm)."""

    def answers(self, batch: Batch, outputs: Outputs) -> None:
        """What the head gives, where it was run."""


@dataclass(frozen=True)
class Member:
    """One model of a sweep.

    Attributes:
        where: which model, the beginning of every message.
        files: of its base.
        adapter: what is merged into the base.
        readers: of each of its batches; a batch that several members have is the same object.
    """

    where: str
    files: StagedFiles
    adapter: LoraAdapter | None
    readers: Sequence[tuple[Batch, Reader]]


@dataclass
class _Branch:
    """Members that have been the same so far."""

    model: LayeredModel
    members: list[int]


class Sweep:
    """Runs its members through all stages.

    At every stage the branches of equal members split where their weights differ. A stage that
    several branches share is read once, a branch is run once. Beside two stages' weights (three
    with adapters) the states of one layer are held, for each branch and each of its batches.

    Args:
        model: of the members' shape, with the batches of all of them.
        batches: the same that the model was made with.
    """

    def __init__(
        self,
        model: LayeredModel,
        batches: Sequence[Batch],
        members: Sequence[Member],
        options: LoadOptions,
    ) -> None:
        self._members, self._batches = members, batches
        self._device = torch.device(options.device)
        numbers = {id(batch): number for number, batch in enumerate(batches)}
        self._readers = [{numbers[id(b)]: reader for b, reader in m.readers} for m in members]
        self._branches = [_Branch(model, list(range(len(members))))]
        self._depth = model.depth
        self._reader = stage_reader(options.device)
        files = list({id(m.files): m.files for m in members}.values())
        starts = common_starts(files)
        place = {id(f): i for i, f in enumerate(files)}
        self._files, self._starts = files, [starts[place[id(m.files)]] for m in members]

    def run(self, told: Callable[[], object] = lambda: None) -> None:
        """Hand every reader what its model gives.

        Args:
            told: called after every stage.

        Raises:
            EvaluationError: a model cannot be read or run.
        """
        stages = range(self._depth + 2)
        with Ahead(job for stage in stages for job in self._jobs(stage)) as loaded:
            for stage in stages:
                self._split(stage)
                for source in self._sources(stage):
                    tensors = loaded.take()
                    for branch in self._branches:
                        if self._starts[branch.members[0]][stage] == source:
                            self._run(branch, stage, tensors)
                    del tensors
                told()

    def _jobs(self, stage: int) -> Iterator[Callable[[], dict[str, torch.Tensor]]]:
        """What reads a stage, for each of the different ones."""
        for source in self._sources(stage):
            of_it = (
                m for m, s in zip(self._members, self._starts, strict=True) if s[stage] == source
            )
            # An adapter is added before anything is rounded.
            whole = all(_adapter_at(member, stage) is None for member in of_it)
            yield partial(self._load, self._files[source], stage, self._branches[0].model, whole)

    def _load(
        self, files: StagedFiles, stage: int, model: LayeredModel, rounded: bool
    ) -> dict[str, torch.Tensor]:
        return self._reader.load(files, stage, model.prepared if rounded else dict)

    def _sources(self, stage: int) -> list[int]:
        return sorted({starts[stage] for starts in self._starts})

    def _split(self, stage: int) -> None:
        """Part what is equal no longer."""
        for branch in list(self._branches):
            parts: dict[tuple[int, int], list[int]] = {}
            for index in branch.members:
                adapter = _adapter_at(self._members[index], stage)
                parts.setdefault((self._starts[index][stage], id(adapter)), []).append(index)
            first, *others = parts.values()
            for part in others:
                model = branch.model.branch(self._members[part[0]].where, self._wanted(part))
                self._branches.append(_Branch(model, part))
            branch.members = first
            branch.model.keep(self._wanted(first))

    def _wanted(self, members: Sequence[int]) -> set[int]:
        return {number for index in members for number in self._readers[index]}

    def _run(self, branch: _Branch, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        adapter = _adapter_at(self._members[branch.members[0]], stage)
        weights = tensors if adapter is None else adapted(tensors, adapter, self._device)
        if stage > self._depth:
            for number, outputs in branch.model.head(weights):
                for reader in self._readers_of(branch, number):
                    reader.hidden(self._depth, self._batches[number], outputs.hidden[0])
                    reader.answers(self._batches[number], outputs)
            return
        given = branch.model.layer(stage, weights) if stage else branch.model.embed(weights)
        for number, states in given:
            # The last layer's are read after the norm.
            for reader in self._readers_of(branch, number) if stage < self._depth else ():
                reader.hidden(stage, self._batches[number], states)

    def _readers_of(self, branch: _Branch, number: int) -> list[Reader]:
        readers = (self._readers[index].get(number) for index in branch.members)
        return [reader for reader in readers if reader is not None]


def _adapter_at(member: Member, stage: int) -> LoraAdapter | None:
    """The member's adapter, where it changes anything in this stage."""
    if member.adapter is None or member.adapter.changed.isdisjoint(member.files.stages[stage]):
        return None
    return member.adapter
