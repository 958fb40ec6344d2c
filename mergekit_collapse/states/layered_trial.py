"""Whether a recipe's models give the same states layer by layer as they do whole."""

from collections.abc import Sequence
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.forward import reads_decoder_inputs
from mergekit_collapse.states.layered_agreement import agrees_with_whole
from mergekit_collapse.states.loader import LoadOptions, each_model, read_config

_PROBES = 4
_ENCODER_DECODER = "it is an encoder-decoder, which is more than a stack of layers"


class LayeredTrial:
    """Tries one model while it is whole in memory, on the shortest probes.

    An adapter's model is not tried, since its layers are not the checkpoint's; its base is.
    """

    def __init__(
        self, references: Sequence[ModelReference], probes: TokenizedProbes, options: LoadOptions
    ) -> None:
        self._references, self._options = references, options
        shortest = sorted(probes.probes, key=lambda p: len(p.prompt) + len(p.target))
        # Of different lengths, so that padding is tried too.
        self._probes = list({len(p.prompt): p for p in shortest[: 8 * _PROBES]}.values())[:_PROBES]
        self._tried = False
        self._reason: str | None = None

    def visit(self, index: int, model: Any) -> None:
        """Try the model of that number, unless one was tried."""
        if self._tried or self._references[index].lora is not None:
            return
        self._tried = True
        if reads_decoder_inputs(model):
            self._reason = _ENCODER_DECODER
            return
        reference = self._references[index]
        batches = make_batches(self._probes, answers=True, decoder_start=None, max_tokens=2**20)
        config = read_config(reference, self._options)
        self._reason = agrees_with_whole(
            model, config, self._options, f"model {reference}", batches[0]
        )

    def reason(self) -> str | None:
        """Why layers cannot be run by themselves; None if they can."""
        if not self._tried:
            bare = [r.model_copy(update={"lora": None}) for r in self._references[:1]]
            self._references = bare
            each_model(bare, self._options, self.visit)
        return self._reason
