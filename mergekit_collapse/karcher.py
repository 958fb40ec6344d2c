"""The weighted Karcher mean of tensors on the sphere, in two passes over the data.

Every iterate lies in the span of the inputs, so the iteration needs only their Gram matrix: one
pass reads it, N coefficients are iterated in float64, and a second pass writes the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.shapes import Float64

# Float64 elements of scratch at most, whatever the number of tensors: 16 MB.
_SCRATCH_ELEMENTS = 2**21
# Elements of a chunk on a processor: few enough for its cache, and for torch not to wake threads,
# whose meeting after every chunk would take far longer than the chunk where cores are shared.
_CHUNK_ELEMENTS = 2**15
# Below this length a mean of unit vectors has no direction; nearer than this to π, Log has none.
# The square of it, not itself, is what a Gram matrix in float64 resolves.
_UNDEFINED = 1e-6


@dataclass(frozen=True)
class KarcherMean:
    """A weighted Karcher mean, and how it was found.

    Attributes:
        tensor: the mean, of the inputs' shape, dtype and device.
        coefficients: the mean is Σ c_i θ_i before it is rounded to that dtype.
        iterations: steps taken.
        residual: ‖Σ α_i Log_θ(u_i)‖ at the result, in radians.
        antipodal: whether an input is opposite to the result. It pulls nowhere, see `karcher_mean`.
        converged: whether the residual is within the tolerance, and no input is opposite.
    """

    tensor: torch.Tensor
    coefficients: Float64[np.ndarray, " expert"]
    iterations: int
    residual: float
    antipodal: bool
    converged: bool


def karcher_mean(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    eta: float = 1.0,
    tol: float = 1e-10,
    max_iter: int = 100,
) -> KarcherMean:
    """Weighted Karcher mean of directions, at the weighted mean of the norms.

        u_i = θ_i / ‖θ_i‖,   α = w / Σw,   φ = arccos⟨p, q⟩
        Log_p(q) = (φ / sin φ)(q − cos φ · p),   Exp_p(v) = cos‖v‖ p + sin‖v‖ v/‖v‖
        θ ← Exp_θ(η Σ α_i Log_θ(u_i))  from the mean of the u_i,  then θ ← θ · Σ α_i ‖θ_i‖

    Three rules where this is undefined. A tensor of zeros has no direction: its weight counts in
    the norm alone. Where the mean of the u_i vanishes (within 1e-6), the iteration begins at the
    heaviest input, the first of equals. An input opposite to the iterate (within 1e-6 of π) has no
    Log and is left out of that step. So of two opposite tensors the heavier gives the direction.

    An input of weight 0 is not read. The result carries no gradient.

    Args:
        tensors: one or more, of one shape, floating-point dtype and device.
        weights: one per tensor, not negative; None weighs all alike.
        eta: length of a step, above 0; 1 suits directions within π/2 of their mean.
        tol: stop where the residual is at most this many radians.
        max_iter: steps at most.

    Raises:
        EvaluationError: the tensors differ in shape, dtype or device, or hold NaN or infinity.
        InvalidRecipeError: a weight is negative or not finite, all are 0, or their number differs;
            eta, tol or max_iter is out of range.

    Source: arXiv 2603.04972, whose MergeKit method `karcher` iterates on the tensors themselves.

    Example:
        >>> mean = karcher_mean([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])])
        >>> mean.tensor, mean.converged
        (tensor([2.1213, 2.1213]), True)
    """
    if not (0 < eta < float("inf") and tol >= 0 and max_iter >= 1):
        raise InvalidRecipeError(
            f"eta is {eta}, tol {tol} and max_iter {max_iter}: "
            "give a finite eta above 0, a tol of 0 or more, and a max_iter of 1 or more"
        )
    alpha, gram = _shares_and_gram(tensors, weights)
    norms = np.sqrt(gram.diagonal())
    pointed = norms > 0
    coefficients = np.zeros(len(alpha))
    iterations, residual, antipodal = 0, 0.0, False
    if pointed.any():
        lengths = norms[pointed]
        cosines = gram[np.ix_(pointed, pointed)] / np.outer(lengths, lengths)
        np.fill_diagonal(cosines, 1.0)
        shares = alpha[pointed] / alpha[pointed].sum()
        mean, iterations, residual, antipodal = _iterate(cosines, shares, eta, tol, max_iter)
        coefficients[pointed] = (alpha @ norms) * mean / lengths
    return KarcherMean(
        tensor=_combine(tensors, coefficients),
        coefficients=coefficients,
        iterations=iterations,
        residual=residual,
        antipodal=antipodal,
        converged=residual <= tol and not antipodal,
    )


def rescaled_mean(
    tensors: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Weighted linear mean, rescaled to the weighted mean of the norms.

        m = Σ α_i θ_i,   result = m · Σ α_i ‖θ_i‖ / ‖m‖,   α = w / Σw

    Where m vanishes (below 1e-6 of that norm), the heaviest input gives the direction, as in
    `karcher_mean`; arguments, weights of 0, and errors are as there.

    Source: the first step of arXiv 2603.04972, with norms as MergeKit's `karcher` treats them.
    """
    alpha, gram = _shares_and_gram(tensors, weights)
    norms = np.sqrt(gram.diagonal())
    scale = alpha @ norms
    coefficients = alpha
    if _length(alpha, gram) <= _UNDEFINED * scale:
        coefficients = _heaviest(alpha * (norms > 0))
    length = _length(coefficients, gram)
    return _combine(tensors, coefficients * (scale / length) if length > 0 else 0 * alpha)


def _iterate(
    cosines: Float64[np.ndarray, "expert expert"],
    alpha: Float64[np.ndarray, " expert"],
    eta: float,
    tol: float,
    max_iter: int,
) -> tuple[Float64[np.ndarray, " expert"], int, float, bool]:
    """The mean's coefficients on the unit vectors, steps, residual, and if an input is opposite."""
    mean = alpha if _length(alpha, cosines) > _UNDEFINED else _heaviest(alpha)
    mean = mean / _length(mean, cosines)
    for step in range(max_iter + 1):
        cosine = np.clip(cosines @ mean, -1, 1)
        angle = np.arccos(cosine)
        opposite = angle > np.pi - _UNDEFINED
        # φ / sin φ, which is 1 at 0.
        pull = np.where(opposite, 0.0, alpha / np.sinc(angle / np.pi))
        tangent = pull - (pull @ cosine) * mean
        residual = _length(tangent, cosines)
        if residual <= tol or step == max_iter:
            break
        mean = np.cos(eta * residual) * mean + eta * np.sinc(eta * residual / np.pi) * tangent
        mean = mean / _length(mean, cosines)
    return mean, step, residual, bool(opposite.any())


def _length(
    coefficients: Float64[np.ndarray, " expert"], gram: Float64[np.ndarray, "expert expert"]
) -> float:
    # Rounding may take the square of a short vector below 0.
    return float(np.sqrt(max(coefficients @ gram @ coefficients, 0.0)))


def _heaviest(alpha: Float64[np.ndarray, " expert"]) -> Float64[np.ndarray, " expert"]:
    chosen = np.zeros(len(alpha))
    chosen[np.argmax(alpha)] = 1.0
    return chosen


def _shares_and_gram(
    tensors: Sequence[torch.Tensor], weights: Sequence[float] | None
) -> tuple[Float64[np.ndarray, " expert"], Float64[np.ndarray, "expert expert"]]:
    """α, and ⟨θ_i, θ_j⟩ with zeros for inputs of weight 0; refuses what cannot be averaged."""
    kinds = {(tuple(t.shape), t.dtype, t.device) for t in tensors}
    if len(kinds) != 1 or not tensors[0].is_floating_point():
        found = "; ".join(f"{list(t.shape)} {t.dtype} on {t.device}" for t in tensors) or "none"
        raise EvaluationError(
            f"a mean needs floating-point tensors of one shape, dtype and device: got {found}"
        )
    alpha = np.ones(len(tensors)) if weights is None else np.array(weights, dtype=np.float64)
    if alpha.shape != (len(tensors),) or not (np.isfinite(alpha) & (alpha >= 0)).all():
        raise InvalidRecipeError(
            f"{len(tensors)} tensors have the weights {alpha.tolist()}: "
            "give each a finite weight of 0 or more"
        )
    if alpha.sum() == 0:
        raise InvalidRecipeError("the weights are all 0: give at least one input a weight above 0")
    alpha = alpha / alpha.sum()
    used = np.flatnonzero(alpha).tolist()
    gram = np.zeros((len(tensors), len(tensors)))
    gram[np.ix_(used, used)] = _gram([tensors[i] for i in used])
    if not (finite := np.isfinite(gram.diagonal())).all():
        bad = np.flatnonzero(~finite).tolist()
        raise EvaluationError(
            f"inputs {bad}, counted from 0, hold NaN, infinity or numbers too large to square; "
            "give them the weight 0 or mend the models"
        )
    return alpha, gram


def _gram(tensors: Sequence[torch.Tensor]) -> Float64[np.ndarray, "expert expert"]:
    gram = np.zeros((len(tensors), len(tensors)))
    for _, rows in _chunks(tensors):
        if rows.device.type == "cpu":
            values = rows.numpy()
            gram += np.einsum("ik,jk->ij", values, values)  # in one thread, unlike a matrix product
        else:
            gram += (rows @ rows.T).cpu().numpy()
    return gram


def _combine(
    tensors: Sequence[torch.Tensor], coefficients: Float64[np.ndarray, " expert"]
) -> torch.Tensor:
    """Σ c_i θ_i, in float64 up to the one rounding to the inputs' dtype."""
    first = tensors[0]
    result = torch.zeros(first.shape, dtype=first.dtype, device=first.device)
    used = np.flatnonzero(coefficients).tolist()
    if not used:
        return result
    flat = result.view(-1)
    factors = coefficients[used].tolist()
    for where, rows in _chunks([tensors[i] for i in used]):
        total = rows[0].mul_(factors[0])
        for factor, row in zip(factors[1:], rows[1:], strict=True):
            total.add_(row, alpha=factor)
        flat[where] = total
    return result


def _chunks(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of the flattened tensors, [tensor, element] in float64; one buffer for all of them."""
    flat = [t.detach().reshape(-1) for t in tensors]
    # Apple's devices have no float64.
    device = torch.device("cpu") if flat[0].device.type == "mps" else flat[0].device
    size, width = flat[0].numel(), max(_SCRATCH_ELEMENTS // len(flat), 1024)
    if device.type == "cpu":
        width = min(width, _CHUNK_ELEMENTS)
    scratch = torch.empty(len(flat), min(size, width), dtype=torch.float64, device=device)
    for start in range(0, size, width):
        where = slice(start, min(start + width, size))
        rows = scratch[:, : where.stop - start]
        for row, tensor in zip(rows, flat, strict=True):
            row.copy_(tensor[where])
        yield where, rows
