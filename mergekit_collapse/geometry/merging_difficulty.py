"""The paper's Merging Difficulty Score, in the three readings of its similarity."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mergekit_collapse.shapes import Float64

Reading = Literal["unrelated", "group_max", "group_minmax"]
READINGS: tuple[Reading, ...] = get_args(Reading)

INFINITE = "infinite"
ALL_EQUAL = "all distances are equal, as they always are between two experts"
NO_CHANCE = "fewer than two probes"
ROUNDING = 1e-12


@dataclass(frozen=True)
class MergingDifficulty:
    """One reading. No entry is NaN or infinite: None, with its reason, stands for those.

    Attributes:
        reading: which of the three.
        similarity: S in [0, 1], diagonal 1, dimensionless; None where it is undefined.
        mds: per expert 1 / mean_{j != i} S_ij, at least 1.
        reasons: per expert, why ``mds`` is None: ``infinite`` is over every limit, any other
            reason means that it cannot be evaluated.
    """

    reading: Reading
    similarity: Float64[np.ndarray, "expert expert"] | None
    mds: tuple[float | None, ...]
    reasons: tuple[str | None, ...]


def merging_difficulty(
    reading: Reading,
    distance: Float64[np.ndarray, "expert expert"],
    chance: Float64[np.ndarray, "expert expert"] | None,
) -> MergingDifficulty:
    """Similarity and Merging Difficulty Score of every expert.

        MDS_i = 1 / mean_{j != i} S_ij

    Args:
        reading: as in ``similarities``.
        distance: D̄ between experts, without the base; any units.
        chance: D̄° in the same units; None where there are fewer than two probes.

    Source: arXiv 2603.09463, Eq. 2 and 3.
    """
    similarity = similarities(reading, distance, chance)
    count = len(distance)
    if not np.isfinite(similarity).all():
        reason = NO_CHANCE if reading == "unrelated" else ALL_EQUAL
        return MergingDifficulty(reading, None, (None,) * count, (reason,) * count)
    scores = difficulty_scores(similarity)
    mds = tuple(float(s) if np.isfinite(s) else None for s in scores)
    reasons = tuple(None if np.isfinite(s) else INFINITE for s in scores)
    return MergingDifficulty(reading, similarity, mds, reasons)


def similarities(
    reading: Reading,
    distance: Float64[np.ndarray, "*batch expert expert"],
    chance: Float64[np.ndarray, "*batch expert expert"] | None,
) -> Float64[np.ndarray, "*batch expert expert"]:
    """Similarity of every two experts; NaN throughout where it is undefined.

        unrelated:    S = 1 - D̄_ij / D̄°_ij, clipped to [0, 1]
        group_max:    S = 1 - D̄_ij / D̄_max
        group_minmax: S = (D̄_max - D̄_ij) / (D̄_max - D̄_min)

    D̄_ij = 0 gives S = 1. Maximum and minimum leave out the diagonal. Invariant to rotation,
    and to scale: only ratios of distances enter. Differences below 1e-12 are rounding.
    """
    count = distance.shape[-1]
    if reading == "unrelated":
        if chance is None:
            return np.full_like(distance, np.nan)
        unreachable = np.where(np.isnan(chance), np.nan, np.inf)
        ratio = np.divide(distance, chance, out=unreachable, where=chance > 0)
    else:
        others = distance[..., ~np.eye(count, dtype=bool)]
        high = others.max(axis=-1)[..., None, None]
        low = np.zeros_like(high)
        if reading == "group_minmax":
            low = others.min(axis=-1)[..., None, None]
        span = high - low
        apart = np.broadcast_to(span > ROUNDING * high, distance.shape)
        ratio = np.full_like(distance, np.nan)
        np.divide(distance - low, span, out=ratio, where=apart)
    similarity: Float64[np.ndarray, "*batch expert expert"] = np.clip(1 - ratio, 0.0, 1.0)
    similarity[similarity < ROUNDING] = 0.0
    similarity[distance == 0] = 1.0
    diagonal = np.arange(count)
    similarity[..., diagonal, diagonal] = 1.0
    return similarity


def difficulty_scores(
    similarity: Float64[np.ndarray, "*batch expert expert"],
) -> Float64[np.ndarray, "*batch expert"]:
    """1 / mean_{j != i} S_ij; infinite where that mean is 0, NaN where S is."""
    mean = (similarity.sum(axis=-1) - 1) / (similarity.shape[-1] - 1)
    mean[mean < ROUNDING] = 0.0
    scores: Float64[np.ndarray, "*batch expert"] = np.full_like(mean, np.inf)
    np.divide(1.0, mean, out=scores, where=mean != 0)
    return scores
