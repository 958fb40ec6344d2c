"""From a method's own weights to the combination of hidden states that they stand for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, evaluate_setting

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.merge_methods import register_methods
from mergekit_collapse.recipe.groups import Group, Settings
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.shapes import Float64

# Where the start-up file is not read, nobody else has.
register_methods()

# Every model of these is averaged; a base is one of them, and nothing is subtracted.
_MEANS = {
    "linear": None,
    "weighted_karcher": "weighted_karcher averages directions, not tensors",
    "rescaled_mean": "rescaled_mean stretches the mean to the experts' norm",
}

# Depths at which gradients are read; their mean stands for the whole stack.
_DEPTHS = tuple(float(t) for t in np.linspace(0, 1, 33))


@dataclass(frozen=True)
class Coefficients:
    """The affine combination of states that stands for a merge.

    Attributes:
        alpha: one number for each of ``Recipe.models``, base included, with sum 1; None
            where no combination stands for the method, and ``note`` says why.
        weights: the recipe's own weight per expert; None where the method has none.
        exact: whether the merged parameters are this combination of the parameters.
        note: what was approximated, or why there is no combination.
    """

    alpha: Float64[np.ndarray, " model"] | None
    weights: tuple[float | None, ...]
    exact: bool
    note: str | None


@dataclass(frozen=True)
class _Combination:
    """One group's coefficients by model, or the reason why it has none."""

    alpha: Mapping[ModelReference, float] | None
    weights: Mapping[ModelReference, float]
    note: str | None = None


def recipe_coefficients(recipe: Recipe) -> Coefficients:
    """Map the weights of a recipe to coefficients over experts and base.

        linear, normalised:      α_i = w_i / Σw
        task arithmetic:         α_i = λ w_i (with normalize: λ w_i / Σw),  α_0 = 1 − Σα
        TIES, DARE, DELLA, …:    as task arithmetic, approximately
        slerp, nuslerp, …:       α = (1 − t, t), approximately
        karcher and its kin:     α_i = w_i / Σw, approximately

    Slices are averaged by their number of layers, gradients over depth, and filters give
    way to the value that holds for all other tensors; each of these is named in ``note``.

    Raises:
        InvalidRecipeError: a parameter that the method needs is missing, malformed or not finite.
    """
    merged = [group for group in recipe.groups if len(group.sources) > 1]
    parts = [_combine(recipe.config.merge_method, group) for group in merged]
    weights = tuple(_mean([p.weights[m] for p in parts if m in p.weights]) for m in recipe.experts)
    for part in parts:
        if part.alpha is None:
            return Coefficients(None, weights, exact=False, note=part.note)
        if not part.alpha.keys() <= set(recipe.models):
            note = f"the slices have several bases, of which only {recipe.base} is measured"
            return Coefficients(None, weights, exact=False, note=note)
    notes = list(dict.fromkeys(part.note for part in parts if part.note))
    shares = np.array([group.layers or 1 for group in merged], dtype=np.float64)
    rows = np.array([[(p.alpha or {}).get(m, 0.0) for m in recipe.models] for p in parts])
    if len(parts) > 1 and not np.allclose(rows, rows[0]):
        notes.append("slices differ and are averaged by their number of layers")
    alpha = np.average(rows, axis=0, weights=shares)
    return Coefficients(alpha, weights, exact=not notes, note="; ".join(notes) or None)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


class _Reader:
    """Reads one group's parameters by MergeKit's precedence, and notes what it flattened."""

    def __init__(self, method: str, group: Group) -> None:
        self.group = group
        self.parameters = {p.name: p for p in merge_methods.get(method).spec.parameters}
        self.notes: dict[str, None] = {}

    def value(self, name: str, model: ModelReference | None = None) -> Any:
        """Scalar value of a parameter, the mean over depth where it is a gradient."""
        spec = self.parameters[name]
        own = [s.parameters for s in self.group.sources if s.model == model]
        for settings in (*own, *self.group.settings):
            if name in settings:
                values = self._at_depths(name, settings, spec.validate)
                if values:
                    return values[0] if len(set(values)) == 1 else float(np.mean(values))
        if spec.required:
            where = f"{self.group.label}: {model}" if model is not None else self.group.label
            raise InvalidRecipeError(
                f"{where}: the parameter {name!r} is missing, which this method needs; add it"
            )
        return spec.default

    def _at_depths(
        self, name: str, settings: Settings, validate: Callable[[Any], Any]
    ) -> list[Any]:
        setting = settings[name]
        if any(c.filter not in (None, "*") for c in _conditions(setting)):
            self.notes[f"filters of {name} are left out"] = None
        try:
            values = [evaluate_setting("", setting, t, validate=validate) for t in _DEPTHS]
        except (ValueError, TypeError, RuntimeError) as error:
            raise InvalidRecipeError(
                f"{self.group.label}: the parameter {name!r} has the value {setting!r}: {error}"
            ) from None
        values = [v for v in values if v is not None]
        if not all(math.isfinite(v) for v in values if isinstance(v, float)):
            raise InvalidRecipeError(
                f"{self.group.label}: the parameter {name!r} has the value {setting!r}; "
                "give it a finite number"
            )
        if len(set(values)) > 1:
            self.notes[f"the gradient of {name} is averaged over depth"] = None
        return values


def _conditions(setting: Any) -> Iterator[ConditionalParameter]:
    for item in setting if isinstance(setting, list) else [setting]:
        if isinstance(item, ConditionalParameter):
            yield item


def _combine(method: str, group: Group) -> _Combination:
    reader = _Reader(method, group)
    if method in ("slerp", "nearswap"):
        return _towards_the_other(method, group, reader)
    if method == "karcher":
        share = 1 / len(group.sources)
        uniform = {s.model: share for s in group.sources}
        return _Combination(uniform, {}, "karcher averages directions, not tensors")
    if "weight" not in reader.parameters:
        note = f"{method} sets its own coefficients from the tensors, tensor by tensor"
        return _Combination(None, {}, note)
    takes_differences = group.base is not None and method not in (*_MEANS, "nuslerp", "multislerp")
    models = [s.model for s in group.sources if method in _MEANS or s.model != group.base]
    weights = {m: float(reader.value("weight", m)) for m in models}
    total = sum(weights.values())
    if _normalizes(reader):
        if abs(total) < 1e-8:
            return _Combination(None, weights, f"the weights of {group.label} sum to 0")
        alpha = {m: w / total for m, w in weights.items()}
    else:
        alpha = dict(weights)
    if takes_differences and group.base is not None:
        scale = float(reader.value("lambda")) if "lambda" in reader.parameters else 1.0
        alpha = {m: scale * a for m, a in alpha.items()}
        alpha[group.base] = 1 - sum(alpha.values())
    elif abs(sum(alpha.values()) - 1) > 1e-6:
        note = f"the weights of {group.label} sum to {total:g}, and no base takes up the rest"
        return _Combination(None, weights, note)
    if (approximation := _MEANS.get(method)) is not None:
        reader.notes[approximation] = None
    elif method not in ("linear", "task_arithmetic"):
        reader.notes[
            f"{method} is taken for the same combination without trimming or curvature"
        ] = None
    return _Combination(alpha, weights, "; ".join(reader.notes) or None)


def _normalizes(reader: _Reader) -> bool:
    for name in ("normalize", "normalize_weights"):
        if name in reader.parameters:
            return bool(reader.value(name))
    return True  # nuslerp and the Karcher means always do


def _towards_the_other(method: str, group: Group, reader: _Reader) -> _Combination:
    if method == "nearswap":
        return _Combination(None, {}, "nearswap chooses its coefficient element by element")
    t = float(reader.value("t"))
    others = [s.model for s in group.sources if s.model != group.base]
    if group.base is None or len(others) != 1:
        return _Combination(None, {}, "slerp needs a base and one other model")
    notes = [*reader.notes, "slerp follows the sphere, not the line"]
    return _Combination({group.base: 1 - t, others[0]: t}, {}, "; ".join(notes))
