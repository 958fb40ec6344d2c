"""Weights layer by layer, written as MergeKit's gradients."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, MergeConfiguration, evaluate_setting

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.own_weights import own_weights, require_shares, require_weights
from mergekit_collapse.recipe.places import (
    Place,
    UnchangeableRecipeError,
    in_force,
    is_zero_number,
    mapped,
    parameter,
    places,
    put,
    resolved,
    source_of,
    tidy,
    towards,
)

Shares = Mapping[ModelReference, float]


def with_gradients(
    config: MergeConfiguration,
    per_layer: Sequence[Shares],
    outside: Mapping[str, Shares] | None = None,
) -> MergeConfiguration:
    """The recipe with weights of its own for every layer.

    A gradient of as many values as a slice has layers gives each layer its value. Every layer
    keeps the total that it has; where an own weight has filters, what they give is scaled layer
    by layer as the weight is. Tensors outside the layers (embeddings, final norm, head) have
    depth 0 for MergeKit, and so the first layer's weights, unless ``outside`` names them.

    Args:
        config: a recipe; it is not changed.
        per_layer: for each layer of the merged model, shares as `with_weights` takes them.
        outside: shares for tensors with this text in their name, such as ``lm_head``.

    Raises:
        UnchangeableRecipeError: the method has no weights, there are several stacks of
            layers, or a layer's weights cannot give such shares.
        InvalidRecipeError: as many shares as layers are needed, and these do not fit.
    """
    config = config.model_copy(deep=True)
    recipe = resolved(config)
    for shares in (*per_layer, *(outside or {}).values()):
        require_shares(shares, recipe.experts)
    require_weights(config.merge_method)
    for place, part in _by_layers(config, per_layer):
        own = own_weights(recipe, place)
        stack = _Stack(config.merge_method, place, part, outside or {})
        if config.merge_method == "slerp":
            stack.set_position(next(m for m in own.experts if m != place.group.base))
        else:
            stack.set_weights(own.experts, keep=not own.void)
    resolved(config)
    return config


def _by_layers(
    config: MergeConfiguration, per_layer: Sequence[Shares]
) -> Iterator[tuple[Place, Sequence[Shares]]]:
    """Each group that merges, with the shares of its layers."""
    found = list(places(config))
    if len(config.modules or ()) > 1:
        raise UnchangeableRecipeError(
            f"the modules {', '.join(config.modules or ())} have layers of their own; weights by "
            "layer need one stack"
        )
    layers = [p.group.layers if p.group.layers is not None else len(per_layer) for p in found]
    if sum(layers) != len(per_layer) or not per_layer:
        raise InvalidRecipeError(
            f"shares are given for {len(per_layer)} layers; the slices have {sum(layers)}"
        )
    start = 0
    for place, count in zip(found, layers, strict=True):
        if len(place.group.sources) > 1:
            yield place, per_layer[start : start + count]
        start += count


class _Stack:
    """The layers of one group, and what they shall have."""

    def __init__(
        self, method: str, place: Place, shares: Sequence[Shares], outside: Mapping[str, Shares]
    ) -> None:
        self.method, self.place, self.shares, self.outside = method, place, shares, outside
        last = len(shares) - 1
        # As MergeKit's planner counts depth.
        self.depths = [i / last for i in range(last + 1)] if last else [1.0]

    def set_weights(self, experts: Sequence[ModelReference], *, keep: bool) -> None:
        """Weights of each expert; ``keep`` its own total in each layer, or make it 1."""
        spec = parameter(self.method, "weight")
        label = self.place.group.label
        settings = {m: self._setting(m, spec) for m in experts}
        have = {m: self._values(s, spec) for m, s in settings.items()}
        totals = [math.fsum(h[k] for h in have.values()) for k in range(len(self.depths))]
        if keep and not all(total > 1e-9 for total in totals):
            raise UnchangeableRecipeError(
                f"{label}: the weights of a layer do not have a positive sum: {totals}"
            )
        totals = totals if keep else [1.0] * len(totals)
        rows = [self._within(shares, experts) for shares in self.shares]
        ends = {text: self._within(shares, experts) for text, shares in self.outside.items()}
        for model in experts:
            wanted = [total * row[model] for total, row in zip(totals, rows, strict=True)]
            named = {text: totals[0] * row[model] for text, row in ends.items()}
            new = self._scaled(model, settings[model], have[model], wanted, spec)
            put(source_of(self.place, model), "weight", _before(named, new))

    def set_position(self, other: ModelReference) -> None:
        """slerp's t for each layer: the share of the model that is not the base."""
        spec = parameter(self.method, "t")
        setting = in_force("t", self.place.group.settings, spec)
        have = self._values(setting, spec)
        pair = self.place.group.models
        wanted = [self._within(shares, pair)[other] for shares in self.shares]
        lines = [towards(now, new) for now, new in zip(have, wanted, strict=True)]

        def change(value: Any) -> Any:
            own = self._values(value, spec)
            return _gradient([a * x + b for (a, b), x in zip(lines, own, strict=True)])

        named = {text: self._within(s, pair)[other] for text, s in self.outside.items()}
        put(self.place.owner, "t", _before(named, mapped(setting, change)))

    def _setting(self, model: ModelReference, spec: Any) -> Any:
        own = [s.parameters for s in self.place.group.sources if s.model == model]
        return in_force("weight", (*own, *self.place.group.settings), spec)

    def _values(self, setting: Any, spec: Any) -> list[float]:
        """What a setting gives each layer where no filter holds."""
        validate: Callable[[Any], Any] = spec.validate
        return [float(evaluate_setting("", setting, t, validate=validate)) for t in self.depths]

    def _within(self, shares: Shares, models: Sequence[ModelReference]) -> Shares:
        """Shares of those that this group merges; nobody else has any."""
        if not (total := math.fsum(shares[m] for m in models)) > 1 - 1e-6:
            raise UnchangeableRecipeError(
                f"{self.place.group.label}: merges {', '.join(map(str, models))}, whose shares of "
                f"a layer sum to {total:g}; give all of them to these"
            )
        return {m: shares[m] / total for m in models}

    def _scaled(
        self,
        model: ModelReference,
        setting: Any,
        have: Sequence[float],
        wanted: Sequence[float],
        spec: Any,
    ) -> Any:
        plain = mapped(setting, lambda value: 0) == 0
        if plain or is_zero_number(setting, spec.validate):
            return _gradient(wanted)
        if not all(have):
            raise UnchangeableRecipeError(
                f"{self.place.group.label}: {model}: its weight is 0 in a layer, and has filters, "
                "which no factor scales; remove the filters"
            )

        def change(value: Any) -> Any:
            own = self._values(value, spec)
            return _gradient([x * w / h for x, w, h in zip(own, wanted, have, strict=True)])

        return mapped(setting, change)


def _gradient(values: Sequence[float]) -> Any:
    tidied = [tidy(value) for value in values]
    return tidied[0] if len(set(tidied)) == 1 else tidied


def _before(named: Mapping[str, float], setting: Any) -> Any:
    """Conditions by name, then the rest."""
    if not named:
        return setting
    conditional = isinstance(setting, list) and isinstance(setting[0], ConditionalParameter)
    rest = setting if conditional else [ConditionalParameter(value=setting)]
    if isinstance(setting, ConditionalParameter):
        rest = [setting]
    return [ConditionalParameter(filter=t, value=tidy(v)) for t, v in named.items()] + rest
