"""How much a model's activations after one layer spread: variance and effective rank."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from mergekit_collapse.shapes import Float, Float32, Float64
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.counted_positions import CountedPositions
from mergekit_collapse.states.states import LayerStatistics

# Elements that a processor works on at a time, few enough to stay near it.
_CHUNK = 1 << 18


def sequence_chunks(hidden: Float[torch.Tensor, "sequence position feature"]) -> Iterator[slice]:
    """The sequences, some at a time.

    What is as large as a whole batch is asked of the system and given back each time, and on a
    processor that costs more than the sums over it.
    """
    step = len(hidden)
    if hidden.device.type == "cpu":
        step = max(1, _CHUNK // max(1, hidden[:1].numel()))
    return (slice(start, start + step) for start in range(0, len(hidden), step))


class ActivationSample:
    """Adds up one layer's states batch by batch, in any split, padding and order.

    Over the positions t = 1..T of all probes that count, with features f = 1..F,

        variance       = mean over f of (mean over t of (x_tf − mean over t of x_tf)²)
        effective rank = exp(−Σ p_i log p_i), p_i = σ_i / Σσ,

    σ being the eigenvalues of the covariance (arXiv 2603.04972). The variance is that of every
    position. Its sums are in float32 within a few hundred positions and in float64 beyond, so
    that another split moves it by less than 1e-6 of itself. The rank is that of the sampled
    positions. It is at most one less than their number.

    Args:
        positions: of all batches that are going to be added.
    """

    def __init__(self, positions: CountedPositions) -> None:
        self._positions = positions
        self._rows: Float64[np.ndarray, "sampled feature"] | None = None
        self._count = 0

    def add(self, hidden: Float[torch.Tensor, "sequence position feature"], batch: Batch) -> None:
        """Take one batch's states, in any precision; those that do not count never enter."""
        for _ in self.parts(hidden, batch):
            pass

    def parts(
        self, hidden: Float[torch.Tensor, "sequence position feature"], batch: Batch
    ) -> Iterator[tuple[slice, Float32[torch.Tensor, "sequence position feature"]]]:
        """The same, handing out each part in float32 before it is added up.

        A part is good until the next one is asked for, and not to be changed.
        """
        own = self._positions.of(batch)
        # Apple's GPUs have no float64.
        hidden = hidden.cpu() if hidden.device.type == "mps" else hidden
        if self._rows is None:
            self._rows = np.zeros((self._positions.size, hidden.shape[2]))
            self._sum = torch.zeros(hidden.shape[2], dtype=torch.float64, device=hidden.device)
            self._squares = self._sum.sum()
        if own.first is not None:
            sampled = hidden[own.sequences.to(hidden.device), own.positions.to(hidden.device)]
            self._rows[own.slots] = sampled.double().cpu().numpy()
            if not self._count:
                # Sums about a state keep the digits where all states are far from zero alike,
                # and are exactly zero where all states are equal.
                self._shift = hidden[own.first].float()
            self._count += own.total
        counted = own.counted.to(hidden.device)
        for part in sequence_chunks(hidden):
            states = hidden[part].float()
            yield part, states
            if own.first is not None:
                # In place where the states are a copy: memory that is new costs as much again.
                into = states if hidden.dtype != torch.float32 else torch.empty_like(states)
                self._add_up(torch.sub(states, self._shift, out=into), counted[part])

    def statistics(self) -> LayerStatistics:
        """Variance and effective rank, after every batch was added.

        Returns:
            NaN for both if a state that counts is NaN or infinite, or if none counts; 0 for
            both if all states are equal, since they then span nothing.

        Raises:
            ValueError: batches are missing.
        """
        if self._count != self._positions.total:
            raise ValueError(f"{self._count} of {self._positions.total} positions were added")
        if self._rows is None or not self._count:
            return LayerStatistics(math.nan, math.nan)
        mean = self._sum / self._count
        spread = self._squares / self._count - mean.square().sum()
        variance = float(spread.clamp(min=0)) / len(mean)
        if not (math.isfinite(variance) and bool(mean.isfinite().all())):
            return LayerStatistics(math.nan, math.nan)
        return LayerStatistics(variance, effective_rank(self._rows))

    def _add_up(self, centred: torch.Tensor, counted: torch.Tensor) -> None:
        lengths = torch.linalg.vector_norm(centred, dim=2)
        # Clearing what does not count would be a pass over everything, so it is done only where
        # 0 times it would not be 0.
        stray = ~counted & ~lengths.isfinite()
        if stray.any():
            centred.masked_fill_(stray.unsqueeze(2), 0.0)
        self._sum += counted.to(centred.dtype).flatten() @ centred.flatten(0, 1)
        self._squares += torch.where(counted, lengths, 0.0).double().square().sum()


def over_rounds(found: Sequence[LayerStatistics], probes: Sequence[int]) -> LayerStatistics:
    """Mean of the statistics of each round, weighted by its probes.

    What is measured round by round is measured on no position twice. Rounds can differ in their
    means; so a merged model is read in the same rounds.
    """
    total = sum(probes)
    return LayerStatistics(
        sum(one.variance * count for one, count in zip(found, probes, strict=True)) / total,
        sum(one.effective_rank * count for one, count in zip(found, probes, strict=True)) / total,
    )


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
