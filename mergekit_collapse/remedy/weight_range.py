"""Which combinations of states the weights of a recipe may be moved to, and the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.geometry.minimax import least_worst
from mergekit_collapse.geometry.predicted import SUM_TOLERANCE, predicted_distortion
from mergekit_collapse.shapes import Float64, Int64

ROUNDING = 1e-9
VANISHING = 1e-8


@dataclass(frozen=True)
class Judged:
    """What weights are held against: each row is an expert, or a task that an expert owns.

    Attributes:
        squared: D² over experts, then the base if any, as each row sees it.
        owner: the expert that each row is about.
    """

    squared: Float64[np.ndarray, "row model model"]
    owner: Int64[np.ndarray, " row"]

    def distortion(
        self, coefficients: Float64[np.ndarray, " model"]
    ) -> Float64[np.ndarray, " row"]:
        """δ of every row."""
        every = predicted_distortion(self.squared, coefficients)
        own: Float64[np.ndarray, " row"] = every[np.arange(len(self.owner)), self.owner]
        return own

    def worst(self, coefficients: Float64[np.ndarray, " model"]) -> float:
        return float(self.distortion(coefficients).max())

    def without(self, experts: Sequence[int]) -> "Judged":
        """The rows of all other experts."""
        kept = ~np.isin(self.owner, experts)
        return Judged(self.squared[kept], self.owner[kept])

    def best(
        self, corners: Float64[np.ndarray, "corner model"]
    ) -> tuple[Float64[np.ndarray, " model"], float]:
        """The point of the corners' hull whose worst row is least bad, and that row's δ.

        Raises:
            EvaluationError: a distance is NaN or infinite, or no point proves itself.
        """
        point = corners[0]
        if len(corners) > 1:
            near = np.stack([self.distortion(corner) for corner in corners], axis=1)
            inner = corners @ self.squared @ corners.T
            norms = np.diagonal(inner, axis1=1, axis2=2)
            between = inner - (norms[:, :, None] + norms[:, None, :]) / 2
            shares = least_worst(near, np.maximum(between, 0.0)).weights
            # An interior point method leaves a trace of every corner.
            shares = np.where(shares < VANISHING, 0.0, shares)
            point = shares / shares.sum() @ corners
        return point, self.worst(point)


@dataclass(frozen=True)
class WeightRange:
    """Coefficients with α_i >= floor · Σα over the experts, that sum between two ends.

    Attributes:
        experts: N.
        models: N, or N + 1 with a base, which takes up 1 - Σα.
        floor: least share of every expert, at most 1/N.
        totals: the ends of Σα over the experts; one number where it is fixed.
    """

    experts: int
    models: int
    floor: float
    totals: tuple[float, ...]

    def allows(self, coefficients: Float64[np.ndarray, " model"]) -> bool:
        """Whether they satisfy the floor; their own total is in the range by construction."""
        part = coefficients[: self.experts]
        total = float(part.sum())
        return total > ROUNDING and bool((part >= (self.floor - ROUNDING) * total).all())

    def shares(self, coefficients: Float64[np.ndarray, " model"]) -> Float64[np.ndarray, " expert"]:
        """α_i / Σα over the experts, those below the floor lifted to it at the others' expense."""
        part = coefficients[: self.experts]
        above = np.maximum(part / part.sum() - self.floor, 0.0)
        room = 1 - self.experts * self.floor
        lifted: Float64[np.ndarray, " expert"] = self.floor + room * above / (above.sum() or 1.0)
        return lifted

    def extremes(self, floor: float) -> Float64[np.ndarray, "corner model"]:
        """All experts but one at the floor, each in turn."""
        return self.corners(floor + (1 - self.experts * floor) * np.eye(self.experts))

    def corners(
        self, shares: Float64[np.ndarray, "share expert"]
    ) -> Float64[np.ndarray, "corner model"]:
        """Coefficients for each row of shares, at every end of the totals."""
        corners = []
        for total in self.totals:
            part = np.zeros((len(shares), self.models))
            part[:, : self.experts] = total * shares
            # Without a base the total is 1, and this only takes up rounding.
            part[:, -1] += 1 - part.sum(axis=1)
            corners.append(part)
        return np.concatenate(corners)


def weight_range(
    experts: int,
    models: int,
    floor: float,
    coefficients: Float64[np.ndarray, " model"] | None,
    *,
    keep_total: bool,
) -> WeightRange:
    """The range between the recipe's own Σα and 1, where the ball's centre lies.

    It is 1 alone where the recipe has no coefficients, or where its experts cancel one another.

    Raises:
        InvalidRecipeError: the floor is no share or N x floor is over 1; or the total is to be
            kept and is not positive.
    """
    if not 0 <= floor <= 1:
        raise InvalidRecipeError(
            f"compat.reweight.floor is {floor!r}: give it a share between 0 and 1"
        )
    if not experts * floor <= 1 + ROUNDING:
        raise InvalidRecipeError(
            f"compat.reweight.floor is {floor:g}, but {experts} experts with at least that share "
            f"each need {experts * floor:g} in all, which is more than 1: give at most "
            f"{1 / experts:.3g}"
        )
    own = 1.0 if coefficients is None else float(coefficients[:experts].sum())
    if keep_total and not own > ROUNDING:
        raise InvalidRecipeError(
            f"compat.reweight: the experts' weights sum to {own:g}, so there are no shares to "
            "move; give them a positive sum"
        )
    ends: tuple[float, ...] = (own,) if keep_total else (1.0,)
    if not keep_total and own > ROUNDING and abs(own - 1) > ROUNDING:
        ends = (own, 1.0)
    return WeightRange(experts, models, min(float(floor), 1 / experts), ends)


def check_distances(
    squared: np.ndarray, experts: int, coefficients: np.ndarray | None, budget: float | None
) -> None:
    """Refuse what no weights can be computed from.

    Raises:
        EvaluationError: the matrix is not that of these experts, or not finite.
        InvalidRecipeError: the budget is no number, or the recipe's weights do not sum to 1.
    """
    models = squared.shape[-1]
    if experts < 2 or models not in (experts, experts + 1):
        raise EvaluationError(
            f"distances of {models} models cannot be those of {experts} experts and at most one "
            "base; at least two experts are needed"
        )
    if not np.isfinite(squared).all():
        raise EvaluationError("reweighting needs finite distances: got NaN or infinity")
    if budget is not None and not budget >= 0:
        raise InvalidRecipeError(
            f"compat.budget.distortion is {budget!r}: give it a number, 0 or above"
        )
    if coefficients is not None and not abs(float(coefficients.sum()) - 1) <= SUM_TOLERANCE:
        raise InvalidRecipeError(
            f"the recipe's weights sum to {coefficients.sum():g} and no base takes up the rest, "
            "so nothing can be predicted from them; set normalize: true"
        )
