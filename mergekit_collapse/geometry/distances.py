"""Distances between models, probe by probe: what every other number is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.geometry.rows import BLOCK_BYTES, StateRows
from mergekit_collapse.shapes import Float64


@dataclass(frozen=True)
class ProbeDistances:
    """Distances between every two models on every probe, divided by the scale.

    A probe with several rows has the mean over them. The mean over probes gives D̄ (the
    paper's similarity) and D² (the paper's theorem); √D² is Euclidean, D̄ is a metric.

    Attributes:
        distance: mean over rows of √(mean over layers of ||h_i - h_j||²/s²).
        layer_squared: mean over rows of ||h_i - h_j||²/s², for each layer.
    """

    distance: Float64[np.ndarray, "probe model model"]
    layer_squared: Float64[np.ndarray, "layer probe model model"]

    @property
    def squared(self) -> Float64[np.ndarray, "probe model model"]:
        """Mean over layers: the layers' states are a direct sum, each in its own scale."""
        result: Float64[np.ndarray, "probe model model"] = self.layer_squared.mean(axis=0)
        return result


def probe_distances(rows: StateRows, scales_squared: Sequence[float]) -> ProbeDistances:
    """Distances of all models on all probes of ``rows``.

        D²_ij(x) = mean_l ||h_i(x) - h_j(x)||² / s_l²        D_ij(x) = sqrt(D²_ij(x))

    Subtracted, then squared, in float64: the Gram identity cancels to NaN for near twins.

    Args:
        rows: states, of which a few rows at a time are held in float64.
        scales_squared: s² of each layer, in squared units of its states.

    Raises:
        EvaluationError: a state is NaN or infinite, or 0 where it must have norm 1.

    Source: arXiv 2603.09463, the distances of Eq. 2 (D̄) and of Theorem 1 (D²).
    """
    models = range(len(rows.models))
    widths = [v.shape[2] for v in rows.states.values]
    step = max(1, BLOCK_BYTES // (8 * len(models) * max(widths)))
    weight, probes = rows.row_weight, rows.probe_count
    shape = (probes, len(models), len(models))
    distance, layer_squared = np.zeros(shape), np.zeros((len(widths), *shape))
    layers = [rows.blocks(layer, models, step) for layer in range(len(widths))]
    for parts in zip(*layers, strict=True):
        part = parts[0][0]
        share = weight[part, None, None]
        squares = [_row_squares(b) / s for (_, b), s in zip(parts, scales_squared, strict=True)]
        for total, square in zip(layer_squared, squares, strict=True):
            np.add.at(total, rows.probe_of_row[part], square * share)
        root = np.sqrt(sum(squares, np.zeros_like(squares[0])) / len(squares))
        np.add.at(distance, rows.probe_of_row[part], root * share)
    return ProbeDistances(distance, layer_squared)


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
