"""What the diameter alone says about the best and the worst merge."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64


@dataclass(frozen=True)
class Bounds:
    """Bounds on the worst distortion of a merge, all in the units of D².

    converse <= r² <= jung <= (N-1)/(2N)·Δ². ``corollary`` is the paper's value; it
    under-counts the dimension when N > d + 1, where r² can exceed it.

    Attributes:
        diameter_squared: Δ² = max_ij D²_ij over experts.
        diameter_pair: the two experts that are Δ apart.
        converse: Δ²/4, below which no merge gets.
        jung: k/(2(k+1))·Δ², which some convex merge attains under linearity.
        jung_dimension: k, what the N points span: rank of the centred Gram matrix.
        corollary: d/(2(d+1))·Δ² at the paper's d. At most a budget exactly where the paper's
            Corollary 1 calls the experts mergeable: Δ² <= 2(d+1)/d · budget.
        dimension: d, features of a state, summed over layers.
    """

    diameter_squared: float
    diameter_pair: tuple[int, int]
    converse: float
    jung: float
    jung_dimension: int
    corollary: float
    dimension: int


def distance_bounds(squared: Float64[np.ndarray, "expert expert"], dimension: int) -> Bounds:
    """Theorem 1 and Corollary 1 of arXiv 2603.09463, and Jung at the dimension really spanned.

    Args:
        squared: D² between experts, without the base.
        dimension: d.
    """
    farthest = np.unravel_index(np.argmax(squared), squared.shape)
    first, second = sorted(int(i) for i in farthest)
    diameter = float(squared[first, second])
    span = span_dimension(squared)
    return Bounds(
        diameter_squared=diameter,
        diameter_pair=(first, second),
        converse=diameter / 4,
        jung=_jung(span) * diameter,
        jung_dimension=span,
        corollary=_jung(dimension) * diameter,
        dimension=dimension,
    )


def span_dimension(squared: Float64[np.ndarray, "expert expert"]) -> int:
    """Rank of the centred Gram matrix G = -½ J D² J, J = I - 11'/N; at most N - 1.

    Only rounding (16 N machine epsilons of the largest eigenvalue) counts as zero: a rank
    too high loosens the bound, one too low would make it wrong.
    """
    count = len(squared)
    centred = squared - squared.mean(axis=0)
    gram = (centred.mean(axis=1, keepdims=True) - centred) / 2
    values = np.linalg.eigvalsh(gram)
    if not values[-1] > 0:
        return 0
    rank = int((values > 16 * count * np.finfo(np.float64).eps * values[-1]).sum())
    return min(rank, count - 1)


def _jung(dimension: int) -> float:
    """Jung's theorem: r² <= k/(2(k+1)) Δ² in k dimensions."""
    return dimension / (2 * (dimension + 1))
