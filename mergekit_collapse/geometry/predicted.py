"""Distortions that follow from the distances alone, for given weights."""

import numpy as np

from mergekit_collapse.shapes import Float64

SUM_TOLERANCE = 1e-6


def predicted_distortion(
    squared: Float64[np.ndarray, "*batch model model"], coefficients: Float64[np.ndarray, " model"]
) -> Float64[np.ndarray, "*batch model"]:
    """Distortion of every model when Σ_j α_j h_j takes its place.

        δ_i(α) = Σ_j α_j D²_ij - ½ Σ_jk α_j α_k D²_jk  =  E||h_i - Σ_j α_j h_j||² / s²

    Exact for a merge whose states are that mixture (cross-task linearity, the assumption of
    Theorem 1 of arXiv 2603.09463); the weights may be negative.

    Args:
        squared: D², units of s².
        coefficients: α over experts, then the base if any; its sum must be 1.

    Raises:
        ValueError: the sum is not 1, for which the formula is void.
    """
    if not abs(float(coefficients.sum()) - 1) <= SUM_TOLERANCE:
        raise ValueError(f"coefficients sum to {coefficients.sum():.6g}: the formula needs 1")
    slope = squared @ coefficients
    result: Float64[np.ndarray, "*batch model"] = np.maximum(
        slope - (slope @ coefficients)[..., None] / 2, 0.0
    )
    return result
