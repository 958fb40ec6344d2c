"""A recipe with another merge method and the weights that it had."""

from collections.abc import Callable, Iterator
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import BasePolicy

from mergekit_collapse.recipe.places import (
    Place,
    UnchangeableRecipeError,
    holders,
    in_force,
    mapped,
    parameter,
    places,
    put,
    resolved,
    source_of,
    straight,
)

# The same name, but what it scales is a task vector's weight in one and a mean's in the other.
_OTHERWISE_MEANT = {"normalize"}


def with_method(config: MergeConfiguration, method: str) -> MergeConfiguration:
    """The recipe with a method that averages its experts, such as ``weighted_karcher``.

    Weights stay, with their gradients and filters; slerp's ``t`` becomes the weights 1 - t and
    t. Parameters that the new method does not know go. A base that task vectors were taken from
    is not averaged, so it leaves the recipe.

    Args:
        config: a recipe; it is not changed.
        method: one that takes no base: weighted_karcher, rescaled_mean, karcher or linear.

    Raises:
        UnchangeableRecipeError: the recipe merges nothing, the method needs a base, or a
            weight is not allowed by it, such as a negative one.
    """
    recipe = resolved(config)
    spec = merge_methods.get(method).spec
    if spec.contract.base is not BasePolicy.IGNORED or spec.contract.max_inputs == 1:
        raise UnchangeableRecipeError(
            f"merge_method {method} does not average what {config.merge_method} merges; "
            "use weighted_karcher, rescaled_mean or linear"
        )
    if not recipe.experts:
        raise UnchangeableRecipeError(
            f"the recipe merges nothing, so {method} has nothing to average"
        )
    config = config.model_copy(deep=True)
    if config.merge_method == "slerp":
        _position_to_weights(config)
    _drop_parameters(config, {p.name for p in spec.parameters} - _OTHERWISE_MEANT)
    config.merge_method = method
    _drop_bases(config, recipe.experts)
    if (weight := parameter(method, "weight")) is not None:
        for place in places(config):
            for model in place.group.models:
                _validate_weight(place, model, weight)
    if resolved(config).experts != recipe.experts:
        raise UnchangeableRecipeError(
            "a slice merges one expert into its base, and without the base nothing is merged there"
        )
    return config


def _position_to_weights(config: MergeConfiguration) -> None:
    spec = parameter("slerp", "t")
    for place in places(config):
        if len(place.group.sources) < 2:
            continue
        t = in_force("t", place.group.settings, spec)
        for model in place.group.models:
            # The base is where t is 0.
            slope, offset = (-1.0, 1.0) if model == place.group.base else (1.0, 0.0)
            put(
                source_of(place, model), "weight", mapped(t, straight(spec.validate, slope, offset))
            )


def _parts(config: MergeConfiguration) -> Iterator[Any]:
    yield from holders(config)
    for place in places(config):
        yield from place.sources


def _drop_parameters(config: MergeConfiguration, known: set[str]) -> None:
    for part in _parts(config):
        if part.parameters is not None:
            part.parameters = {k: v for k, v in part.parameters.items() if k in known} or None


def _drop_bases(config: MergeConfiguration, experts: tuple[ModelReference, ...]) -> None:
    """Bases that are no experts: as sources, and as what MergeKit would add by itself."""
    old = config.base_model
    for place in list(places(config)):
        place.sources[:] = [s for s in place.sources if s.model in experts] or place.sources
    for part in holders(config):
        if getattr(part, "base_model", None) not in (None, *experts):
            part.base_model = None
    if old is not None and config.base_model is None:
        if config.tokenizer_source == "base":
            config.tokenizer_source = old
        if config.tokenizer is not None and config.tokenizer.source == "base":
            config.tokenizer = config.tokenizer.model_copy(update={"source": old})


def _validate_weight(place: Place, model: ModelReference, spec: Any) -> None:
    """Give a weight where the method needs one, and refuse one that it does not allow."""
    source = source_of(place, model)
    setting = in_force("weight", (source.parameters or {}, *place.group.settings), spec)
    if setting is None:
        put(source, "weight", 1.0)
        return
    try:
        mapped(setting, _each(spec.validate))
    except ValueError:
        raise UnchangeableRecipeError(
            f"{place.group.label}: {model}: the weight {setting!r} is not one that the new method "
            "takes; weights of a mean are finite and not negative"
        ) from None


def _each(validate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: [validate(v) for v in (value if isinstance(value, list) else [value])]
