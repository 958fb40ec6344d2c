"""Squared distances between many models at one row, at the rate of matrix products."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from mergekit_collapse.shapes import Bool, Float32, Float64, Int64

# With fewer models subtraction is quick, and exact.
MANY = 65
FEATURES_PER_BLOCK = 1024
CLOSE = 0.05
FEW = 8
# Squares of float32 are neither lost nor infinite between these.
SMALLEST, LARGEST = 1e-25, 1e30


@dataclass(frozen=True)
class ModelRow:
    """One row of all models, each divided by its norm if ``norms`` are given.

    Read a few features at a time, so that it may lie in a file.
    """

    values: Float32[np.ndarray, "model feature"]
    norms: Float64[np.ndarray, " model"] | None = None

    def blocks(self, models: Int64[np.ndarray, " some"]) -> Iterator[np.ndarray]:
        """Float32 as it is stored, float64 where it is divided."""
        whole = len(models) == len(self.values)
        for start in range(0, self.values.shape[1], FEATURES_PER_BLOCK):
            features = slice(start, start + FEATURES_PER_BLOCK)
            block = self.values[:, features] if whole else self.values[models, features]
            yield block if self.norms is None else block / self.norms[models, None]


def pair_squares(row: ModelRow) -> Float64[np.ndarray, "model model"]:
    """||h_i - h_j||² of every two models, where there are many.

        ||h_i - h_j||² = e_i + e_j - 2 y_i·y_j,  y_i = h_i - c,  e_i = ||y_i||²,  any c

    y in float32, products of 1,024 features in float32, their sum in float64. With u = 2^-24
    the error is below 2 · 1028 u · (e_i + e_j) whatever the order of summation, so a pair with
    less than 0.05 (e_i + e_j) is done again: with the pairs that it hangs together with by such
    pairs, around one of them; where those are few or do not fall apart any more, by subtraction
    in float64. So the error is below 0.25 % of ||h_i - h_j||² at the very worst, and about 1e-6
    where roundings do not all point one way. Equal models are at exactly 0; nothing is negative.

    Args:
        row: where it is not finite, all of the result is NaN.
    """
    count = len(row.values)
    squares = np.zeros((count, count))
    _fill(squares, row, np.arange(count, dtype=np.int64), first=True)
    return squares


def _fill(
    squares: Float64[np.ndarray, "model model"],
    row: ModelRow,
    models: Int64[np.ndarray, " some"],
    *,
    first: bool,
) -> None:
    found, close = _by_products(row, models, centred_on_mean=first)
    whole = len(models) == len(squares)
    if whole:
        squares[:] = found
    else:
        squares[np.ix_(models, models)] = found
    if not close.any():
        return
    _, label = connected_components(csr_array(close), directed=False)
    for group in np.flatnonzero(np.bincount(label) > 1):
        inside = np.flatnonzero(label == group)
        if len(inside) > FEW and (first or len(inside) < len(models)):
            _fill(squares, row, models[inside], first=False)
        else:
            _subtract(squares, row, models[inside], close[np.ix_(inside, inside)])


def _by_products(
    row: ModelRow, models: Int64[np.ndarray, " some"], *, centred_on_mean: bool
) -> tuple[Float64[np.ndarray, "some some"], Bool[np.ndarray, "some some"]]:
    """Squared distances, and which of them lost too many digits."""
    gram = _gram(row, models, centred_on_mean, np.float32)
    if not SMALLEST < float(np.diag(gram).max(initial=0.0)) < LARGEST:
        gram = _gram(row, models, centred_on_mean, np.float64)
    if not np.isfinite(gram).all():
        return np.full_like(gram, np.nan), np.zeros(gram.shape, dtype=bool)
    energy = np.diag(gram).copy()
    both = energy[:, None] + energy
    gram *= -2
    gram += both
    np.fill_diagonal(gram, 0.0)
    both *= CLOSE
    # Models that equal the centre have energy 0, and are at exactly 0 from one another.
    close = gram < both
    np.fill_diagonal(close, False)
    return gram, close


def _gram(
    row: ModelRow, models: Int64[np.ndarray, " some"], centred_on_mean: bool, dtype: type
) -> Float64[np.ndarray, "some some"]:
    gram = np.zeros((len(models), len(models)))
    share = np.full(len(models), 1 / len(models))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in row.blocks(models):
            wide = block.astype(dtype, copy=False) if row.norms is None else block
            centre = share.astype(wide.dtype) @ wide if centred_on_mean else wide[0]
            moved = np.subtract(wide, centre).astype(dtype, copy=False)
            gram += moved @ moved.T
    return gram


def _subtract(
    squares: Float64[np.ndarray, "model model"],
    row: ModelRow,
    models: Int64[np.ndarray, " some"],
    close: Bool[np.ndarray, "some some"],
) -> None:
    for place, model in enumerate(models):
        others = models[:place][close[place, :place]]
        if len(others):
            total = np.zeros(len(others))
            for block in row.blocks(np.append(others, model)):
                difference = block[:-1].astype(np.float64) - block[-1]
                total += np.einsum("mf,mf->m", difference, difference)
            squares[model, others] = squares[others, model] = total
