"""A whole model's own forward pass with one layer's weights in memory: the slow, sure way."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.forward import Outputs, forward
from mergekit_collapse.states.layered import LayeredModel

# One stage's tensors by the checkpoint's names.
Load = Callable[[int], Mapping[str, torch.Tensor]]


def whole_outputs(layered: LayeredModel, load: Load, batch: Batch, answers: bool) -> Outputs:
    """What transformers gives for a batch: the states after every layer, and the answers.

    Nothing of the model's own forward pass is taken apart: weights come when a layer is called,
    and go when it returns; those of both ends change places when the last one does.

    Raises:
        EvaluationError: a tensor is missing or of another shape, or the model fails.
    """
    depth, model = layered.depth, layered.model
    named = partial(_named, layered, load)
    with ExitStack() as stack:
        ends = stack.enter_context(ExitStack())
        ends.enter_context(_with_tensors(model, named(0)))
        for k, layer in enumerate(layered.layers, start=1):
            stack.enter_context(_loaded_when_called(model, layer, partial(named, k)))

        def turn(*_call: Any) -> None:
            # Both at once may be the embeddings twice.
            ends.close()
            ends.enter_context(_with_tensors(model, named(depth + 1)))

        stack.callback(layered.layers[-1].register_forward_hook(turn).remove)
        return forward(model, batch, range(depth + 1), depth, answers)


def _named(layered: LayeredModel, load: Load, stage: int) -> dict[str, torch.Tensor]:
    return layered.named(stage, load(stage))


@contextmanager
def _loaded_when_called(
    model: Any, layer: torch.nn.Module, load: Callable[[], dict[str, torch.Tensor]]
) -> Iterator[None]:
    held = ExitStack()

    def before(*_call: Any) -> None:
        held.enter_context(_with_tensors(model, load()))

    def after(*_call: Any) -> None:
        held.close()

    handles = layer.register_forward_pre_hook(before), layer.register_forward_hook(after)
    try:
        yield
    finally:
        held.close()
        for handle in handles:
            handle.remove()


@contextmanager
def _with_tensors(model: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Tensors in the place of the model's own, by name."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        held = module._parameters if leaf in module._parameters else module._buffers
        before.append((held, leaf, held[leaf]))
        held[leaf] = (
            torch.nn.Parameter(tensor, requires_grad=False)
            if held is module._parameters
            else tensor
        )
    try:
        yield
    finally:
        for held, leaf, value in reversed(before):
            held[leaf] = value
