"""Which readings of the paper's similarity can have given its printed scores.

A matrix is a mean over probes of Euclidean distances if and only if it is a non-negative sum of
cuts, matrices that are 1 between two sides and 0 within each: Euclidean distances embed in L1,
L1 is a sum of cuts, and a cut is one probe whose states are 0 on one side and 1 on the other.
So a printed row of scores is consistent with a reading if and only if a linear program over
cuts has a solution, and the solution is a set of hidden states that has these scores.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from mergekit_collapse.shapes import Float64

# Scores are printed to two decimals.
HALF = 0.005

# What linprog's status says.
_SOLVED, _INFEASIBLE = 0, 2


@dataclass(frozen=True)
class Consistency:
    """What a row of scores implies.

    Attributes:
        furthest: every pair of experts that can be the furthest apart under ``group_max``,
            S = 1 - D̄/D̄_max. Empty where no hidden states have these scores.
        minmax: whether some hidden states have them under ``group_minmax``,
            S = (D̄_max - D̄)/(D̄_max - D̄_min).
        mean_distance: mean of D̄/D̄_max over pairs under ``group_max``, 1 - mean of 1/MDS.
    """

    furthest: tuple[tuple[int, int], ...]
    minmax: bool
    mean_distance: float


def consistency(mds: Float64[np.ndarray, " expert"], half: float = HALF) -> Consistency:
    """Hold printed scores against both group-relative readings.

    Args:
        mds: 1 / mean_{j != i} S_ij per expert, each to within ``half``.

    Raises:
        ValueError: the solver gave no answer.
    """
    pairs = list(itertools.combinations(range(len(mds)), 2))
    furthest = tuple(pair for pair in pairs if group_max_states(mds, pair, half) is not None)
    minmax = any(
        group_minmax_states(mds, far, near, half) is not None
        for far, near in _likeliest_first(pairs, mds)
    )
    return Consistency(furthest, minmax, float(1 - (1 / mds).mean()))


def group_max_states(
    mds: Float64[np.ndarray, " expert"], furthest: tuple[int, int], half: float = HALF
) -> Float64[np.ndarray, "expert probe 1"] | None:
    """Hidden states with these scores under ``group_max``, whose furthest pair is given.

    Returns:
        States of width 1; None where no states of any width have these scores.
    """
    return _solve(mds, furthest, None, half)


def group_minmax_states(
    mds: Float64[np.ndarray, " expert"],
    furthest: tuple[int, int],
    closest: tuple[int, int],
    half: float = HALF,
) -> Float64[np.ndarray, "expert probe 1"] | None:
    """Likewise under ``group_minmax``, whose closest pair is given as well."""
    return _solve(mds, furthest, closest, half)


def _solve(
    mds: Float64[np.ndarray, " expert"],
    furthest: tuple[int, int],
    closest: tuple[int, int] | None,
    half: float,
) -> Float64[np.ndarray, "expert probe 1"] | None:
    """Unknowns: the weight of each cut, and u = D̄_min / (D̄_max - D̄_min), with D̄_max - D̄_min = 1.

    For ``group_max`` u is 0, and so D̄_max = 1. Row by row (N - 1)/MDS_i = Σ_j S_ij, where
    S_ij = 1 + u - D̄_ij lies in [0, 1] and is 0 for the furthest pair, 1 for the closest.
    """
    count = len(mds)
    sides = _sides(count)
    pairs = list(itertools.combinations(range(count), 2))
    # One row a pair; times the unknowns it is S - 1.
    similar = np.array([[*-np.abs(sides[i] - sides[j]), 1.0] for i, j in pairs])
    of_expert = np.array([[float(i in pair) for pair in pairs] for i in range(count)])
    low, high = ((count - 1) / (mds + sign * half) - (count - 1) for sign in (1, -1))
    fixed = {furthest: -1.0} | ({closest: 0.0} if closest is not None else {})
    found = linprog(
        np.zeros(similar.shape[1]),
        A_ub=np.vstack([of_expert @ similar, -of_expert @ similar, similar, -similar]),
        b_ub=np.concatenate([high, -low, np.zeros(len(pairs)), np.ones(len(pairs))]),
        A_eq=similar[[pairs.index(pair) for pair in fixed]],
        b_eq=list(fixed.values()),
        bounds=[(0, None)] * sides.shape[1] + [(0, 0 if closest is None else None)],
        method="highs",
    )
    if found.status == _INFEASIBLE:
        return None
    if found.status != _SOLVED:
        raise ValueError(f"the linear program of scores {mds.tolist()} failed: {found.message}")
    # The mean over probes is to give back the sum over cuts.
    states: Float64[np.ndarray, "expert probe 1"] = sides[:, :, None] * (
        found.x[:-1, None] * sides.shape[1]
    )
    return states


def _sides(count: int) -> Float64[np.ndarray, "expert cut"]:
    """0 or 1 per expert and cut; a cut and its mirror image are the same, the last is on side 0."""
    cuts = np.arange(1, 2 ** (count - 1))
    sides: Float64[np.ndarray, "expert cut"] = (cuts >> np.arange(count)[:, None] & 1) * 1.0
    return sides


def _likeliest_first(
    pairs: list[tuple[int, int]], mds: Float64[np.ndarray, " expert"]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Hard experts are far from each other, easy ones close."""
    by_score = sorted(pairs, key=lambda pair: -float(mds[list(pair)].sum()))
    return [(far, near) for far in by_score for near in reversed(by_score) if far != near]
