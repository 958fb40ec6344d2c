"""Experts in an order that puts those that are alike side by side."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from mergekit_collapse.shapes import Float64

# Beyond, the best order of a tree's leaves takes minutes, and no one reads the table.
OPTIMAL_UP_TO = 100


def order_by_similarity(squared: Float64[np.ndarray, "expert expert"]) -> tuple[int, ...]:
    """Leaves of the average-linkage tree of D², turned so that neighbours are near.

    Of the two directions the one that begins with the earlier expert is taken.

    Args:
        squared: D² between experts, any units, finite, not negative. An asymmetric matrix is
            read as the mean of its two halves.
    """
    count = len(squared)
    largest = float(squared.max(initial=0.0))
    if count < 3 or largest <= 0:
        return tuple(range(count))
    scaled = squared / largest
    even = (scaled + scaled.T) / 2
    np.fill_diagonal(even, 0)
    condensed = squareform(even, checks=False)
    tree = linkage(condensed, method="average")
    if count <= OPTIMAL_UP_TO:
        tree = optimal_leaf_ordering(tree, condensed)
    order = tuple(int(leaf) for leaf in leaves_list(tree))
    return order if order[0] < order[-1] else order[::-1]
