"""One batch through one transformers model: hidden states and answer distributions."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float, Float32
from mergekit_collapse.states.batching import Batch


class LayersNotToldApartError(EvaluationError):
    """A model that hands out another number of hidden states than it has layers."""


@dataclass(frozen=True)
class Outputs:
    """What one model answered on one batch.

    Attributes:
        hidden: per layer asked for, the states at every position, padding included, in the
            precision of the forward pass.
        answers: log-probabilities of the next token, in nats, a row per answer position.
    """

    hidden: tuple[Float[torch.Tensor, "sequence position feature"], ...]
    answers: Float32[torch.Tensor, "answer token"] | None


def has_language_head(model: Any) -> bool:
    """Whether the model gives a distribution of the next token."""
    return bool(model.can_generate()) and model.get_output_embeddings() is not None


def reads_decoder_inputs(model: Any) -> bool:
    """Whether the model is an encoder-decoder, by what its backbone takes."""
    return "decoder_input_ids" in _accepted(model.base_model)


def decoder_start(model: Any) -> int:
    """The token that an encoder-decoder's decoder begins with.

    Raises:
        EvaluationError: the model's configuration names none.
    """
    for holder in (getattr(model, "generation_config", None), model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (token := getattr(holder, name, None)) is not None:
                return int(token)
    raise EvaluationError(
        f"model {model.config.name_or_path}: neither decoder_start_token_id nor bos_token_id in"
        " its config.json; add decoder_start_token_id"
    )


def depth(config: Any) -> int:
    """L, the number of layers (of an encoder-decoder, its decoder's): `last` is layer L."""
    text = config.get_text_config(decoder=bool(config.is_encoder_decoder))
    for name in ("num_decoder_layers", "decoder_layers"):
        if config.is_encoder_decoder and getattr(text, name, None):
            return int(getattr(text, name))
    return int(text.num_hidden_layers)


@torch.inference_mode()
def forward(model: Any, batch: Batch, layers: Sequence[int], depth: int, answers: bool) -> Outputs:
    """Hidden states after the given layers and, if asked for, the answers.

        answer = log softmax(logits)

    Layer k is transformers' ``hidden_states[k]`` (of an encoder-decoder, of its decoder);
    layer ``depth`` is ``last_hidden_state``, after the final norm. The logits are the model's
    own, with its soft caps and scales, projected at the answer positions alone.

    Raises:
        LayersNotToldApartError: the model does not give the states that were asked for.
    """
    runner = model if answers else model.base_model
    device = model.get_input_embeddings().weight.device
    inner = set(layers) != {depth}
    with captured(model) as outputs, head_sees_only(model, batch, device, answers) as seen:
        output = runner(**arguments_of(runner, batch, device, inner))
    states = outputs[-1]
    # Outputs of an encoder-decoder's decoder are those of any decoder.
    every = getattr(states, "hidden_states", None) or ()
    if inner and len(every) != depth + 1:
        raise LayersNotToldApartError(
            f"model {model.config.name_or_path}: gives {len(every)} hidden states for {depth}"
            " layers, so its layers cannot be told apart; use `layer: last`"
        )
    hidden = tuple(states.last_hidden_state if k == depth else every[k] for k in layers)
    if not answers:
        return Outputs(hidden, None)
    return Outputs(hidden, answers_in(output.logits, batch, seen))


def answers_in(
    logits: torch.Tensor, batch: Batch, seen: list[bool]
) -> Float32[torch.Tensor, "answer token"]:
    """Log-probabilities at the answer positions; ``seen`` is what ``head_sees_only`` yields."""
    if seen:
        logits = logits[0]
    else:
        sequences, positions = batch.answer_sequences, batch.answer_positions
        logits = logits[sequences.to(logits.device), positions.to(logits.device)]
    return logits.float().log_softmax(dim=-1)


@contextmanager
def captured(model: Any) -> Iterator[list[Any]]:
    """What the backbone returns, which a model with a head keeps to itself."""
    backbone = model.base_model
    if reads_decoder_inputs(model):
        backbone = backbone.get_decoder()
    outputs: list[Any] = []
    handle = backbone.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def head_sees_only(
    model: Any, batch: Batch, device: torch.device, wanted: bool
) -> Iterator[list[bool]]:
    """Hand the head the answer positions alone, as one sequence.

    ``logits_to_keep`` knows only positions common to all sequences, and T5 does not know
    it at all; a vocabulary of 150,000 at every position would be gigabytes. The list that
    is yielded is empty if the model never called its head as a module.
    """
    seen: list[bool] = []
    if not wanted:
        yield seen
        return
    sequences = batch.answer_sequences.to(device)
    positions = batch.answer_positions.to(device)

    def select(_head: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(True)
        return (arguments[0][sequences, positions].unsqueeze(0), *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


def arguments_of(runner: Any, batch: Batch, device: torch.device, inner: bool) -> dict[str, Any]:
    """What a model is called with; ``inner`` asks it for the states after every layer."""
    accepted = _accepted(runner)
    arguments: dict[str, Any] = {
        "input_ids": batch.inputs.ids.to(device),
        "attention_mask": batch.inputs.mask.to(device),
        "return_dict": True,
    }
    if inner:
        arguments["output_hidden_states"] = True
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    if any(batch.inputs.starts) and "position_ids" in accepted:
        # Without them an absolute position would count the padding.
        arguments["position_ids"] = batch.inputs.positions.to(device)
    if batch.decoder_inputs is not None:
        arguments["decoder_input_ids"] = batch.decoder_inputs.ids.to(device)
        arguments["decoder_attention_mask"] = batch.decoder_inputs.mask.to(device)
    return arguments


def _accepted(module: Any) -> set[str]:
    return set(inspect.signature(module.forward).parameters)
