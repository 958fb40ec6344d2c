"""Whether a recipe's models give the same states layer by layer as they do whole."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError, OutOfMemoryError
from mergekit_collapse.kept_values import NOT_KEPT, KeptValues
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states.batching import Batch, make_batches
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.forward import reads_decoder_inputs
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.layered_agreement import agrees_by_stage, agrees_with_whole
from mergekit_collapse.states.layered_files import (
    LayeredFiles,
    brings_code,
    computation,
    open_layered_files,
)
from mergekit_collapse.states.loader import LoadOptions, bare, each_model, read_config
from mergekit_collapse.states.model_identity import conditions, digest, model_identity
from mergekit_collapse.states.stage_reader import stage_reader

# Of different lengths, so that padding is tried too, and short: whether layers run apart shows on
# a few tokens, and every token more is computed twice for nothing.
_LENGTHS = (16, 12, 8, 4)
# Of a configuration, what fine-tunes of one base differ in and no layer knows of.
_TRIVIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "vocab_size")
_ENCODER_DECODER = "it is an encoder-decoder, which is more than a stack of layers"


class LayeredTrial:
    """Tries one model of each configuration on beginnings of probes, before any is run by layers.

    Of an adapter's model its base is tried.

    Args:
        kept: the outcomes of earlier runs, by configuration.
        full: whether a model that brings code of its own is known by all of its weights.
    """

    def __init__(
        self,
        references: Sequence[ModelReference],
        probes: TokenizedProbes,
        options: LoadOptions,
        kept: KeptValues = NOT_KEPT,
        *,
        full: bool = False,
    ) -> None:
        self._bases = list(dict.fromkeys(map(bare, references)))
        self._references, self._options = references, options
        self._kept, self._full = kept, full
        self._probes = _beginnings(probes.probes)
        # By kind: why layers cannot be run apart, None if they can.
        self._reasons: dict[str, str | None] = {}
        self._sought: set[str] = set()
        self._kinds: dict[ModelReference, str] = {}
        self._looked_at: dict[ModelReference, LayeredFiles] = {}
        self._built: dict[str, LayeredModel] = {}

    def open(self, base: ModelReference) -> LayeredFiles:
        """A model that is to be run layer by layer, tried unless one like it was.

        Raises:
            NotLayeredError: it has to be run whole; says why.
            EvaluationError: there is no such model, its weights cannot be read, or memory runs out.
        """
        files = self._looked_at.pop(base, None) or self._open(base)
        if not self._known(base):
            load = partial(stage_reader(self._options.device).load, files.staged)
            layered = files.opened
            try:
                reason = agrees_by_stage(
                    layered,
                    lambda stage: load(stage, layered.prepared),
                    self.batches,
                    files.head,
                    self._options,
                )
            except EvaluationError as error:
                if isinstance(error, OutOfMemoryError) or isinstance(error.__cause__, OSError):
                    raise
                self._give_up(base, error)
            else:
                self._settle(base, reason)
        if (reason := self._reason(base)) is not None:
            raise NotLayeredError(reason)
        return files

    def look(self, base: ModelReference) -> LayeredFiles:
        """The same without a trial: no weight is read.

        Raises:
            NotLayeredError: it has to be read whole; a trial that is still due may find so too.
            EvaluationError: there is no such model, or a file is truncated.
        """
        if self._known(base) and (reason := self._reason(base)) is not None:
            raise NotLayeredError(reason)
        if base not in self._looked_at:
            self._looked_at[base] = self._open(base)
        return self._looked_at[base]

    def due(self, bases: Iterable[ModelReference]) -> list[ModelReference]:
        """The models that are going to be tried: of each kind the first, unless it is known."""
        first = {self._kind(base): base for base in reversed(list(bases))}
        return [base for base in first.values() if not self._known(base)]

    def visit(self, index: int, model: Any) -> None:
        """Try the model of that number, which is whole in memory, unless one like it was."""
        reference = self._references[index]
        if reference.lora is not None or self._known(reference):
            return
        try:
            self._settle(reference, self._try(reference, model))
        except EvaluationError as error:
            self._give_up(reference, error)

    def settle(self, models: Iterable[ModelReference]) -> None:
        """Try those models that are due, as far as they can be run layer by layer.

        Raises:
            EvaluationError: there is no such model, or its weights cannot be read.
        """
        for base in dict.fromkeys(map(bare, models)):
            if not self._known(base):
                with suppress(NotLayeredError):
                    self.open(base)

    def elsewhere(self, options: LoadOptions) -> "LayeredTrial":
        """A copy of what is known, for another process or device; it keeps nothing."""
        other = copy.copy(self)
        other._options, other._kept, other._looked_at = options, NOT_KEPT, {}
        other._reasons, other._sought, other._built = dict(self._reasons), set(self._sought), {}
        return other

    def reason(self) -> str | None:
        """Why the first model's layers cannot be run by themselves; None if they can."""
        base = self._bases[0]
        if not self._known(base):
            try:
                self.open(base)
            except NotLayeredError:
                # That may be for its files alone, which the merge does not share.
                self._references = [base]
                each_model([base], self._options, self.visit)
        return self._reason(base)

    @property
    def batches(self) -> list[Batch]:
        """What a model is tried on, and what takes turns with it."""
        # Any other tokens, in another number.
        others = [replace(p, prompt=(0, *reversed(p.prompt))) for p in self._probes]
        return [
            make_batches(probes, answers=True, decoder_start=None, max_tokens=2**20)[0]
            for probes in (self._probes, others)
        ]

    def _open(self, base: ModelReference) -> LayeredFiles:
        return open_layered_files(base, self._options, self.batches[0], self._built)

    def _reason(self, base: ModelReference) -> str | None:
        return self._reasons[self._kind(base)]

    def _settle(self, reference: ModelReference, reason: str | None) -> None:
        self._reasons[self._kind(reference)] = reason
        told = {"reason": reason, "model": str(reference), "what": "layer by layer"}
        self._kept.put(self._key(reference), told)

    def _give_up(self, reference: ModelReference, error: EvaluationError) -> None:
        """True of these weights and this run, so it is not kept."""
        self._reasons[self._kind(reference)] = str(error)

    def _known(self, reference: ModelReference) -> bool:
        kind = self._kind(reference)
        if kind not in self._reasons and kind not in self._sought:
            self._sought.add(kind)
            told = self._kept.get(self._key(reference)) or {}
            if "reason" in told and isinstance(told["reason"], str | None):
                self._reasons[kind] = told["reason"]
        return kind in self._reasons

    def _kind(self, reference: ModelReference) -> str:
        """What an outcome is true of: a configuration, since other weights go the same way through
        the same code; where a model's own code is run, that model.
        """
        base = bare(reference)
        if base not in self._kinds:
            config = read_config(base, self._options)
            own = self._options.trust_remote_code and brings_code(config)
            self._kinds[base] = str(base) if own else computation(config, _TRIVIAL)
        return self._kinds[base]

    def _key(self, reference: ModelReference) -> str | None:
        if self._kept.files is None:
            return None
        base, what = bare(reference), self._kind(reference)
        if what == str(base):
            model = model_identity(base, self._options, full=self._full)
            if model is None:
                return None
            what = repr(model)
        lengths = [len(probe.prompt) for probe in self._probes]
        return digest("layered", lengths, what, conditions(self._options))

    def _try(self, reference: ModelReference, model: Any) -> str | None:
        if reads_decoder_inputs(model):
            return _ENCODER_DECODER
        config = read_config(reference, self._options)
        where = f"model {reference}"
        return agrees_with_whole(model, config, self._options, where, self.batches)


def _beginnings(probes: Sequence[TokenizedProbe]) -> list[TokenizedProbe]:
    """Of the longest probes, each cut to another length, with one token of the answer beyond."""
    longest = sorted(probes, key=lambda p: -len(p.prompt))[: len(_LENGTHS)]
    found: list[TokenizedProbe] = []
    for probe, length in zip(longest, _LENGTHS, strict=False):
        shorter = min(length, len(found[-1].prompt) - 1) if found else length
        if shorter:
            found.append(TokenizedProbe(probe.prompt[:shorter], probe.target[:2]))
    return found
