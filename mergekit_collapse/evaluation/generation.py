"""Whether a model can speak: a few tokens after a few prompts."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from mergekit_collapse.findings import printable
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.states.forward import has_language_head, reads_decoder_inputs

PROMPTS = ("The capital of France is", "Once upon a time")
NEW_TOKENS = 16


@torch.inference_mode()
def generates(model: Any, tokenizer: Any | None) -> tuple[bool, str]:
    """Whether the model can continue ``PROMPTS`` greedily, and what it says.

    It fails if the model's code raises, a logit is not finite, or nothing at all is said. What
    is said is shown and not judged: a base model may well repeat itself.

    Args:
        model: of transformers, in evaluation mode.
        tokenizer: of the model; without one, some of its tokens are the prompts.
    """
    if not has_language_head(model):
        return (True, f"not asked: {type(model).__name__} has no language head")
    said: list[str] = []
    empty = True
    for prompt, ids in _prompts(model, tokenizer):
        try:
            tokens, finite = _continue(model, ids)
            text = tokenizer.decode(tokens) if tokenizer is not None else str(tokens)
        except Exception as error:  # of whatever class the model's own code raises
            return (False, f"cannot continue {prompt!r}: {first_line(error)}")
        if not finite:
            return (False, f"NaN or infinite logits after {prompt!r}")
        ends = _ends(model)
        empty = empty and not [token for token in tokens if token not in ends]
        said.append(f"{prompt!r} → '{printable(text)[:80]}'")
    if empty:
        return (False, f"ends at once after every prompt: {'; '.join(said)}")
    return (True, "; ".join(said))


def _prompts(model: Any, tokenizer: Any | None) -> list[tuple[str, list[int]]]:
    """Each prompt and its ids; some first tokens of the vocabulary where nothing encodes text."""
    if tokenizer is None:
        rows = int(model.get_input_embeddings().weight.shape[0])
        return [(f"tokens {ids}", ids) for ids in ([1 % rows, rows // 2], [1 % rows, rows // 3])]
    return [(prompt, list(tokenizer(prompt)["input_ids"])) for prompt in PROMPTS]


def _continue(model: Any, ids: Sequence[int]) -> tuple[list[int], bool]:
    """The new tokens, and whether every logit on the way was finite."""
    inputs = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    settings_class: Any = transformers.GenerationConfig  # which has no types
    # The folder's own settings may ask for sampling.
    settings = settings_class(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        # transformers sizes an encoder-decoder's cache by the encoder, which may be shallower.
        use_cache=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        eos_token_id=_ends(model) or None,
        decoder_start_token_id=getattr(model.generation_config, "decoder_start_token_id", None),
    )
    made = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
    )
    finite = all(bool(logits.isfinite().all()) for logits in made.logits)
    # An encoder-decoder's sequence begins with its start token, any other's with the prompt.
    start = 1 if reads_decoder_inputs(model) else len(ids)
    return made.sequences[0, start:].tolist(), finite


def _ends(model: Any) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
