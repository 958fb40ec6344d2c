"""From a combination of hidden states back to a method's own weights."""

from collections.abc import Mapping, Sequence

import numpy as np
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.own_weights import (
    OwnWeights,
    own_weights,
    require_shares,
    require_weights,
)
from mergekit_collapse.recipe.places import (
    Place,
    UnchangeableRecipeError,
    holders,
    in_force,
    is_zero_number,
    mapped,
    parameter,
    places,
    put,
    resolved,
    source_of,
    straight,
    tidy,
    towards,
)
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.shapes import Float64

_SAME = 1e-12
_CONFIRMED = 1e-9
_ROUNDS = 10_000


def with_weights(
    config: MergeConfiguration, shares: Mapping[ModelReference, float]
) -> MergeConfiguration:
    """The recipe with other weights, and nothing else changed.

        α_i = share_i · Σα,   w_i = α_i / (α per unit of weight),   setting_i · w_i / own w_i

    Σα over the experts stays as it is: 1 for means, λ Σw for task vectors. Weights that
    are not normalised and have no base to take up the rest are made to sum to 1. Gradients and
    filters are scaled as a whole; slerp's ``t`` is scaled towards the nearer end, so that it
    stays within [0, 1]. Where slices differ, each keeps its total, and their weights are scaled
    model by model until the mean over layers is what is wanted.

    Args:
        config: a recipe; it is not changed.
        shares: one number for each of ``Recipe.experts``, not negative, with sum 1.

    Raises:
        UnchangeableRecipeError: the method has no weights, or these cannot give such shares.
        InvalidRecipeError: the shares are not as above, or the recipe's own weights are wrong.
    """
    config = config.model_copy(deep=True)
    recipe = resolved(config)
    require_shares(shares, recipe.experts)
    require_weights(config.merge_method)
    merged = [place for place in places(config) if len(place.group.sources) > 1]
    owns = [own_weights(recipe, place) for place in merged]
    wanted = np.array([shares[m] for m in recipe.experts], dtype=np.float64)
    targets = _targets(recipe, merged, owns, wanted / wanted.sum())
    wished = [{m: float(a) for m, a in zip(recipe.experts, row, strict=True)} for row in targets]
    if config.merge_method == "slerp":
        _set_positions(config, merged, owns, wished)
    else:
        for place, own, target in zip(merged, owns, wished, strict=True):
            _set_weights(config.merge_method, place, own, target)
    _confirm(resolved(config), wanted / wanted.sum())
    return config


def _targets(
    recipe: Recipe, merged: Sequence[Place], owns: Sequence[OwnWeights], wanted: np.ndarray
) -> Float64[np.ndarray, "group expert"]:
    """The coefficients that each group's experts shall have."""
    totals = np.array([own.total for own in owns])
    if len(merged) == 1:
        return np.outer(totals, wanted)
    seeds = np.zeros((len(merged), len(recipe.experts)))
    present = np.zeros(seeds.shape, dtype=bool)
    for row, own in enumerate(owns):
        for model, weight in zip(own.experts, own.weights, strict=True):
            column = recipe.experts.index(model)
            present[row, column] = True
            seeds[row, column] = weight * own.factor
    if (seeds < 0).any():
        raise UnchangeableRecipeError(
            "several slices have negative weights, for which there is no common factor; "
            "write the weights of each slice yourself"
        )
    # What has no weight anywhere has nothing to scale, and starts where it is wanted.
    unseen = (seeds == 0).all(axis=0) | (seeds.sum(axis=1) == 0)[:, None]
    seeds = np.where(present & unseen, np.outer(totals, wanted), seeds)
    layers = np.array([place.group.layers or 1 for place in merged], dtype=np.float64)
    rows = layers * totals
    fitted = _fitted(layers[:, None] * seeds, rows, wanted * rows.sum())
    if fitted is None:
        raise UnchangeableRecipeError(
            "no weights of these slices give the shares "
            f"{', '.join(f'{m} {w:.3g}' for m, w in zip(recipe.experts, wanted, strict=True))}, "
            "since not every slice merges every expert; write the weights of each slice yourself"
        )
    return np.asarray(fitted / layers[:, None], dtype=np.float64)


def _fitted(seeds: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """Rows and columns scaled until they have the wanted sums (Sinkhorn); None if they cannot."""
    table = seeds.copy()
    for _ in range(_ROUNDS):
        have = table.sum(axis=0)
        table *= np.divide(columns, have, out=np.zeros_like(columns), where=have > 0)
        have = table.sum(axis=1)
        if not (have > 0).all():
            return None
        table *= (rows / have)[:, None]
        if np.abs(table.sum(axis=0) - columns).max() <= _SAME * rows.sum():
            return np.asarray(table)
    return None


def _set_weights(
    method: str, place: Place, own: OwnWeights, target: Mapping[ModelReference, float]
) -> None:
    spec = parameter(method, "weight")
    for model, weight in zip(own.experts, own.weights, strict=True):
        new = target[model] / own.factor
        if abs(new - weight) <= _SAME * max(abs(new), abs(weight)):
            continue
        source = source_of(place, model)
        setting = in_force("weight", (source.parameters or {}, *place.group.settings), spec)
        if weight != 0:
            setting = mapped(setting, straight(spec.validate, new / weight))
        elif is_zero_number(setting, spec.validate):
            setting = tidy(new)
        else:
            raise UnchangeableRecipeError(
                f"{place.group.label}: {model}: its weight {_shown(setting)} averages to 0, which "
                "no factor makes a share; write a number"
            )
        put(source, "weight", setting)


def _set_positions(
    config: MergeConfiguration,
    merged: Sequence[Place],
    owns: Sequence[OwnWeights],
    targets: Sequence[Mapping[ModelReference, float]],
) -> None:
    """slerp: ``t`` is the share of the model that is not the base."""
    lines = [
        _line(place, own, target) for place, own, target in zip(merged, owns, targets, strict=True)
    ]
    spec = parameter("slerp", "t")
    if np.ptp(lines, axis=0).max() <= _SAME:
        # One change for all: every t is changed where it stands.
        change = straight(spec.validate, *lines[0])
        for holder in holders(config):
            if "t" in (holder.parameters or {}):
                put(holder, "t", mapped(holder.parameters["t"], change))
        return
    for place, line in zip(merged, lines, strict=True):
        setting = in_force("t", place.group.settings, spec)
        put(place.owner, "t", mapped(setting, straight(spec.validate, *line)))


def _line(
    place: Place, own: OwnWeights, target: Mapping[ModelReference, float]
) -> tuple[float, float]:
    """Slope and offset of t."""
    other = next(i for i, m in enumerate(own.experts) if m != place.group.base)
    now, new = own.weights[other], target[own.experts[other]]
    return towards(now, new)


def _confirm(recipe: Recipe, wanted: np.ndarray) -> None:
    """What was written is read back before anybody merges by it."""
    alpha = recipe_coefficients(recipe).alpha
    if alpha is None:  # slices of several bases, whose mean stands for nothing
        return
    experts = alpha[: len(recipe.experts)]
    if not np.abs(experts / experts.sum() - wanted).max() <= _CONFIRMED:
        raise UnchangeableRecipeError(
            f"the recipe's own form does not allow the shares {wanted.tolist()}: it reads them as "
            f"{(experts / experts.sum()).tolist()}; write its weights yourself"
        )


def _shown(setting: object) -> str:
    text = repr(setting)
    return text if len(text) <= 60 else f"{text[:60]}…"
