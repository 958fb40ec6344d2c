"""Whether a recipe's models give the same states layer by layer as they do whole."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError
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
_ENCODER_DECODER = "it is an encoder-decoder, which is more than a stack of layers"


class LayeredTrial:
    """Tries one model on beginnings of probes, before others are run layer by layer.

    Of an adapter's model its base is tried.

    Args:
        kept: the outcomes of earlier runs, which hold for every model of the same configuration.
            One of any of the models is an outcome for all.
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
        self._references, self._options = references, options
        self._kept, self._full = kept, full
        self._probes = _beginnings(probes.probes)
        self._tried = self._looked = False
        self._reason: str | None = None
        self._looked_at: dict[ModelReference, LayeredFiles] = {}
        self._built: dict[str, LayeredModel] = {}

    def open(self, base: ModelReference) -> LayeredFiles:
        """A model that is to be run layer by layer, tried unless one was.

        Raises:
            NotLayeredError: it has to be run whole; says why.
            EvaluationError: there is no such model, its weights cannot be read, or memory runs out.
        """
        batch, options = self.batch, self._options
        files = self._looked_at.pop(base, None) or self._open(base)
        if not self._known():
            reader, layered = stage_reader(options.device), files.opened

            def load(stage: int) -> dict[str, torch.Tensor]:
                return reader.load(files.staged, stage, layered.prepared)

            self._settle(base, agrees_by_stage(layered, load, batch, files.head, options))
        if self._reason is not None:
            raise NotLayeredError(self._reason)
        return files

    def look(self, base: ModelReference) -> LayeredFiles:
        """The same without a trial: no weight is read.

        Raises:
            NotLayeredError: it has to be read whole; a trial that is still due may find so too.
            EvaluationError: there is no such model, or a file is truncated.
        """
        if self._known() and self._reason is not None:
            raise NotLayeredError(self._reason)
        if base not in self._looked_at:
            self._looked_at[base] = self._open(base)
        return self._looked_at[base]

    @property
    def due(self) -> bool:
        """Whether the first model is going to be tried."""
        return not self._known()

    def visit(self, index: int, model: Any) -> None:
        """Try the model of that number, which is whole in memory, unless one was tried."""
        if self._known() or self._references[index].lora is not None:
            return
        reference = self._references[index]
        try:
            self._settle(reference, self._try(reference, model))
        except EvaluationError as error:
            # True of this run alone, so it is not kept.
            self._tried, self._reason = True, str(error)

    def settle(self, models: Iterable[ModelReference]) -> None:
        """Try the first of some models that can be run layer by layer, unless one was tried.

        Raises:
            EvaluationError: there is no such model, or its weights cannot be read.
        """
        for base in dict.fromkeys(map(bare, models)):
            if self._known():
                return
            with suppress(NotLayeredError):
                self.open(base)

    def elsewhere(self, options: LoadOptions) -> "LayeredTrial":
        """A copy of what is known, for another process or device; it keeps nothing."""
        other = copy.copy(self)
        other._options, other._kept, other._looked_at = options, NOT_KEPT, {}
        other._built = {}
        return other

    def reason(self) -> str | None:
        """Why layers cannot be run by themselves; None if they can."""
        if not self._known():
            base = bare(self._references[0])
            try:
                self.open(base)
            except NotLayeredError:
                # That may be for its files alone, which the merge does not share.
                self._references = [base]
                each_model([base], self._options, self.visit)
        return self._reason

    def _open(self, base: ModelReference) -> LayeredFiles:
        return open_layered_files(base, self._options, self.batch, self._built)

    def _settle(self, reference: ModelReference, reason: str | None) -> None:
        self._tried, self._reason = True, reason
        told = {"reason": reason, "model": str(reference), "what": "layer by layer"}
        self._kept.put(self._key(reference), told)

    def _known(self) -> bool:
        if self._tried or self._looked or self._kept is NOT_KEPT:
            return self._tried
        self._looked = True
        for reference in dict.fromkeys(map(bare, self._references)):
            found = self._kept.get(self._key(reference))
            if found is not None and isinstance(found.get("reason"), str | None):
                self._tried, self._reason = True, found["reason"]
                break
        return self._tried

    def _key(self, reference: ModelReference) -> str | None:
        if self._kept.files is None:
            return None
        config = read_config(reference, self._options)
        if not brings_code(config):
            # What one set of weights shows is true of all that are computed with alike.
            return digest("layered", computation(config), conditions(self._options))
        model = model_identity(reference, self._options, full=self._full)
        return model and digest("layered", model, conditions(self._options))

    def _try(self, reference: ModelReference, model: Any) -> str | None:
        if reads_decoder_inputs(model):
            return _ENCODER_DECODER
        config = read_config(reference, self._options)
        where = f"model {reference}"
        return agrees_with_whole(model, config, self._options, where, self.batch)

    @property
    def batch(self) -> Batch:
        """What a model is tried on."""
        return make_batches(self._probes, answers=True, decoder_start=None, max_tokens=2**20)[0]


def _beginnings(probes: Sequence[TokenizedProbe]) -> list[TokenizedProbe]:
    """Of the longest probes, each cut to another length, with one token of the answer beyond."""
    longest = sorted(probes, key=lambda p: -len(p.prompt))[: len(_LENGTHS)]
    found: list[TokenizedProbe] = []
    for probe, length in zip(longest, _LENGTHS, strict=False):
        shorter = min(length, len(found[-1].prompt) - 1) if found else length
        if shorter:
            found.append(TokenizedProbe(probe.prompt[:shorter], probe.target[:2]))
    return found
