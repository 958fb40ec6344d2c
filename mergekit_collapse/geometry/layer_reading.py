"""One layer of the merged model, held against the experts at the same layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float32


@dataclass(frozen=True)
class LayerReading:
    """The merged model after one layer, held against the experts at the same layer.

    Attributes:
        layer: its number in the merged model; L is after the final norm.
        distortion: per expert, in units of the experts' variance at this layer; None for one
            that has no such layer, or where none varies.
        variance, effective_rank: of the merged model's activations.
        variance_ratio, rank_ratio: the same over the mean of the experts that have the layer;
            None where none has it, where they do not vary or where no position counts.
    """

    layer: int
    distortion: tuple[float | None, ...]
    variance: float
    variance_ratio: float | None
    effective_rank: float
    rank_ratio: float | None

    @property
    def worst(self) -> float | None:
        """The largest distortion; NaN if one is, None if no expert has the layer."""
        present = [d for d in self.distortion if d is not None]
        return float(np.max(present)) if present else None


@dataclass(frozen=True)
class LayerStates:
    """One model after one layer: a row per probe, and how its activations spread."""

    pooled: Float32[np.ndarray, "probe feature"]
    variance: float
    effective_rank: float


def read_layer(
    layer: int, merged: LayerStates, experts: Sequence[LayerStates | None]
) -> LayerReading:
    """Hold one layer of the merged model against the experts.

        δ_i = mean_x ||h_i(x) - h(x)||² / s²,  s² = mean_i tr Cov_x h_i

    NaN in anyone's states or spread gives NaN here, which every limit refuses.

    Source: arXiv 2603.04972 for variance and effective rank as signs of collapse.
    """
    present = [one for one in experts if one is not None]
    with np.errstate(invalid="ignore", over="ignore"):
        spread = [float(one.pooled.astype(np.float64).var(axis=0).sum()) for one in present]
    scale = float(np.mean(spread)) if spread else 0.0
    ours = merged.pooled.astype(np.float64)
    distortion: list[float | None] = []
    for one in experts:
        if one is None or scale == 0 or one.pooled.shape != merged.pooled.shape:
            distortion.append(None)
            continue
        difference = one.pooled - ours
        with np.errstate(invalid="ignore", over="ignore"):
            square = np.einsum("pf,pf->", difference, difference)
        distortion.append(float(square) / len(ours) / scale)
    return LayerReading(
        layer,
        tuple(distortion),
        merged.variance,
        _ratio(merged.variance, [one.variance for one in present]),
        merged.effective_rank,
        _ratio(merged.effective_rank, [one.effective_rank for one in present]),
    )


def _ratio(value: float, others: Sequence[float]) -> float | None:
    # Of probes that have one token each no position counts, in any model alike.
    if not others or np.isnan(others).all():
        return None
    mean = float(np.mean(others))
    return None if mean == 0 else value / mean
