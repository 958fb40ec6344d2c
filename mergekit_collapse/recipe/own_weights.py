"""What the experts of one group weigh now, and whether a recipe has weights at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mergekit.common import ModelReference

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.places import Place, UnchangeableRecipeError, parameter
from mergekit_collapse.recipe.recipe import Recipe


@dataclass(frozen=True)
class OwnWeights:
    """What one group's experts have now.

    Attributes:
        experts: those merged in this group, in the order of ``Recipe.experts``.
        weights: the method's own weight of each, mean over depth; for slerp its share.
        total: what the coefficients of the experts sum to: 1, or λ Σw for task vectors.
        factor: coefficient per unit of weight.
        void: whether no combination stands for the weights as they are; the total is then the 1
            that it should be, and the shares themselves are the weights.
    """

    experts: tuple[ModelReference, ...]
    weights: tuple[float, ...]
    total: float
    factor: float
    void: bool = False


def require_shares(
    shares: Mapping[ModelReference, float], experts: Sequence[ModelReference]
) -> None:
    """Shares are convex, and there is one for each expert.

    Raises:
        InvalidRecipeError: they are not.
    """
    if set(shares) != set(experts):
        raise InvalidRecipeError(
            f"shares are given for {', '.join(map(str, shares)) or 'no model'}; "
            f"the experts are {', '.join(map(str, experts))}"
        )
    values = list(shares.values())
    if not (all(v >= 0 for v in values) and abs(math.fsum(values) - 1) <= 1e-6):
        raise InvalidRecipeError(f"shares are not negative and sum to 1, got {values}")


def require_weights(method: str) -> None:
    """The method takes weights of the user's.

    Raises:
        UnchangeableRecipeError: it does not; the message names methods that do.
    """
    if method != "slerp" and parameter(method, "weight") is None:
        raise UnchangeableRecipeError(
            f"merge_method {method} has no weights to change; "
            "use one that has, such as weighted_karcher or linear"
        )


def own_weights(recipe: Recipe, place: Place) -> OwnWeights:
    """Read one group as `recipe_coefficients` reads it.

    Raises:
        InvalidRecipeError: a weight is missing or wrong.
        UnchangeableRecipeError: the weights subtract as much as they add.
    """
    group = place.group
    base = None if group.base in recipe.experts else group.base
    found = recipe_coefficients(replace(recipe, groups=(group,), base=base))
    if recipe.config.merge_method == "slerp":
        if found.alpha is None:
            raise UnchangeableRecipeError(f"{group.label}: {found.note}")
        pairs = [(m, float(a)) for m, a in zip(recipe.experts, found.alpha, strict=False)]
        pairs = [(m, a) for m, a in pairs if m in group.models]
    else:
        pairs = [
            (m, w) for m, w in zip(recipe.experts, found.weights, strict=True) if w is not None
        ]
    experts, weights = zip(*pairs, strict=True)
    if found.alpha is None:
        # Normalised to nothing, or never normalised: either way the shares are the weights.
        return OwnWeights(experts, weights, total=1.0, factor=1.0, void=True)
    total = float(sum(found.alpha[recipe.experts.index(m)] for m in experts))
    if not total > 1e-9:
        raise UnchangeableRecipeError(
            f"{group.label}: its coefficients sum to {total:g}, so that shares of them mean "
            "nothing; give it weights with a positive sum"
        )
    return OwnWeights(experts, weights, total, factor=total / math.fsum(weights))
