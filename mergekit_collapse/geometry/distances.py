"""Distances between models, probe by probe: what every other number is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.geometry.pair_squares import MANY, pair_squares
from mergekit_collapse.geometry.probe_parts import single_parts
from mergekit_collapse.geometry.rows import BLOCK_BYTES, StateRows
from mergekit_collapse.shapes import Float64, Int64


@dataclass(frozen=True)
class ProbeDistances:
    """Distances between every two models on every part of the probes, divided by the scale.

    A part is one probe, but where there are too many models for that (``probe_parts``); it has
    the mean over its probes, and a probe with several rows the mean over them. The mean over
    probes gives D̄ (the paper's similarity) and D² (the paper's theorem); √D² is Euclidean, D̄
    is a metric.

    Attributes:
        distance: mean over rows of √(mean over layers of ||h_i - h_j||²/s²).
        layer_squared: mean over rows of ||h_i - h_j||²/s², for each layer.
        part_of_probe: the part of each probe.
    """

    distance: Float64[np.ndarray, "part model model"]
    layer_squared: Float64[np.ndarray, "layer part model model"]
    part_of_probe: Int64[np.ndarray, " probe"]

    @property
    def squared(self) -> Float64[np.ndarray, "part model model"]:
        """Mean over layers: the layers' states are a direct sum, each in its own scale."""
        result: Float64[np.ndarray, "part model model"] = self.layer_squared.mean(axis=0)
        return result

    @property
    def mean_distance(self) -> Float64[np.ndarray, "model model"]:
        """D̄, over probes."""
        return self._mean(self.distance)

    @property
    def mean_squared(self) -> Float64[np.ndarray, "model model"]:
        """D², over probes and layers."""
        return self._mean(self.squared if len(self.layer_squared) > 1 else self.layer_squared[0])

    @property
    def layer_mean_squared(self) -> Float64[np.ndarray, "layer model model"]:
        """D² of each layer, over probes."""
        return np.stack([self._mean(one) for one in self.layer_squared])

    def _mean(self, values: np.ndarray) -> Float64[np.ndarray, "model model"]:
        probes = len(self.part_of_probe)
        if len(values) == probes:
            result: Float64[np.ndarray, "model model"] = values.mean(axis=0)
            return result
        share = np.bincount(self.part_of_probe) / probes
        return np.tensordot(share, values, 1)


def probe_distances(
    rows: StateRows,
    scales_squared: Sequence[float],
    part_of_probe: Int64[np.ndarray, " probe"] | None = None,
) -> ProbeDistances:
    """Distances of all models on all probes of ``rows``.

        D²_ij(x) = mean_l ||h_i(x) - h_j(x)||² / s_l²        D_ij(x) = sqrt(D²_ij(x))

    Up to 64 models subtracted, then squared, in float64: the Gram identity cancels to NaN for
    near twins. Beyond, by products of matrices in float32 that see to near twins
    (``pair_squares``); a row of all models is in memory at a time, and no N × N × d.

    Args:
        rows: states, of which a few rows at a time are held in float64.
        scales_squared: s² of each layer, in squared units of its states.
        part_of_probe: numbered from 0; each probe by itself if None.

    Raises:
        EvaluationError: a state is NaN or infinite, or 0 where it must have norm 1.

    Source: arXiv 2603.09463, the distances of Eq. 2 (D̄) and of Theorem 1 (D²).
    """
    parts = single_parts(rows.probe_count) if part_of_probe is None else part_of_probe
    models = len(rows.models)
    weight = rows.row_weight / np.bincount(parts)[parts[rows.probe_of_row]]
    shape = (int(parts.max()) + 1, models, models)
    distance, layer_squared = np.zeros(shape), np.zeros((len(scales_squared), *shape))
    for row, squares in _squares_of_rows(rows):
        part = parts[rows.probe_of_row[row]]
        total = np.zeros((models, models))
        for layer, scale in enumerate(scales_squared):
            squares[layer] /= scale
            total += squares[layer]
            squares[layer] *= weight[row]
            layer_squared[layer, part] += squares[layer]
        total /= len(scales_squared)
        np.sqrt(total, out=total)
        total *= weight[row]
        distance[part] += total
    return ProbeDistances(distance, layer_squared, parts)


def _squares_of_rows(
    rows: StateRows,
) -> Iterator[tuple[int, list[Float64[np.ndarray, "model model"]]]]:
    """||h_i - h_j||² at each row, for each layer, before any scale."""
    models, layers = range(len(rows.models)), range(len(rows.states.values))
    if len(models) >= MANY:
        for row in range(len(rows.rows)):
            squares = [pair_squares(rows.model_row(layer, row)) for layer in layers]
            for layer, square in zip(layers, squares, strict=True):
                if not np.isfinite(square).all():
                    rows.refuse_row(layer, row)
            yield row, squares
        return
    widths = [v.shape[2] for v in rows.states.values]
    step = max(1, BLOCK_BYTES // (8 * len(models) * max(widths)))
    for parts in zip(*(rows.blocks(layer, models, step) for layer in layers), strict=True):
        whole = [_row_squares(block) for _, block in parts]
        for place in range(len(whole[0])):
            yield parts[0][0].start + place, [square[place] for square in whole]


def _row_squares(
    block: Float64[np.ndarray, "model row feature"],
) -> Float64[np.ndarray, "row model model"]:
    models, count, _ = block.shape
    squares = np.zeros((count, models, models))
    difference = np.empty_like(block[0])
    for i in range(models):
        for j in range(i):
            np.subtract(block[i], block[j], out=difference)
            squares[:, i, j] = np.einsum("rf,rf->r", difference, difference)
            squares[:, j, i] = squares[:, i, j]
    return squares
