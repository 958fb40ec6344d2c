"""Does the row or the column of a table explain its numbers? One value in each cell."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from mergekit_collapse.shapes import Float64


@dataclass(frozen=True)
class Effect:
    """One factor of an analysis of variance.

    Attributes:
        f: mean square of the factor over mean square of the error.
        df: degrees of freedom of the factor.
        df_error: those of the error.
        p_value: of F, for normal errors of one variance.
        share: η², sum of squares of the factor over that of the whole table.
    """

    f: float
    df: int
    df_error: int
    p_value: float
    share: float


@dataclass(frozen=True)
class TwoFactors:
    """Rows and columns of one table.

    Attributes:
        alone: one-way, (rows, columns); the other factor counts as error.
        together: two-way and additive, (rows, columns); what is left is error.
        ranks: Friedman's p, (rows, columns): by rank within the other factor, so that no
            single value weighs more than its rank; χ² is an approximation here. None for two
            rows or columns: the test needs three.
    """

    alone: tuple[Effect, Effect]
    together: tuple[Effect, Effect]
    ranks: tuple[float, float] | None


def two_factors(table: Float64[np.ndarray, "row column"]) -> TwoFactors:
    """Both factors, each alone and both together.

        Σ(y - ȳ)² = c Σ_i(ȳ_i· - ȳ)² + r Σ_j(ȳ_·j - ȳ)² + Σ(y - ȳ_i· - ȳ_·j + ȳ)²

    Alone, the error is all but the factor; together it is the last sum, on (r - 1)(c - 1)
    degrees of freedom.

    Raises:
        ValueError: fewer than two rows or columns, a number that is not finite, or a table
            that rows and columns explain exactly, which leaves no error to compare with.
    """
    rows, columns = table.shape
    if min(rows, columns) < 2 or not np.isfinite(table).all():
        raise ValueError(
            f"a table of {rows} x {columns} cannot be analysed; give two rows and columns or "
            "more, all finite"
        )
    by_row = table.mean(axis=1) - table.mean()
    by_column = table.mean(axis=0) - table.mean()
    residual = table - table.mean() - by_row[:, None] - by_column
    squares = columns * float(by_row @ by_row), rows * float(by_column @ by_column)
    rest = float((residual**2).sum())
    whole = sum(squares) + rest
    if not rest > 1e-12 * whole:
        raise ValueError("rows and columns explain the table exactly; there is no error left over")
    free = rows - 1, columns - 1
    df_rest = free[0] * free[1]

    def alone(factor: int) -> Effect:
        error = whole - squares[factor]
        return _effect(squares[factor], free[factor], error, table.size - 1 - free[factor], whole)

    def together(factor: int) -> Effect:
        return _effect(squares[factor], free[factor], rest, df_rest, whole)

    return TwoFactors(
        (alone(0), alone(1)),
        (together(0), together(1)),
        (_friedman(table), _friedman(table.T)) if min(rows, columns) > 2 else None,
    )


def _effect(square: float, df: int, error: float, df_error: int, whole: float) -> Effect:
    f = (square / df) / (error / df_error)
    return Effect(f, df, df_error, float(stats.f.sf(f, df, df_error)), square / whole)


def _friedman(table: Float64[np.ndarray, "row column"]) -> float:
    return float(stats.friedmanchisquare(*table).pvalue)
