"""One model's states after every layer, gathered batch by batch."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float32
from mergekit_collapse.states import storage
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.counted_positions import CountedPositions
from mergekit_collapse.states.layer_statistics import ActivationSample, over_rounds, sequence_chunks
from mergekit_collapse.states.pooling import Pooling, pool
from mergekit_collapse.states.states import LayerStatistics, ModelLayers


class LayerProfile:
    """Fills up a ``ModelLayers``; layers come in any order, a layer's batches one by one.

    Args:
        depth: L, the layers of the model.
        probe_count: P.
        pooling: of the recipe.
        batches: all that are to come, which fix the positions that are sampled.
        rounds: how many probes there are after each round, whose statistics are taken apart
            (``over_rounds``); empty where they come all at once.
    """

    def __init__(
        self,
        depth: int,
        probe_count: int,
        pooling: Pooling,
        batches: Sequence[Batch],
        rounds: Sequence[int] = (),
    ) -> None:
        self._pooling: Pooling = "mean" if pooling == "tokens" else pooling
        self._depth, self._probe_count = depth, probe_count
        ends = list(rounds) or [probe_count]
        self._rounds = [range(a, b) for a, b in itertools.pairwise([0, *ends])]
        self._positions = [CountedPositions(batches, among) for among in self._rounds]
        self._pooled: Float32[np.ndarray, "layer probe feature"] | None = None
        self._samples: dict[int, list[ActivationSample]] = {}
        self._statistics: dict[int, LayerStatistics] = {}

    def add(self, layer: int, batch: Batch, hidden: Any) -> bool:
        """Take the states of one batch after one layer, (sequence, position, feature).

        Returns:
            Whether all pooled states are finite.
        """
        mask = batch.pooled.to(hidden.device)
        parts = [
            pool(hidden[part].float(), mask[part], self._pooling)
            for part in sequence_chunks(hidden)
        ]
        pooled = torch.cat(parts).cpu().numpy()
        if self._pooled is None:
            shape = (self._depth + 1, self._probe_count, pooled.shape[1])
            self._pooled = storage.zeros(shape, "the states after every layer")
        if layer not in self._samples:
            self._samples[layer] = [ActivationSample(one) for one in self._positions]
        self._pooled[layer, list(batch.probes)] = pooled
        for probes, sample in zip(self._rounds, self._samples[layer], strict=True):
            if any(probe in probes for probe in batch.probes):
                sample.add(hidden, batch)
        return bool(np.isfinite(pooled).all())

    def add_all(self, batch: Batch, hidden: Sequence[Any]) -> None:
        """Take the states of one batch after every layer.

        Raises:
            EvaluationError: a state is NaN or infinite.
        """
        for layer, states in enumerate(hidden):
            if not self.add(layer, batch, states):
                raise EvaluationError(
                    f"the hidden states after layer {layer} are NaN or infinite; the model "
                    "overflows or is broken, try it in transformers in float32"
                )

    def close(self, layer: int) -> tuple[Float32[np.ndarray, "probe feature"], LayerStatistics]:
        """The states of a layer of which every batch was added, and their spread."""
        assert self._pooled is not None
        found = over_rounds(
            [sample.statistics() for sample in self._samples.pop(layer)],
            [len(probes) for probes in self._rounds],
        )
        self._statistics[layer] = found
        return self._pooled[layer], found

    def layers(self) -> ModelLayers:
        """The finished record, after every layer was given all its batches."""
        assert self._pooled is not None
        for layer in list(self._samples):
            self.close(layer)
        numbers = range(self._depth + 1)
        return ModelLayers(tuple(self._pooled), tuple(self._statistics[k] for k in numbers))
