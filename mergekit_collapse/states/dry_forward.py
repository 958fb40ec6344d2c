"""A model's own forward pass around its layers, which are run apart from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


class NotLayeredError(Exception):
    """A model that cannot be run layer by layer; the text says why, to follow "because"."""


class _Enough(BaseException):
    """Ends a forward pass at its last layer; no ``except Exception`` on the way holds it up."""


@dataclass(frozen=True)
class LayerCall:
    """What a model calls a layer with besides the hidden state: masks, positions, rotations.

    Layers share these tensors; a call refers to them and copies nothing.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    by_name: bool

    def run(
        self, layer: torch.nn.Module, tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor
    ) -> Any:
        """What the layer returns with these tensors in the place of its parameters."""
        arguments, keywords = (hidden, *self.arguments), self.keywords
        if self.by_name:
            arguments, keywords = self.arguments, {**keywords, "hidden_states": hidden}
        return torch.func.functional_call(
            layer, dict(tensors), arguments, dict(keywords), tie_weights=False
        )


def record(
    run: Callable[[], object], layers: Sequence[torch.nn.Module], in_tuple: bool
) -> tuple[torch.Tensor, list[LayerCall]]:
    """The embeddings' output and the call of every layer; no layer is run.

    Args:
        run: the model's forward pass.
        in_tuple: whether the model expects a layer to return a tuple.

    Raises:
        NotLayeredError: the model does more than hand each layer's state to the next.
    """
    states: list[torch.Tensor] = []
    calls: list[LayerCall] = []

    def stub(place: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        by_name = not arguments
        if by_name and "hidden_states" not in keywords:
            raise NotLayeredError("its layers take no hidden state")
        hidden = keywords.pop("hidden_states") if by_name else arguments[0]
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            raise NotLayeredError("its layers do not take one state per position")
        if place != len(calls):
            raise NotLayeredError("its layers do not run once each in their order")
        if states and hidden is not states[0]:
            raise NotLayeredError(f"it changes the state between layers {place} and {place + 1}")
        states.append(hidden)
        calls.append(LayerCall(arguments[1:], keywords, by_name))
        if len(calls) == len(layers):
            raise _Enough
        return (hidden,) if in_tuple else hidden

    with _in_place_of(layers, stub):
        try:
            run()
        except _Enough:
            return states[0], calls
    raise NotLayeredError("its forward pass does not run its layers")


def finish(
    run: Callable[[], Any], layers: Sequence[torch.nn.Module], hidden: torch.Tensor, extra: int
) -> Any:
    """What the model returns if its last layer gives ``hidden``.

    Args:
        extra: how many further items the layers return; -1 if they return a bare tensor.
    """

    def stub(place: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        handed = arguments[0] if arguments else keywords["hidden_states"]
        state = hidden if place == len(layers) - 1 else handed
        return state if extra < 0 else (state, *[None] * extra)

    with _in_place_of(layers, stub):
        return run()


@contextmanager
def _in_place_of(
    layers: Sequence[Any], stub: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
) -> Iterator[None]:
    def forward_of(place: int) -> Callable[..., Any]:
        return lambda *arguments, **keywords: stub(place, arguments, keywords)

    for place, layer in enumerate(layers):
        layer.forward = forward_of(place)
    try:
        yield
    finally:
        for layer in layers:
            # What hid the class's own method.
            del layer.forward
