"""The recipe's own experts under other weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.remedy.protecting import protect
from mergekit_collapse.remedy.weight_range import Judged, WeightRange, check_distances, weight_range
from mergekit_collapse.shapes import Float64, Int64

Goal = Literal["minimax", "protect"]
GAIN = 1e-7


@dataclass(frozen=True)
class Terms:
    """What is asked of the weights.

    Attributes:
        goal: ``minimax`` for the worst-off expert, ``protect`` for all but those over budget.
        floor: least share of every expert.
        budget: limit of δ; None for none, which ``protect`` cannot do with.
        keep_total: the method cannot change Σα over the experts, so it stays the recipe's.
    """

    goal: Goal = "minimax"
    floor: float = 0.05
    budget: float | None = None
    keep_total: bool = False


@dataclass(frozen=True)
class Reweighting:
    """New weights. A row is an expert, or with own tasks a task.

    Attributes:
        goal: what the weights were chosen for.
        weights: share of each expert, sum 1.
        coefficients: α over the model axis, sum 1: ``weights`` times the experts' total, and
            what the base takes up.
        before: δ of each row under the recipe's own coefficients; None where it has none.
        after: δ of each row under ``coefficients``.
        given_up: under ``protect``, the experts whose share was lowered; they may be over budget.
        feasible: every row that is not given up is within the budget (or there is no budget).
        reason: why not.
    """

    goal: Goal
    weights: Float64[np.ndarray, " expert"]
    coefficients: Float64[np.ndarray, " model"]
    before: tuple[float, ...] | None
    after: tuple[float, ...]
    given_up: tuple[int, ...]
    feasible: bool
    reason: str | None

    @property
    def total(self) -> float:
        """Σα over the experts."""
        return float(self.coefficients[: len(self.weights)].sum())

    @property
    def worst_before(self) -> float | None:
        return None if self.before is None else max(self.before)

    @property
    def worst_after(self) -> float:
        return max(self.after)


def reweight(
    squared: Float64[np.ndarray, "*task model model"],
    experts: int,
    terms: Terms,
    *,
    coefficients: Float64[np.ndarray, " model"] | None = None,
    owner: Int64[np.ndarray, " task"] | None = None,
    names: Sequence[str] | None = None,
) -> Reweighting:
    """Weights from distances alone.

        α_i >= floor · Σα over the experts,  Σα between the recipe's own and 1,  α_0 = 1 - Σα
        minimax:  min over α of max_i δ_i(α)
        protect:  see ``protecting.protect``

    Under ``minimax`` the worst is never above the recipe's own where that satisfies the floor,
    and is the ball's r² where the floor is 0 and every expert is judged on all probes.

    Args:
        squared: D² over experts, then the base if any; with ``owner`` one matrix per task.
        experts: N, at least 2.
        coefficients: the recipe's α, sum 1; ``protect`` needs them.
        owner: of each task, where each expert is judged on its own tasks.
        names: of the experts, for the reason.

    Raises:
        InvalidRecipeError: N x floor is over 1, or ``protect`` lacks what it needs.
        EvaluationError: a distance is NaN or infinite, or no weights prove themselves.
    """
    check_distances(squared, experts, coefficients, terms.budget)
    models = squared.shape[-1]
    rows = np.arange(experts, dtype=np.int64) if owner is None else owner
    judged = Judged(np.broadcast_to(squared, (len(rows), models, models)), rows)
    allowed = weight_range(experts, models, terms.floor, coefficients, keep_total=terms.keep_total)
    given: tuple[int, ...] = ()
    if terms.goal == "minimax":
        alpha = _minimax(judged, allowed, allowed.floor, coefficients)
        reason = _too_far(judged, allowed, alpha, terms.budget, coefficients)
    else:
        if coefficients is None or terms.budget is None or not coefficients[:experts].sum() > 0:
            raise InvalidRecipeError(
                "compat.reweight.goal: protect lowers the recipe's own weights until the others "
                "are inside budget.distortion: it needs that limit, and a method whose weights "
                "are known and have a positive sum; use goal: minimax"
            )
        found = protect(judged, allowed, coefficients, terms.budget)
        alpha, reason = found.coefficients, None
        if found.found:
            given = tuple(sorted(found.given_up))
        else:
            shown = names or [f"expert {i}" for i in range(experts)]
            less = ", ".join(shown[i] for i in found.given_up)
            reason = f"not even with less of {less} is any other inside {terms.budget:g}"
    weights = alpha[:experts]
    return Reweighting(
        goal=terms.goal,
        weights=weights / weights.sum(),
        coefficients=alpha,
        before=None if coefficients is None else tuple(judged.distortion(coefficients).tolist()),
        after=tuple(judged.distortion(alpha).tolist()),
        given_up=given,
        feasible=reason is None,
        reason=reason,
    )


def reweight_layers(
    squared: Float64[np.ndarray, "layer *task model model"],
    experts: int,
    terms: Terms,
    *,
    coefficients: Float64[np.ndarray, "layer model"] | None = None,
    owner: Int64[np.ndarray, " task"] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Reweighting, ...]:
    """One problem per layer, each as ``reweight``."""
    own = [None] * len(squared) if coefficients is None else list(coefficients)
    return tuple(
        reweight(matrix, experts, terms, coefficients=alpha, owner=owner, names=names)
        for matrix, alpha in zip(squared, own, strict=True)
    )


def _minimax(
    judged: Judged,
    allowed: WeightRange,
    floor: float,
    own: Float64[np.ndarray, " model"] | None,
) -> Float64[np.ndarray, " model"]:
    plain = replace(allowed, totals=allowed.totals[-1:])
    alpha, worst = judged.best(plain.extremes(floor))
    if len(allowed.totals) > 1:  # Σα = 1 unless another total is better
        other, reached = judged.best(allowed.extremes(floor))
        if reached < worst - GAIN * float(judged.squared.max()):
            alpha, worst = other, reached
    # The recipe's own weights stay where nothing is better: no change without a gain.
    if own is not None and allowed.allows(own) and judged.worst(own) <= worst:
        return own
    return alpha


def _too_far(
    judged: Judged,
    allowed: WeightRange,
    alpha: Float64[np.ndarray, " model"],
    budget: float | None,
    own: Float64[np.ndarray, " model"] | None,
) -> str | None:
    """Why the best weights do not do: the floor, or the experts themselves."""
    if budget is None or (worst := judged.worst(alpha)) <= budget:
        return None
    free = judged.worst(_minimax(judged, allowed, 0.0, own))
    reason = f"with a floor of {allowed.floor:g} the best weights leave the worst at {worst:.3g}"
    if free <= budget:
        return f"{reason}; without a floor it would be {free:.3g}: lower reweight.floor"
    return f"{reason}, and without a floor at {free:.3g}: these experts are too far apart"
