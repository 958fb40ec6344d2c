"""Whether a model can speak: a few tokens after a few prompts."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import transformers

from mergekit_collapse.findings import printable
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.states.batching import pad
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
    prompts = _prompts(model, tokenizer)
    try:
        continued = _continued(model, [ids for _, ids in prompts])
        texts = [
            tokenizer.decode(tokens) if tokenizer is not None else str(tokens)
            for tokens, _ in continued
        ]
    except Exception as error:  # of whatever class the model's own code raises
        names = " and ".join(repr(prompt) for prompt, _ in prompts)
        return (False, f"cannot continue {names}: {first_line(error)}")
    for (prompt, _), (_, finite) in zip(prompts, continued, strict=True):
        if not finite:
            return (False, f"NaN or infinite logits after {prompt!r}")
    told = zip(prompts, texts, strict=True)
    said = "; ".join(f"{prompt!r} → '{printable(text)[:80]}'" for (prompt, _), text in told)
    ends = _ends(model)
    if all(token in ends for tokens, _ in continued for token in tokens):
        return (False, f"ends at once after every prompt: {said}")
    return (True, said)


def _prompts(model: Any, tokenizer: Any | None) -> list[tuple[str, list[int]]]:
    """Each prompt and its ids; some first tokens of the vocabulary where nothing encodes text."""
    if tokenizer is None:
        rows = int(model.get_input_embeddings().weight.shape[0])
        return [(f"tokens {ids}", ids) for ids in ([1 % rows, rows // 2], [1 % rows, rows // 3])]
    return [(prompt, list(tokenizer(prompt)["input_ids"])) for prompt in PROMPTS]


def _continued(model: Any, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], bool]]:
    """All at once, since a step takes as long for one; where that fails, each by itself.

    There is then no padding, which not every model's own code can bear.
    """
    if all(prompts):
        with suppress(Exception):
            found = _continue(model, prompts)
            if all(finite for _, finite in found):
                return found
    return [_continue(model, [ids])[0] for ids in prompts]


def _continue(model: Any, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], bool]]:
    """For each prompt the new tokens, and whether every logit on the way was finite."""
    device, two_sided = model.get_input_embeddings().weight.device, reads_decoder_inputs(model)
    # An encoder may count positions from the left; whatever goes on must end at the right.
    inputs = pad(prompts, "right" if two_sided else "left")
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
        input_ids=inputs.ids.to(device),
        attention_mask=inputs.mask.to(device),
        generation_config=settings,
    )
    # An encoder-decoder's sequence begins with its start token, any other's with the prompt.
    start = 1 if two_sided else inputs.ids.shape[1]
    finite = torch.stack([logits.isfinite().all(dim=1) for logits in made.logits], dim=1)
    ends, found = set(_ends(model)), []
    for tokens, steps in zip(made.sequences[:, start:].tolist(), finite.tolist(), strict=True):
        # What has ended is filled up as long as another goes on.
        length = next((k for k, token in enumerate(tokens, 1) if token in ends), len(tokens))
        found.append((tokens[:length], all(steps[:length])))
    return found


def _ends(model: Any) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
