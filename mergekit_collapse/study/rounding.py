"""How far a p-value can be moved by what printing rounded away."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mergekit_collapse.shapes import Float64
from mergekit_collapse.study.correlation import p_of, pearson_p

# artanh 1 is infinite.
_MOST = 1 - 1e-15


@dataclass(frozen=True)
class RoundedP:
    """A p-value computed from rounded numbers.

    Attributes:
        value: from the numbers as printed.
        low, high: least and greatest over all numbers that print the same.
    """

    value: float
    low: float
    high: float

    def reaches(self, printed: float, half: float) -> bool:
        """Whether some numbers that print the same have a p that prints as ``printed``."""
        return self.low <= printed + half and self.high >= printed - half


def rounded_p(
    x: Float64[np.ndarray, " entry"],
    y: Float64[np.ndarray, " entry"],
    *,
    half_x: float,
    half_y: float,
) -> RoundedP:
    """Pearson's p with its range over the box |x' - x| ≤ half_x, |y' - y| ≤ half_y.

    p falls as |r| grows, so the ends are those of r, found by L-BFGS-B from the middle of the
    box as those of artanh r, which still moves where r is all but 1. Where |r| is far from 0 the
    gradient keeps its signs over so small a box, and the ends are two of its corners.

    Raises:
        ValueError: as in ``pearson_p``.
    """
    value = pearson_p(x, y)
    # In units of the half widths, so that one step suits both lists.
    middle = np.concatenate([x / half_x, y / half_y])
    bounds = list(zip(middle - 1, middle + 1, strict=True))
    scales = np.repeat([half_x, half_y], len(x))

    def signed_z(
        point: Float64[np.ndarray, " coordinate"], sign: float
    ) -> tuple[float, Float64[np.ndarray, " coordinate"]]:
        r, slope = _r_and_slope(*np.split(point * scales, 2))
        r = float(np.clip(r, -_MOST, _MOST))
        return sign * np.arctanh(r), sign * slope * scales / (1 - r * r)

    ends = [
        np.tanh(sign * minimize(signed_z, middle, args=(sign,), jac=True, bounds=bounds).fun)
        for sign in (1.0, -1.0)
    ]
    reached = [p_of(float(r), len(x)) for r in ends]
    # Where r passes 0 inside the box, p reaches 1.
    high = 1.0 if ends[0] < 0 < ends[1] else max(reached)
    return RoundedP(value, min(*reached, value), max(high, value))


def _r_and_slope(
    x: Float64[np.ndarray, " entry"], y: Float64[np.ndarray, " entry"]
) -> tuple[float, Float64[np.ndarray, " coordinate"]]:
    """r and its gradient: ∂r/∂x = (y°/‖y°‖ - r x°/‖x°‖) / ‖x°‖, with x° = x - mean x."""
    u, v = x - x.mean(), y - y.mean()
    length_u, length_v = np.linalg.norm(u), np.linalg.norm(v)
    u, v = u / length_u, v / length_v
    r = float(u @ v)
    return r, np.concatenate([(v - r * u) / length_u, (u - r * v) / length_v])
