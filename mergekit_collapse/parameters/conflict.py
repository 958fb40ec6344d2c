"""Conflict of task vectors, element by element: summed chunk by chunk, then read off.

A task vector is what fine-tuning changed, τ_i = θ_i − θ_0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.shapes import Float64

# Element-wise pairs and the names of their readings, in the order in which they are told.
READINGS = (
    "magnitude_change_ratio",
    "sign_change_ratio",
    "conflicting_magnitude_change_ratio",
    "cosine",
)


@dataclass(frozen=True)
class ParameterConflict:
    """Four readings of every pair of experts, with e over all parameters.

        magnitude change ratio              1 − Σ_e min(|τ_ie|, |τ_je|) / Σ_e max(|τ_ie|, |τ_je|)
        sign change ratio                   #{e: τ_ie τ_je < 0} / #{e: τ_ie ≠ 0 or τ_je ≠ 0}
        conflicting magnitude change ratio  Σ_{e: τ_ie τ_je < 0} |τ_ie| + |τ_je|  /  Σ_e the same
        cosine                              ⟨τ_i, τ_j⟩ / (‖τ_i‖ ‖τ_j‖)

    The first three lie in [0, 1] and are 0 for an expert with itself, the cosine in [−1, 1]. None
    changes if all task vectors are multiplied by one number; sign and cosine not even if each is
    multiplied by its own positive one. Two unrelated task vectors that are symmetric about 0 have a
    sign change ratio of .5 where they overlap, and cosine 0: .5 is no conflict yet.

    The names are those of arXiv 2603.09463, section 2, whose formulas were not at hand. These are
    the usual ones for the names: opposite signs as in TIES (arXiv 2306.01708), over what either
    expert changed, so that frozen parameters do not dilute them; magnitudes by their weighted
    Jaccard distance. Their levels are not to be compared with the paper's.

    Attributes:
        base: whose parameters are θ_0, as in the recipe.
        experts: their names, in the order of all that follows.
        tensors: how many were compared, frozen ones included.
        elements: parameters in them.
        changed: share of the elements in which an expert differs from the base.
        norm: ‖τ_i‖, in the units of the weights.
        magnitude_change_ratio, sign_change_ratio, conflicting_magnitude_change_ratio, cosine:
            symmetric; NaN where undefined.
        reasons: why, by the name of the reading.
        notes: what was left out, and what was taken for the same.
        seconds: that it took; 0 where nobody looked.
    """

    base: str
    experts: tuple[str, ...]
    tensors: int
    elements: int
    changed: Float64[np.ndarray, " expert"]
    norm: Float64[np.ndarray, " expert"]
    magnitude_change_ratio: Float64[np.ndarray, "expert expert"]
    sign_change_ratio: Float64[np.ndarray, "expert expert"]
    conflicting_magnitude_change_ratio: Float64[np.ndarray, "expert expert"]
    cosine: Float64[np.ndarray, "expert expert"]
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def mean(self, reading: str) -> float | None:
        """Mean of a reading over the pairs of experts; None where one of them is undefined."""
        values: Float64[np.ndarray, "expert expert"] = getattr(self, reading)
        pairs = values[np.triu_indices(len(values), 1)]
        return float(pairs.mean()) if len(pairs) and np.isfinite(pairs).all() else None

    @property
    def mean_cosine(self) -> float | None:
        """Mean cosine of the task vectors over the pairs of experts."""
        return self.mean("cosine")


class ConflictSums:
    """What the readings need of the elements seen so far, in float64.

    Args:
        experts: how many.
    """

    def __init__(self, experts: int) -> None:
        shape = (experts, experts)
        self._elements = 0
        self._gram, self._signs, self._both, self._least, self._clash = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(5)
        )
        self._total = torch.zeros(experts, dtype=torch.float64)

    def skip(self, elements: int) -> None:
        """Count elements that no expert changed."""
        self._elements += elements

    def add(self, vectors: torch.Tensor) -> None:
        """Add a chunk of elements.

        Args:
            vectors: their task vectors, float64, expert × element.
        """
        self._elements += vectors.shape[1]
        signs, sizes = vectors.sign(), vectors.abs()
        changed = signs.abs()
        self._gram += vectors @ vectors.T
        # Agreements minus conflicts, and agreements plus conflicts: whole numbers, so exact.
        self._signs += signs @ signs.T
        self._both += changed @ changed.T
        # Twice the magnitude of i in conflict with j, for |τ|(1 − s_i s_j) is 2|τ| there.
        self._clash += sizes @ changed.T - vectors @ signs.T
        self._total += sizes.sum(dim=1)
        for i in range(len(vectors)):
            self._least[i, i:] += torch.minimum(sizes[i], sizes[i:]).sum(dim=1)

    def result(
        self,
        base: str,
        experts: tuple[str, ...],
        tensors: int,
        notes: tuple[str, ...] = (),
        seconds: float = 0.0,
    ) -> ParameterConflict:
        """The readings of all that was added.

        Raises:
            EvaluationError: a sum is NaN or infinite.
        """
        sums = (self._gram, self._signs, self._both, self._least, self._clash)
        gram, signs, both, least, clash = (s.numpy() for s in sums)
        total = self._total.numpy()
        if not all(np.isfinite(s).all() for s in (gram, clash, total)):
            raise EvaluationError(
                f"the task vectors of {', '.join(experts)} are not finite, or too large to be "
                "squared; check the weights of these models"
            )
        least = np.triu(least) + np.triu(least, 1).T
        count, norm = np.diag(both), np.sqrt(np.diag(gram))
        mass = total[:, None] + total
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "magnitude_change_ratio": 1 - least / (mass - least),
                "sign_change_ratio": (both - signs) / 2 / (count[:, None] + count - both),
                "conflicting_magnitude_change_ratio": (clash + clash.T) / 2 / mass,
                "cosine": gram / (norm[:, None] * norm),
            }
        for name, values in found.items():
            np.clip(values, -1 if name == "cosine" else 0, 1, out=values)
            # An expert and itself, where rounding would show.
            np.fill_diagonal(values, np.where(norm > 0, float(name == "cosine"), np.nan))
        return ParameterConflict(
            base=base,
            experts=experts,
            tensors=tensors,
            elements=self._elements,
            changed=count / max(self._elements, 1),
            norm=norm,
            **found,
            reasons=_reasons(base, experts, found),
            notes=notes,
            seconds=seconds,
        )


def _reasons(
    base: str, experts: tuple[str, ...], found: Mapping[str, Float64[np.ndarray, "expert expert"]]
) -> dict[str, str]:
    """Why a reading is undefined somewhere."""
    same = [n for n, v in zip(experts, np.diag(found["cosine"]), strict=True) if np.isnan(v)]
    text = f"no parameter of {', '.join(same)} differs from the base {base}"
    return {name: text for name, values in found.items() if np.isnan(values).any()}
