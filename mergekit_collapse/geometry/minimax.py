"""The best weights where each expert is judged on its own task, which no ball describes."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float64, Int64

GAP = 1e-8
MAX_STEPS = 100


@dataclass(frozen=True)
class Minimax:
    """Best weights for the worst-off task.

    Attributes:
        distortion: max over tasks, at ``weights``; within 1e-8 of the largest D² of the least.
        weights: convex, experts only; positive, if only just, where they should be 0.
    """

    distortion: float
    weights: Float64[np.ndarray, " expert"]


def minimax_distortion(
    squared: Float64[np.ndarray, "task expert expert"], owner: Int64[np.ndarray, " task"]
) -> Minimax:
    """Weights that make the largest own-task distortion least.

        min over the simplex of max_t δ_t(α),
        δ_t(α) = Σ_j α_j D²_t[owner_t, j] - ½ Σ_jk α_j α_k D²_t[j, k]

    Each δ_t is convex where Σα is fixed. Solved by a primal-dual interior point method. The
    tangents at any weights, mixed by any shares of the tasks, bound the minimum from below, so
    the answer proves itself.

    Args:
        squared: D² on the probes of each task, units of that task's s².
        owner: the expert whose task it is; an expert may own several.

    Raises:
        EvaluationError: a distance is NaN or infinite, or no weights prove themselves.
    """
    return least_worst(squared[np.arange(len(owner)), owner], squared)


def least_worst(
    own: Float64[np.ndarray, "task corner"], squared: Float64[np.ndarray, "task corner corner"]
) -> Minimax:
    """The point of a hull whose largest distortion is least; corners may be merges themselves.

        min over the simplex of max_t δ_t(β),
        δ_t(β) = Σ_k β_k own_tk - ½ Σ_kl β_k β_l D²_t[k, l]

    Args:
        own: squared distance of what each task is held against to each corner.
        squared: D² between corners, as each task sees them.

    Raises:
        EvaluationError: as ``minimax_distortion``.
    """
    if not (np.isfinite(squared).all() and np.isfinite(own).all()):
        raise EvaluationError("own-task weights need finite distances: got NaN or infinity")
    corners = squared.shape[1]
    largest = float(max(squared.max(), own.max()))
    weights = np.full(corners, 1 / corners)
    if largest <= 0:
        return Minimax(0.0, weights)
    scaled, near = squared / largest, own / largest
    state = _Iterate.start(weights, len(own))
    best, lower = np.inf, -np.inf
    for _ in range(MAX_STEPS):
        slopes = near - scaled @ state.weights
        values = (near + slopes) @ state.weights / 2
        if values.max() < best:
            best, weights = float(values.max()), state.weights
        tangent = state.share @ slopes
        least = state.share @ (values - slopes @ state.weights) + tangent.min()
        lower = max(lower, float(least / state.share.sum()))
        if best - lower <= GAP / 100:
            break
        try:
            state = state.step(values, slopes, -np.tensordot(state.share, scaled, 1))
        except np.linalg.LinAlgError:
            break  # no squared distances; what the gap is says so
    gap = best - lower
    if not gap <= GAP:
        raise EvaluationError(
            f"the best own-task weights of {corners} experts are known only to {gap:.1e} of the "
            "largest squared distance: are these squared Euclidean distances?"
        )
    return Minimax(best * largest, weights)


@dataclass(frozen=True)
class _Iterate:
    """Primal-dual interior point of: minimise w, where δ_t(α) + room_t = w, room, α >= 0."""

    weights: Float64[np.ndarray, " expert"]  # α, sum 1
    room: Float64[np.ndarray, " task"]
    share: Float64[np.ndarray, " task"]  # multipliers of the tasks
    price: Float64[np.ndarray, " expert"]  # multipliers of α >= 0

    @classmethod
    def start(cls, weights: Float64[np.ndarray, " expert"], tasks: int) -> "_Iterate":
        share, price = np.full(tasks, 1 / tasks), np.ones_like(weights)
        return cls(weights, np.ones(tasks), share, price)

    def step(
        self,
        values: Float64[np.ndarray, " task"],
        slopes: Float64[np.ndarray, "task expert"],
        curvature: Float64[np.ndarray, "expert expert"],
    ) -> "_Iterate":
        """One Newton step on the optimality conditions, a tenth of the way to complementarity."""
        n, tasks = len(self.weights), len(self.room)
        target = 0.1 * (self.room @ self.share + self.weights @ self.price) / (tasks + n)
        # Unknown: the move of α, and what w, share and level will be. The shares stay in: found
        # from a room that goes to 0 they would be lost in its rounding.
        worst, shares, level = n, slice(n + 1, n + 1 + tasks), n + 1 + tasks
        system, right = np.zeros((level + 1, level + 1)), np.zeros(level + 1)
        system[:n, :n] = curvature + np.diag(self.price / self.weights)
        system[shares, :n], system[:n, shares] = slopes, slopes.T
        system[shares, worst] = system[worst, shares] = -1.0
        system[shares, shares] = -np.diag(self.room / self.share)
        system[level, :n] = system[:n, level] = 1.0
        right[:n] = target / self.weights
        right[worst] = -1.0
        right[shares] = -values - self.room - target / self.share
        right[level] = 1.0 - self.weights.sum()
        found = np.linalg.solve(system, right)
        d_weights, d_share = found[:n], found[shares] - self.share
        d_room = (target - self.room * d_share) / self.share - self.room
        d_price = (target - self.price * d_weights) / self.weights - self.price
        primal = min(_longest(self.weights, d_weights), _longest(self.room, d_room))
        dual = min(_longest(self.share, d_share), _longest(self.price, d_price))
        length = min(primal, dual)
        return _Iterate(
            self.weights + length * d_weights,
            self.room + length * d_room,
            self.share + length * d_share,
            self.price + length * d_price,
        )


def _longest(values: np.ndarray, change: np.ndarray) -> float:
    """Largest step, at most 1, that leaves every value positive."""
    falling = change < 0
    return min(1.0, 0.99 * float((values[falling] / -change[falling]).min(initial=np.inf)))
