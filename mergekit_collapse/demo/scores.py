"""How good a model is at the demo's tasks: accuracy by likelihood over a task's choices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

CHOICES: dict[str, tuple[str, ...]] = {
    "sentiment": ("negative", "positive"),
    "spam": ("personal", "spam"),
    "era": ("old", "modern"),
}
"""The answers of each task, in the words that its rows use."""


@dataclass(frozen=True)
class Row:
    """One held-out question: the model reads `prompt`, then a space and `answer` is right."""

    prompt: str
    answer: str


def score(
    model: "torch.nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    choices: Sequence[str],
    *,
    batch_size: int = 16,
) -> float:
    """Return the share of rows whose right answer is the likeliest of the choices, 0 to 1.

    A choice's score is the sum of log p over its tokens (a space and the choice) after the
    prompt, not divided by its length: the demo's choices are one or two tokens, and the sum is
    the log-probability that the model says them.

    Args:
        model: a causal language model of transformers, or PEFT's wrapper of one, in evaluation
            mode.
        rows: at least one; each `answer` is one of `choices`.
        choices: at least two different strings.

    Raises:
        ValueError: no rows, or a row whose answer is not a choice.
    """
    import torch

    if not rows:
        raise ValueError("no rows to score")
    if strange := sorted({row.answer for row in rows} - set(choices)):
        raise ValueError(f"answers {strange} are not among the choices {list(choices)}")
    endings = [tuple(tokenizer(f" {choice}")["input_ids"]) for choice in choices]
    prompts = [tuple(tokenizer(row.prompt)["input_ids"]) for row in rows]
    # The last token of an ending is predicted, never read: one-token choices share one pass over
    # the prompt.
    readings = sorted({prompt + end[:-1] for prompt in prompts for end in endings}, key=len)
    logp = {}
    for start in range(0, len(readings), batch_size):
        chunk = readings[start : start + batch_size]
        ids = torch.zeros(len(chunk), len(chunk[-1]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for slot, reading in enumerate(chunk):
            # Right padding: what follows a token does not change what the model made of it.
            ids[slot, : len(reading)] = torch.tensor(reading)
            mask[slot, : len(reading)] = 1
        keep = max(len(end) for end in endings) + len(chunk[-1]) - len(chunk[0])
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits
        offset = ids.shape[1] - logits.shape[1]
        for slot, reading in enumerate(chunk):
            logp[reading] = (
                logits[slot, : len(reading) - offset].double().log_softmax(dim=-1),
                offset,
            )

    def likelihood(prompt: tuple[int, ...], end: tuple[int, ...]) -> float:
        steps, offset = logp[prompt + end[:-1]]
        first = len(prompt) - 1 - offset
        return sum(float(steps[first + i, token]) for i, token in enumerate(end))

    hits = 0
    for prompt, row in zip(prompts, rows, strict=True):
        values = [likelihood(prompt, end) for end in endings]
        hits += choices[values.index(max(values))] == row.answer
    return hits / len(rows)
