"""What a distance is divided by, so that budgets mean the same for every model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.pair_squares import FEATURES_PER_BLOCK, LARGEST, MANY, SMALLEST
from mergekit_collapse.geometry.rows import StateRows
from mergekit_collapse.shapes import Float64

Scale = Literal["variance", "rms", "unit", "none"]

DEGENERATE = 1e-12


@dataclass(frozen=True)
class LayerScale:
    """s² of one layer, in squared units of its states, on the probes and on each resample.

    Attributes:
        squared: s².
        resampled: s² on each resample, times the factor that makes their mean s² (drawing
            with replacement shrinks a variance); NaN where the resample has no spread.
    """

    squared: float
    resampled: Float64[np.ndarray, " resample"]


def layer_scales(
    rows: StateRows,
    experts: Sequence[int],
    scale: Scale,
    weights: Float64[np.ndarray, "resample probe"],
    subject: str,
) -> tuple[LayerScale, ...]:
    """Scale of every layer.

        variance: s² = mean over experts of tr Cov(h_i), population covariance over probes
        rms:      s² = mean over experts and probes of ||h_i||²
        unit:     s² = 1, each row has norm 1 already
        none:     s² = 1

    Every row counts; probes count equally. Invariant to rotation; ``variance`` to translation
    too. D²/s² is invariant to the size of the states under all but ``none``.

    Args:
        rows: states of the probes.
        experts: models over which the mean goes, without the base.
        weights: each resample's weight of each probe, rows sum to 1.
        subject: whose probes these are, for the message.

    Raises:
        EvaluationError: s² <= 1e-12 of the mean energy, so the probes are not told apart.
    """
    return tuple(
        _layer_scale(rows, layer, experts, scale, weights=weights, subject=subject)
        for layer in range(len(rows.states.values))
    )


def _layer_scale(
    rows: StateRows,
    layer: int,
    experts: Sequence[int],
    scale: Scale,
    *,
    weights: Float64[np.ndarray, "resample probe"],
    subject: str,
) -> LayerScale:
    if scale in ("unit", "none"):
        return LayerScale(1.0, np.ones(len(weights)))
    probes = rows.probe_count
    variance = scale == "variance"
    moments = _fast_moments(rows, layer, experts, variance)
    if moments is None:
        moments = _moments(rows, layer, experts, variance)
    spread, energy, gram = moments
    squared = float(spread.mean()) / len(experts)
    # Written so that NaN is refused.
    if not squared > DEGENERATE * energy / (probes * len(experts)):
        raise EvaluationError(
            f"scale {scale} is degenerate on {subject}: the hidden states of {probes} probes have "
            f"s² = {squared:.3g} (layer {rows.states.layers[layer]}); "
            "add different probes or set another scale"
        )
    resampled = weights @ spread
    if gram is not None:
        # tr Cov = E||h - c||² - ||E(h - c)||², for any c: small here, so nothing cancels.
        resampled -= ((weights @ gram) * weights).sum(axis=1)
    resampled *= squared / float(resampled.mean())
    return LayerScale(squared, np.where(resampled > DEGENERATE * squared, resampled, np.nan))


_Moments = tuple[Float64[np.ndarray, " probe"], float, Float64[np.ndarray, "probe probe"] | None]


def _moments(rows: StateRows, layer: int, experts: Sequence[int], centred: bool) -> _Moments:
    """Sums over experts: ||h - c||² and ||h||² of probes, and the Gram matrix of h - c."""
    probes = rows.probe_count
    spread, energy = np.zeros(probes), 0.0
    gram = np.zeros((probes, probes)) if centred else None
    for expert in experts:
        means = _probe_means(rows, layer, expert)
        centre = means.mean(axis=0) if centred else np.zeros(means.shape[1])
        for part, block in rows.blocks(layer, [expert]):
            share = rows.row_weight[part]
            energy += float(np.einsum("rf,rf->r", block[0], block[0]) @ share)
            states = block[0] - centre
            squares = np.einsum("rf,rf->r", states, states) * share
            np.add.at(spread, rows.probe_of_row[part], squares)
        if gram is not None:
            means -= centre
            gram += means @ means.T
    return spread, energy, gram


def _fast_moments(
    rows: StateRows, layer: int, experts: Sequence[int], centred: bool
) -> _Moments | None:
    """The same for many experts with a row a probe, by products in float32; None elsewhere.

    None as well where float32 has no room, so that what is NaN is named by the slow way.
    """
    values, probes = rows.states.values[layer], rows.probe_count
    if len(experts) < MANY or len(rows.rows) != probes:
        return None
    total, energy = np.zeros((probes, probes)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for expert in experts:
            for start in range(0, values.shape[2], FEATURES_PER_BLOCK):
                block = values[expert, rows.rows, start : start + FEATURES_PER_BLOCK]
                centre = block.mean(axis=0, dtype=np.float64) * centred
                states = block - centre.astype(np.float32)
                total += states @ states.T
                energy += probes * float(centre @ centre)
    spread = np.diag(total).copy()
    # What was taken off is the mean but for rounding, so the parts of ||h||² add up.
    energy += float(spread.sum())
    if not SMALLEST < float(spread.min()) <= float(spread.max()) < LARGEST:
        return None
    return spread, energy, total if centred else None


def _probe_means(rows: StateRows, layer: int, model: int) -> Float64[np.ndarray, "probe feature"]:
    means = np.zeros((rows.probe_count, rows.states.values[layer].shape[2]))
    for part, block in rows.blocks(layer, [model]):
        np.add.at(means, rows.probe_of_row[part], block[0] * rows.row_weight[part, None])
    return means
