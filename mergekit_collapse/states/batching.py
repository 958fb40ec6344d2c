"""Probes of like length in padded batches, the same for every model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mergekit_collapse.probes.tokens import TokenizedProbe
from mergekit_collapse.shapes import Int64

Side = Literal["right", "left"]

# Per batch: enough to keep the matrix units busy, and activations small (``heap``). Answers are
# capped apart, since each costs a row as wide as the vocabulary.
CPU_TOKENS = 2048
GPU_TOKENS = 8192
MAX_ANSWERS = 256
# What a batch costs beside its tokens (calls, weights that are fetched for it), as a share of the
# tokens of a full one: 64 tokens on a processor, 256 on a GPU.
_BATCH_COST = 1 / 32


@dataclass(frozen=True)
class Padded:
    """Token ids side by side.

    Attributes:
        ids: 0 at padding.
        mask: 1 for a token, 0 for padding.
        starts: where each sequence begins, 0 unless padded on the left.
    """

    ids: Int64[torch.Tensor, "sequence position"]
    mask: Int64[torch.Tensor, "sequence position"]
    starts: tuple[int, ...]

    @property
    def positions(self) -> Int64[torch.Tensor, "sequence position"]:
        """Each token's place in its own sequence, 0 at padding on the left."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Batch:
    """What one forward pass is given, and which of its states count.

    Attributes:
        probes: index of the probe that each sequence is.
        inputs: what the model (of an encoder-decoder, its encoder) reads.
        decoder_inputs: what the decoder of an encoder-decoder reads, else None.
        pooled: 1 where a hidden state belongs to the pooled state of its probe.
        answer_sequences: for each answer position, its sequence; those of a probe together.
        answer_positions: for each answer position, where in its sequence it stands.
        repeats: probes that are equal to one of these, and the one: they are run once.
    """

    probes: tuple[int, ...]
    inputs: Padded
    decoder_inputs: Padded | None
    pooled: Int64[torch.Tensor, "sequence position"]
    answer_sequences: Int64[torch.Tensor, " answer"]
    answer_positions: Int64[torch.Tensor, " answer"]
    repeats: tuple[tuple[int, int], ...] = ()


def make_batches(
    probes: Sequence[TokenizedProbe],
    *,
    answers: bool,
    decoder_start: int | None,
    max_tokens: int,
    side: Side = "right",
) -> list[Batch]:
    """Batches of all probes, equal ones once, longest first.

    A decoder-only model reads prompt + target without its last token: position p − 1 + k
    predicts target token k of a prompt of p tokens, and only the prompt is pooled. An
    encoder-decoder's decoder reads start + target without its last token, exactly as
    transformers shifts labels, and all of that is pooled.

    Args:
        answers: whether targets are appended and answer positions wanted.
        decoder_start: the first token of an encoder-decoder's decoder, else None.
        max_tokens: most tokens of a batch, padding included; one probe may exceed it.
    """
    if decoder_start is None:
        read = [p.prompt + (p.target[:-1] if answers else ()) for p in probes]
        lengths = [len(tokens) for tokens in read]
    else:
        lengths = [len(p.prompt) + max(1, len(p.target)) for p in probes]
    counts = [answer_count(p) for p in probes]
    first = {probe: index for index, probe in reversed(list(enumerate(probes)))}
    once = sorted(first.values())
    repeats: dict[int, list[int]] = {}
    for index, probe in enumerate(probes):
        if first[probe] != index:
            repeats.setdefault(first[probe], []).append(index)
    plan = [
        tuple(once[place] for place in members)
        for members in plan_batches(
            [lengths[i] for i in once], [counts[i] for i in once], max_tokens, MAX_ANSWERS
        )
    ]
    if decoder_start is None:
        batches = [_decoder_only_batch(probes, read, members, side) for members in plan]
    else:
        batches = [_encoder_decoder_batch(probes, decoder_start, members, side) for members in plan]
    return [
        replace(b, repeats=tuple((p, q) for q in b.probes for p in repeats.get(q, ())))
        for b in batches
    ]


def answer_count(probe: TokenizedProbe) -> int:
    """Answer positions of a probe: each target token, or the one after the prompt."""
    return max(1, len(probe.target))


def plan_batches(
    lengths: Sequence[int], answers: Sequence[int], max_tokens: int, max_answers: int
) -> list[tuple[int, ...]]:
    """Indices of each batch's members, by falling length, equal lengths in their own order.

    The plan of least cost, its fullest batches first, which is for each batch

        members · longest + max_tokens / 32

    since padding is computed like any token. A batch's padded size (members · longest) and its
    answers stay within the limits unless it has one member only. Found by dynamic programming
    over where batches end, O(members of all · members of a batch).
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    fixed = max_tokens * _BATCH_COST
    # For the first so many of the order, the least cost and where their last batch begins.
    least, begins = [0.0], [0]
    for end in range(1, len(order) + 1):
        cost, first, answered = math.inf, end - 1, 0
        for begin in range(end - 1, -1, -1):
            tokens = (end - begin) * lengths[order[begin]]
            answered += answers[order[begin]]
            # An earlier beginning is a longer sequence still.
            if begin < end - 1 and (tokens > max_tokens or answered > max_answers):
                break
            if (total := least[begin] + tokens + fixed) < cost:
                cost, first = total, begin
        least.append(cost)
        begins.append(first)
    batches: list[tuple[int, ...]] = []
    end = len(order)
    while end:
        batches.append(tuple(order[begins[end] : end]))
        end = begins[end]
    return batches[::-1]


def pad(sequences: Sequence[Sequence[int]], side: Side = "right") -> Padded:
    """Token ids side by side, filled up on one side with 0, which the mask hides."""
    width = max(map(len, sequences))
    ids = torch.zeros((len(sequences), width), dtype=torch.int64)
    starts = tuple(width - len(s) if side == "left" else 0 for s in sequences)
    for row, (start, tokens) in enumerate(zip(starts, sequences, strict=True)):
        ids[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return Padded(ids, _spans(starts, [len(s) for s in sequences], width), starts)


def _spans(starts: Sequence[int], lengths: Sequence[int], width: int) -> torch.Tensor:
    """1 from each start over each length, else 0."""
    positions = torch.arange(width)
    first = torch.tensor(starts).unsqueeze(1)
    end = first + torch.tensor(lengths).unsqueeze(1)
    return ((positions >= first) & (positions < end)).long()


def _decoder_only_batch(
    probes: Sequence[TokenizedProbe],
    read: Sequence[Sequence[int]],
    members: tuple[int, ...],
    side: Side,
) -> Batch:
    inputs = pad([read[i] for i in members], side)
    prompts = [len(probes[i].prompt) for i in members]
    firsts = [start + length - 1 for start, length in zip(inputs.starts, prompts, strict=True)]
    pooled = _spans(inputs.starts, prompts, inputs.ids.shape[1])
    return Batch(members, inputs, None, pooled, *_answers(probes, members, firsts))


def _encoder_decoder_batch(
    probes: Sequence[TokenizedProbe], decoder_start: int, members: tuple[int, ...], side: Side
) -> Batch:
    inputs = pad([probes[i].prompt for i in members], side)
    # Decoders count positions from the left, so theirs are always padded on the right.
    read = pad([(decoder_start, *probes[i].target[:-1]) for i in members])
    answers = _answers(probes, members, [0] * len(members))
    return Batch(members, inputs, read, read.mask, *answers)


def _answers(
    probes: Sequence[TokenizedProbe], members: tuple[int, ...], firsts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    counts = [answer_count(probes[i]) for i in members]
    sequences = [row for row, count in enumerate(counts) for _ in range(count)]
    positions = [first + k for first, n in zip(firsts, counts, strict=True) for k in range(n)]
    return torch.tensor(sequences), torch.tensor(positions)
