"""Which positions of the probes count in a layer's statistics; the same for every layer."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergekit_collapse.shapes import Bool, Int64
from mergekit_collapse.states.batching import Batch

# More tell large ranks apart, but an eigenvalue problem grows with the cube of them. With
# 192, the rank costs a 135 M model 1 % of the time of its forward pass over 4,096 tokens.
MAX_POSITIONS = 192


@dataclass(frozen=True)
class BatchPositions:
    """Those of one batch.

    Attributes:
        counted: every pooled position but the first of its sequence.
        total: how many those are.
        first: sequence and position of one of them, None if there is none.
        slots: for each that is sampled, its place in the sample.
        sequences, positions: where it stands.
    """

    counted: Bool[torch.Tensor, "sequence position"]
    total: int
    first: tuple[int, int] | None
    slots: Int64[np.ndarray, " sampled"]
    sequences: Int64[torch.Tensor, " sampled"]
    positions: Int64[torch.Tensor, " sampled"]


class CountedPositions:
    """Every position of all batches that counts, and the sample among them.

    Attention sinks live in the first position of a sequence, with activations a thousand times
    the others', so that it is left out. The sample follows from the masks and the order of the
    probes alone: neither batches nor padding nor the model change it.

    Args:
        batches: of all probes.
        among: the probes whose positions count; those of all if None.

    Attributes:
        total: how many count.
        size: how many are sampled, at most ``MAX_POSITIONS``.
    """

    def __init__(self, batches: Sequence[Batch], among: range | None = None) -> None:
        counts: dict[int, int] = {}
        for batch in batches:
            pooled = batch.pooled.sum(dim=1).tolist()
            found = zip(_counting(batch, among), pooled, strict=True)
            counts |= {probe: max(0, n - 1) for probe, n in found if probe is not None}
        offsets = dict(zip(sorted(counts), _starts(counts[p] for p in sorted(counts)), strict=True))
        self.total = sum(counts.values())
        chosen = _spread(self.total)
        self.size = len(chosen)
        slots = np.full(self.total, -1, dtype=np.int64)
        slots[chosen] = np.arange(self.size, dtype=np.int64)
        self._of = {
            batch.probes: _in_batch(batch, _counting(batch, among), offsets, slots)
            for batch in batches
        }

    def of(self, batch: Batch) -> BatchPositions:
        """Those of one of the batches."""
        return self._of[batch.probes]


def _counting(batch: Batch, among: range | None) -> list[int | None]:
    """For each sequence the first of its equal probes that counts, None where none does.

    So a round is read alike with and without the probes of other rounds that are equal to its.
    """
    if among is None:
        return list(batch.probes)
    found = {probe: probe for probe in batch.probes if probe in among}
    for other, one in batch.repeats:
        if other in among:
            found[one] = min(other, found.get(one, other))
    return [found.get(probe) for probe in batch.probes]


def _in_batch(
    batch: Batch,
    counting: Sequence[int | None],
    offsets: dict[int, int],
    slots: np.ndarray,
) -> BatchPositions:
    place = batch.pooled.cumsum(dim=1)
    among = torch.tensor([probe is not None for probe in counting]).unsqueeze(1)
    counted = (batch.pooled == 1) & (place > 1) & among
    sequences, positions = torch.nonzero(counted, as_tuple=True)
    starts = np.array([0 if p is None else offsets[p] for p in counting], dtype=np.int64)
    numbers = starts[sequences.numpy()] + place[sequences, positions].numpy() - 2
    sampled = np.flatnonzero(slots[numbers] >= 0)
    first = (int(sequences[0]), int(positions[0])) if len(numbers) else None
    return BatchPositions(
        counted,
        len(numbers),
        first,
        slots[numbers[sampled]],
        sequences[sampled],
        positions[sampled],
    )


def _starts(counts: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)][:-1]


def _spread(total: int) -> Int64[np.ndarray, " chosen"]:
    """One number from each of ``MAX_POSITIONS`` equal stretches, or all where they are few."""
    size = min(total, MAX_POSITIONS)
    if not size:
        return np.zeros(0, dtype=np.int64)
    edges = [i * total // size for i in range(size + 1)]
    # Not at a fixed place in its stretch: probes of one length would then show the same
    # token again and again.
    drawn = random.Random(0)
    chosen = [a + int(drawn.random() * (b - a)) for a, b in itertools.pairwise(edges)]
    return np.array(chosen, dtype=np.int64)
