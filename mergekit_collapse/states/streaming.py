"""All probes through many models, whose layers are read one at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from mergekit.common import ModelReference
from tqdm import tqdm

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import printable
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.batching import Batch, make_batches
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.forward import Outputs
from mergekit_collapse.states.layered_files import LayeredFiles
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, bare
from mergekit_collapse.states.lora_update import LoraAdapter
from mergekit_collapse.states.model_states import (
    NOT_ASKED,
    ModelRecorder,
    ModelRequest,
    ModelStates,
    no_head,
    require_known_tokens,
)
from mergekit_collapse.states.profiles import LayerProfile
from mergekit_collapse.states.sweep import Member, Reader, Sweep


@runtime_checkable
class Extra(Protocol):
    """Further sequences that one model is to answer."""

    def batches(self, *, decoder_start: int | None, max_tokens: int) -> list[Batch]:
        """All of them."""

    def add(self, batch: Batch, outputs: Outputs) -> None:
        """What the model answers to one batch."""


@runtime_checkable
class Beside(Protocol):
    """What else models are run for while they are at hand."""

    def due(self, index: int) -> Extra | None:
        """What the model of that number is still to answer."""

    def settle(self, index: int, extra: Extra) -> None:
        """Every batch was added."""

    def visit(self, index: int, model: Any) -> None:
        """The same for a model that is whole in memory."""


@dataclass(frozen=True)
class Asked:
    """One model, and what is wanted of it.

    Attributes:
        index: its number among all models.
        name: what to call it in messages.
    """

    index: int
    name: str
    reference: ModelReference
    request: ModelRequest

    @property
    def base(self) -> ModelReference:
        """The model without its adapter."""
        return bare(self.reference)


_Ready = tuple[Asked, LayeredFiles, LoraAdapter | None]


def stream(
    models: Sequence[Asked],
    probes: TokenizedProbes,
    options: LoadOptions,
    trial: LayeredTrial,
    *,
    beside: Beside | None,
    together: int,
    may_be_whole: Callable[[Mapping[int, str]], None],
    put: Callable[[Asked, ModelStates], None],
) -> Mapping[int, str]:
    """Run what can be run layer by layer.

    Models whose first layers are the same, adapters of one base above all, run together.

    Args:
        trial: whether layers may be run apart.
        together: how many models run at a time, at most.
        may_be_whole: called with what is returned, before any model is run.
        put: called with each model's states when they are complete.

    Returns:
        For each other model why it has to be whole, to follow "because".

    Raises:
        EvaluationError: a model cannot be read or run, or answers NaN or infinity.
    """
    whole: dict[int, str] = {}
    ready: list[_Ready] = []
    opened: dict[ModelReference, LayeredFiles | str] = {}
    for asked in models:
        if asked.base not in opened:
            opened[asked.base] = _open(asked.base, trial)
        files = opened[asked.base]
        if isinstance(files, str):
            whole[asked.index] = files
            continue
        try:
            lora = asked.reference.lora
            ready.append((asked, files, None if lora is None else files.adapter(lora)))
        except EvaluationError as error:
            # PEFT knows more kinds, and says what is wrong with a broken one.
            whole[asked.index] = str(error)
    may_be_whole(whole)
    for group in _together(ready):
        for start in range(0, len(group), together):
            _run(group[start : start + together], probes, options, beside, put)
    return whole


def _open(base: ModelReference, trial: LayeredTrial) -> LayeredFiles | str:
    try:
        return trial.open(base)
    except NotLayeredError as error:
        return str(error)


def _together(ready: Sequence[_Ready]) -> list[list[_Ready]]:
    """Those that share at least embeddings and first layer."""
    groups: list[list[_Ready]] = []
    for one in ready:
        alike = (group for group in groups if one[1].starts_like(group[0][1], surely=True))
        group = next(alike, None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return groups


def _run(
    part: list[_Ready],
    probes: TokenizedProbes,
    options: LoadOptions,
    beside: Beside | None,
    put: Callable[[Asked, ModelStates], None],
) -> None:
    asked, files = [one[0] for one in part], part[0][1]
    request = asked[0].request
    reason = no_head(files.model) if request.predictive else NOT_ASKED
    batches = make_batches(
        probes.probes,
        answers=reason is None,
        decoder_start=None,
        max_tokens=request.max_tokens,
        side=request.side,
    )
    every, members, readers = list(batches), [], []
    extras: dict[int, Extra] = {}
    for one, its_files, adapter in part:
        require_known_tokens(one.name, files.model, probes)
        reader = _ModelReader(one, probes, batches, reason)
        readers.append(reader)
        pairs: list[tuple[Batch, Reader]] = [(batch, reader) for batch in batches]
        extra = beside.due(one.index) if beside is not None and files.head else None
        if extra is not None:
            extras[one.index] = extra
            further = extra.batches(decoder_start=None, max_tokens=request.max_tokens)
            pairs += [(batch, _ExtraReader(extra)) for batch in further]
            every += further
        members.append(Member(f"model {one.name}", its_files.staged, adapter, pairs))
    names = asked[0].name if len(asked) == 1 else f"{len(asked)} models"
    stages, hide = len(files.staged.stages), not options.progress
    mend = "check that the model runs in transformers by itself"
    with (
        told_as_evaluation_error(f"model {', '.join(one.name for one in asked)}", mend),
        tqdm(total=stages, desc=printable(names), unit="layer", disable=hide) as bar,
    ):
        model = files.layered(every, answers=reason is None or bool(extras))
        Sweep(model, every, members, options).run(bar.update)
    for one, reader in zip(asked, readers, strict=True):
        put(one, reader.states())
        if beside is not None and one.index in extras:
            beside.settle(one.index, extras[one.index])


class _ModelReader:
    """Fills up one model's record."""

    def __init__(
        self, asked: Asked, probes: TokenizedProbes, batches: Sequence[Batch], reason: str | None
    ) -> None:
        self._name, self._request, self._reason = asked.name, asked.request, reason
        self._recorder = ModelRecorder(
            asked.name,
            probes,
            batches,
            layers=asked.request.layers,
            pooling=asked.request.pooling,
            answers_reason=reason,
        )
        self._profile = None
        if asked.request.profile:
            pooling, depth = asked.request.pooling, asked.request.depth
            self._profile = LayerProfile(depth, len(probes.probes), pooling, batches, probes.rounds)

    def hidden(self, layer: int, batch: Batch, states: torch.Tensor) -> None:
        if self._profile is not None and not self._profile.add(layer, batch, states):
            raise EvaluationError(
                f"model {self._name}: the hidden states after layer {layer} are NaN or infinite;"
                " the model overflows or is broken, try it in transformers in float32"
            )
        if layer in self._request.layers:
            self._recorder.add_hidden(batch, self._request.layers.index(layer), states)

    def answers(self, batch: Batch, outputs: Outputs) -> None:
        if self._reason is None and outputs.answers is not None:
            self._recorder.add_answers(batch, outputs.answers)

    def states(self) -> ModelStates:
        return self._recorder.states(self._profile.layers() if self._profile else None)


@dataclass(frozen=True)
class _ExtraReader:
    """Hands answers on; states are not looked at."""

    extra: Extra

    def hidden(self, layer: int, batch: Batch, states: torch.Tensor) -> None:
        pass

    def answers(self, batch: Batch, outputs: Outputs) -> None:
        self.extra.add(batch, outputs)
