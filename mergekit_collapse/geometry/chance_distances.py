"""How far apart two experts would be if they were unrelated: the yardstick of similarity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.geometry.rows import StateRows
from mergekit_collapse.shapes import Float64, Int64

MAX_PAIRS = 4096
# 1 GiB of float64: less than 4,096 pairs from 182 experts on.
MAX_VALUES = 2**27
FEATURES_PER_BLOCK = 4096
CANCELLED = 1e-6


@dataclass(frozen=True)
class ChanceDistances:
    """||h_i(x) - h_j(x')||/s for pairs of different probes; both orders of a pair are there.

    Attributes:
        probes: x and x' of each pair.
        distance: the distance, expert i at x and expert j at x'.
    """

    probes: Int64[np.ndarray, "pair 2"]
    distance: Float64[np.ndarray, "pair expert expert"]


def chance_distances(
    rows: StateRows, expert_count: int, scales_squared: Sequence[float], seed: int
) -> ChanceDistances | None:
    """Distances at chance, D̄°_ij = mean over pairs x ≠ x' of ||h_i(x) - h_j(x')|| / s.

    One seeded row stands for each probe. The probes are dealt at random into even groups and
    all ordered pairs within a group are taken: as many as fit into 4,096, which is all of them
    up to 64 probes. So every probe counts about equally, and each state is read once. From 182
    experts on it is as many as make 2^27 distances, which may leave probes out.

    Args:
        rows: finite states, not 0 where they must have norm 1 (``probe_distances`` has checked).
        expert_count: N; the base has no part in similarity.
        scales_squared: s² of each layer, in squared units of its states.
        seed: of the dealing.

    Returns:
        None where there are fewer than two probes.
    """
    rng = np.random.default_rng([seed, 1])
    starts = np.searchsorted(rows.probe_of_row, np.arange(rows.probe_count + 1))
    chosen = rng.integers(starts[:-1], starts[1:])
    most = max(2, min(MAX_PAIRS, MAX_VALUES // expert_count**2))
    groups = _deal(rng.permutation(rows.probe_count), most)
    if not groups:
        return None
    pairs, squares = [], []
    for group in groups:
        first, second = np.nonzero(~np.eye(len(group), dtype=bool))
        pairs.append(np.stack([group[first], group[second]], axis=1))
        total = np.zeros((len(first), expert_count, expert_count))
        for layer, scale in enumerate(scales_squared):
            table = _group_squares(rows, layer, chosen[group], expert_count)
            total += table.transpose(1, 3, 0, 2)[first, second] / scale
        squares.append(total / len(scales_squared))
    return ChanceDistances(np.concatenate(pairs).astype(np.int64), np.sqrt(np.concatenate(squares)))


def _deal(order: np.ndarray, most: int) -> list[np.ndarray]:
    """Even groups of two or more; the fewest whose ordered pairs number at most ``most``."""
    order = order[:most]
    for count in range(1, len(order) // 2 + 1):
        size, larger = divmod(len(order), count)
        if larger * (size + 1) * size + (count - larger) * size * (size - 1) <= most:
            return np.array_split(order, count)
    return []


def _group_squares(
    rows: StateRows, layer: int, chosen: np.ndarray, experts: int
) -> Float64[np.ndarray, "expert probe expert probe"]:
    """||h_i(x) - h_j(x')||² for all experts and probes of one group."""
    values, picked, count = rows.states.values[layer], rows.rows[chosen], len(chosen)
    width = values.shape[2]
    gram = np.zeros((experts * count, experts * count))
    for start in range(0, width, FEATURES_PER_BLOCK):
        features = slice(start, start + FEATURES_PER_BLOCK)
        part = np.concatenate([values[i, picked, features] for i in range(experts)])
        part = part.astype(np.float64)
        gram += part @ part.T
    energy = np.diag(gram).copy()
    if rows.unit:
        gram /= np.sqrt(np.outer(energy, energy))
        norm, energy = np.sqrt(energy), np.ones_like(energy)
    else:
        norm = np.ones_like(energy)
    both = energy[:, None] + energy
    squares = both - 2 * gram
    # Where the Gram identity cancels (two probes that read the same), subtract instead.
    for a, b in np.argwhere(squares <= CANCELLED * both):
        (i, x), (j, y) = divmod(a, count), divmod(b, count)
        first, second = values[i, picked[x]], values[j, picked[y]]
        difference = first.astype(np.float64) / norm[a] - second.astype(np.float64) / norm[b]
        squares[a, b] = difference @ difference
    table: Float64[np.ndarray, "expert probe expert probe"] = squares.reshape(
        experts, count, experts, count
    )
    return table
