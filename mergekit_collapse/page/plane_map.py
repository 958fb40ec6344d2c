"""The experts as points of a plane, with the ball and the models that are measured against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64

# An axis that holds less than this share of the squared distance is rounding.
FLAT = 1e-9


@dataclass(frozen=True)
class Place:
    """One point.

    Attributes:
        x, y: in the units of √D².
        off_squared: its squared distance from the plane, in the units of D².
    """

    x: float
    y: float
    off_squared: float


@dataclass(frozen=True)
class PlaneMap:
    """A map in two dimensions, in which distances are √D² as far as two dimensions can say.

    Attributes:
        experts: in the order of the recipe.
        others: points that are known by their distances to the experts, by name.
        center: of the enclosing ball; None without its weights.
        radius: r of the ball, whose shadow in the plane is a disc of the same radius.
        kept: share of the squared distance between the experts that lies in the plane.
        upright: the experts lie on a line; up is how far another point is from that line.
    """

    experts: tuple[Place, ...]
    others: Mapping[str, Place]
    center: Place | None
    radius: float
    kept: float
    upright: bool


def plane_map(
    squared: Float64[np.ndarray, "expert expert"],
    others: Mapping[str, Sequence[float]],
    center: Sequence[float] | None,
    radius_squared: float,
) -> PlaneMap:
    """Classical scaling of D², and points added to it by their distances (Gower).

        B = -½ J D² J = V Λ V',  x_i = (V √Λ)_i on the two largest λ
        y = ½ Λ^-½ V' (diag B - δ),  ||y||² + off² = mean δ - mean diag B

    Args:
        squared: D² between experts, at least two; Euclidean. What is not is clipped.
        others: δ, squared distances to every expert, by name.
        center: weights of the ball's centre over the experts.
        radius_squared: r².
    """
    largest = max(float(squared.max()), *(max(d, default=0.0) for d in others.values()), 1e-300)
    count = len(squared)
    middle = np.eye(count) - 1 / count
    scaled = (squared + squared.T) / (2 * largest)
    inner = -middle @ scaled @ middle / 2
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    total = float(values.sum())
    real = values > FLAT * max(total, 1e-300)
    vectors = vectors * np.where(np.abs(vectors).max(0) == vectors.max(0), 1, -1)
    points = np.where(real, vectors * np.sqrt(values), 0)
    norms = (points**2).sum(axis=1)
    axes, flat = np.zeros((count, 2)), points[:, :2]
    axes[:, : flat.shape[1]] = flat
    unit = float(np.sqrt(largest))
    upright = int(real.sum()) <= 1

    def settled(x: float, y: float, off: float) -> Place:
        """In units of D², without the dust of rounding."""
        x, y, off = (0.0 if abs(value) < FLAT else value for value in (x, y, off))
        return Place(x * unit, y * unit, off * largest)

    def added(delta: Sequence[float]) -> Place:
        away = np.array(delta) / largest
        root = np.sqrt(np.where(real, values, 1))
        place = np.where(real, vectors.T @ (norms - away) / (2 * root), 0)
        x, y = float(place[0]), float(place[1])
        off = max(0.0, float(away.mean() - norms.mean()) - x * x - y * y)
        if upright:
            return settled(x, float(np.sqrt(off)), 0.0)
        return settled(x, y, off)

    def shadow(point: Float64[np.ndarray, " axis"]) -> Place:
        off = float((point[2:] ** 2).sum())
        y = float(point[1]) if count > 1 else 0.0
        return settled(float(point[0]), y, off)

    return PlaneMap(
        experts=tuple(shadow(point) for point in points),
        others={name: added(delta) for name, delta in others.items()},
        center=None if center is None else shadow(np.array(center, dtype=np.float64) @ points),
        radius=float(np.sqrt(radius_squared)),
        kept=float(values[:2].sum()) / total if total > 0 else 1.0,
        upright=upright,
    )
