"""One model's states after every layer, gathered batch by batch."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float32, Int64
from mergekit_collapse.states import storage
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.counted_positions import CountedPositions
from mergekit_collapse.states.layer_statistics import ActivationSample, over_rounds
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
        if layer not in self._samples:
            self._samples[layer] = [ActivationSample(one) for one in self._positions]
        first, *others = self._samples[layer]
        mask = batch.pooled.to(hidden.device)
        pooled_of = _mean if self._pooling == "mean" else partial(pool, pooling=self._pooling)
        parts = [
            pooled_of(states, mask[part].to(states.device))
            for part, states in first.parts(hidden, batch)
        ]
        for counted, sample in zip(self._positions[1:], others, strict=True):
            if counted.of(batch).total:
                sample.add(hidden, batch)
        pooled = torch.cat(parts).cpu().numpy()
        if self._pooled is None:
            shape = (self._depth + 1, self._probe_count, pooled.shape[1])
            self._pooled = storage.zeros(shape, "the states after every layer")
        self._pooled[layer, list(batch.probes)] = pooled
        for other, one in batch.repeats:
            self._pooled[layer, other] = self._pooled[layer, one]
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


def _mean(
    states: Float32[torch.Tensor, "sequence position feature"],
    mask: Int64[torch.Tensor, "sequence position"],
) -> Float32[torch.Tensor, "sequence feature"]:
    """``pool`` by the mean in one pass, which every layer pays; its rounding is another."""
    sums = torch.bmm(mask.float().unsqueeze(1), states).squeeze(1)
    if not sums.isfinite().all():
        # 0 * NaN is NaN, and may stand at padding.
        return pool(states, mask, "mean")
    return sums / mask.sum(dim=1, keepdim=True)
