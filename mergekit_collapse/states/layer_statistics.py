"""How much a model's activations after one layer spread: variance and effective rank."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from mergekit_collapse.shapes import Float, Float64, Int64
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.states import LayerStatistics

# More tell large ranks apart, but an eigenvalue problem grows with the cube of them. With
# 256, both statistics of a 135 M model take 3 % of the time of its forward pass over 4,096 tokens.
MAX_POSITIONS = 256

# Rows that are widened at a time, few enough to stay near the processor.
_CHUNK = 256


class ActivationSample:
    """Adds up one layer's states batch by batch, in any split, padding and order.

    What counts is every pooled position, that is the prompts' tokens, but the first of each
    sequence: attention sinks live there, with activations a thousand times the others'. Over
    these positions t = 1..T of all probes, with features f = 1..F,

        variance       = mean over f of (mean over t of (x_tf − mean over t of x_tf)²)
        effective rank = exp(−Σ p_i log p_i), p_i = σ_i / Σσ,

    σ being the eigenvalues of the covariance (arXiv 2603.04972). The variance is that of every
    position, in float32 but for the sums. The rank is that of ``MAX_POSITIONS`` positions
    spread evenly over the probes, or of all where there are fewer; which ones follows from the
    masks alone, so that it is the same for every model. It is at most one less than their
    number.

    Args:
        batches: all that are going to be added.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        counts: dict[int, int] = {}
        for batch in batches:
            pooled = batch.pooled.sum(dim=1).tolist()
            counts.update(zip(batch.probes, (max(0, n - 1) for n in pooled), strict=True))
        probes = sorted(counts)
        ends = np.cumsum([counts[p] for p in probes], dtype=np.int64)
        self._offsets = {p: int(end) - counts[p] for p, end in zip(probes, ends, strict=True)}
        self._total = int(ends[-1]) if probes else 0
        chosen = _spread(self._total)
        self._slots = np.full(self._total, -1, dtype=np.int64)
        self._slots[chosen] = np.arange(len(chosen), dtype=np.int64)
        self._size = len(chosen)
        self._rows: Float64[np.ndarray, "chosen feature"] | None = None
        self._count = 0

    def add(self, hidden: Float[torch.Tensor, "sequence position feature"], batch: Batch) -> None:
        """Take one batch's states, in any precision; those at padding are never read."""
        sequences, positions, numbers = self._counted(batch)
        # Apple's GPUs have no float64.
        hidden = hidden.cpu() if hidden.device.type == "mps" else hidden
        rows = hidden[sequences.to(hidden.device), positions.to(hidden.device)]
        if self._rows is None:
            self._rows = np.zeros((self._size, hidden.shape[2]))
            self._sum = torch.zeros(hidden.shape[2], dtype=torch.float64, device=hidden.device)
            self._squares = self._sum.clone()
        if not len(rows):
            return
        slots = self._slots[numbers]
        kept = np.flatnonzero(slots >= 0)
        wanted = rows[torch.from_numpy(kept).to(rows.device)]
        self._rows[slots[kept]] = wanted.double().cpu().numpy()
        if not self._count:
            # Sums about a state keep the digits where all states are far from zero alike,
            # and are exactly zero where all states are equal.
            self._shift = rows[0].float()
        for start in range(0, len(rows), _CHUNK):
            # Differences in float32, of which only the sums need more digits.
            centred = rows[start : start + _CHUNK].float() - self._shift
            self._sum += centred.sum(dim=0, dtype=torch.float64)
            self._squares += centred.square_().sum(dim=0, dtype=torch.float64)
        self._count += len(rows)

    def statistics(self) -> LayerStatistics:
        """Variance and effective rank, after every batch was added.

        Returns:
            NaN for both if a state that counts is NaN or infinite, or if none counts; 0 for
            both if all states are equal, since they then span nothing.

        Raises:
            ValueError: batches are missing.
        """
        if self._count != self._total:
            raise ValueError(f"{self._count} of {self._total} positions were added")
        if self._rows is None or not self._count:
            return LayerStatistics(math.nan, math.nan)
        mean = self._sum / self._count
        variance = float((self._squares / self._count - mean.square()).clamp(min=0).mean())
        if not (math.isfinite(variance) and bool(mean.isfinite().all())):
            return LayerStatistics(math.nan, math.nan)
        return LayerStatistics(variance, effective_rank(self._rows))

    def _counted(
        self, batch: Batch
    ) -> tuple[
        Int64[torch.Tensor, " state"], Int64[torch.Tensor, " state"], Int64[np.ndarray, " state"]
    ]:
        """Sequence, position and number among all that count, of each state that counts."""
        place = batch.pooled.cumsum(dim=1)
        sequences, positions = torch.nonzero((batch.pooled == 1) & (place > 1), as_tuple=True)
        offsets = np.array([self._offsets[p] for p in batch.probes], dtype=np.int64)
        numbers = offsets[sequences.numpy()] + place[sequences, positions].numpy() - 2
        return sequences, positions, numbers


def effective_rank(rows: Float64[np.ndarray, "row feature"]) -> float:
    """exp of the entropy of the covariance's eigenvalues over their sum.

    Between 1 (all rows on a line) and min(rows − 1, features); 0 if all rows are equal. The
    unit of the rows, a rotation and a common offset make no difference.

    Args:
        rows: finite.
    """
    # About a row first, so that equal rows become exactly zero.
    centred = torch.from_numpy(rows - rows[0])
    largest = float(centred.abs().max())
    if largest == 0:
        return 0.0
    centred /= largest
    centred -= centred.mean(dim=0)
    # Both products have the same eigenvalues but for zeros; the smaller one costs less.
    wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    # A matrix this small is done in 3 ms by one thread; two that wait for each other on a busy
    # machine take a hundred times as long, and numpy's would also fight with torch's.
    with _one_thread():
        values = torch.linalg.eigvalsh(gram).clamp(min=0)
    shares = values[values > 0] / values.sum()
    return math.exp(-float((shares * shares.log()).sum()))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
