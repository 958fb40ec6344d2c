"""When enough probes were seen: looks at growing samples, with the rate of wrong stops bounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from mergekit_collapse.geometry.jackknife import Jackknifed
from mergekit_collapse.shapes import Float64

LEVEL = 0.05
SPENDING = "Lan-DeMets, linear spending, each look by itself"
Side = Literal["below", "above"]
_Quantities = Float64[np.ndarray, " quantity"]


@dataclass(frozen=True)
class Held:
    """Quantities that a limit is about.

    Attributes:
        found: at least 0 each.
        limit: passed by what is greater.
    """

    found: Jackknifed
    limit: float


def spending(sizes: Sequence[int], level: float = LEVEL) -> tuple[float, ...]:
    """What each look may spend of the rate of wrong stops; the sum is ``level``.

        α_k = α (n_k − n_{k−1}) / n_K

    This is the spending function α·t of Kim and DeMets (power family, exponent 1) for looks at
    a share t of the information. Each α_k is spent by itself (union bound), so that nothing is
    assumed of how the looks hang together; Lan and DeMets get a little more from normal
    increments, which ratios of few probes do not have. O'Brien and Fleming's function leaves
    3e-8 to a look at an eighth of the probes, at which 8 of them never tell anything.

    Args:
        sizes: probes at each look at which measuring may stop, growing.

    Source: Lan and DeMets 1983, Biometrika 70:659; Kim and DeMets 1987, Biometrika 74:149;
        O'Brien and Fleming 1979, Biometrics 35:549. Confidence sequences (Howard et al. 2021,
        Ann. Stat. 49:1055) need bounded or sub-Gaussian terms, which distances are not.
    """
    return tuple(level * float(part) / sizes[-1] for part in np.diff(sizes, prepend=0))


def clear_side(held: Sequence[Held], level: float) -> Side | None:
    """On which side of their limits the quantities lie for certain; None where that is open.

        below: θ exp(q₊(α/2) e/θ) <= limit for every quantity
        above: θ − q₋(α/m) e > limit for some quantity, of m in all
        q±(α) = t_α + max(0, ±γ) (1 + 2 t_α²)/6

    with θ the larger (below) or the smaller (above) of value and corrected value, e its error,
    γ its skewness, and t_α the quantile of Student's distribution that only α lie beyond.

    To be below by mistake, a quantity that is over its limit must be missed, so that α need not
    be shared; to be above by mistake one of m suffices. Only one of the two can be a mistake, so
    α bounds the rate of both.

    A few terms of a sum of squares may be most of it, and none among 8 probes. So the upper end
    is on a logarithmic scale, which is wider, both are wider where the sample is skewed, and
    half of α is held back below: simulated, that keeps the rate where each probe's share is
    log-normal with σ up to 1. No rule is right about every distribution (Bahadur and Savage
    1956, Ann. Math. Stat. 27:1115).

    Args:
        held: where nothing is, nothing is clear.
        level: α, one-sided.

    Source: Hall 1992, J. R. Stat. Soc. B 54:221 (skewness in Student's interval).
    """
    count = sum(len(one.found.value) for one in held)
    if not count:
        return None
    # Written so that a NaN is clear on neither side.
    if all((_upper(one.found, level / 2) <= one.limit).all() for one in held):
        return "below"
    if any((_lower(one.found, level / count) > one.limit).any() for one in held):
        return "above"
    return None


def _upper(found: Jackknifed, level: float) -> _Quantities:
    centre = np.maximum(found.value, found.corrected)
    reach = _reach(found, level, found.skewness)
    relative = np.divide(reach, centre, out=np.zeros_like(reach), where=centre > 0)
    # exp(700) is as good as infinite, and is no overflow.
    stretched = centre * np.exp(np.minimum(relative, 700.0))
    result: _Quantities = np.where(centre == 0, reach, stretched)
    return result


def _lower(found: Jackknifed, level: float) -> _Quantities:
    centre = np.minimum(found.value, found.corrected)
    result: _Quantities = centre - _reach(found, level, -found.skewness)
    return result


def _reach(found: Jackknifed, level: float, skewness: _Quantities) -> _Quantities:
    freedom = np.where(found.freedom > 0, found.freedom, np.nan)
    t = special.stdtrit(freedom, 1 - level)
    result: _Quantities = found.error * (t + np.maximum(skewness, 0.0) * (1 + 2 * t**2) / 6)
    return result
