"""A whole model's own forward pass with one layer's weights in memory: the slow, sure way."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.forward import Outputs, forward
from mergekit_collapse.states.layered import LayeredModel

Tensors = Mapping[str, torch.Tensor]
# One stage's tensors by the checkpoint's names.
Load = Callable[[int], Tensors]


def whole_outputs(
    layered: LayeredModel,
    load: Load,
    batch: Batch,
    answers: bool,
    beside: Callable[[int, Tensors], object],
) -> Outputs:
    """What transformers gives for a batch: the states after every layer, and the answers.

    Nothing of the model's own forward pass is taken apart: weights come when a layer is called,
    and go when it returns; those of both ends change places when the last one does.

    Args:
        beside: called with each stage and what was loaded for it, in their order. It may run
            ``layered``.

    Raises:
        EvaluationError: a tensor is missing or of another shape, or the model fails.
    """
    # A copy, of no values, since transformers notes down what its layers return meanwhile.
    model, layers = copy.deepcopy((layered.model, layered.layers))
    depth, ends, inner = layered.depth, ExitStack(), ExitStack()

    def take(stage: int, held: ExitStack) -> None:
        # Both ends at once may be the embeddings twice.
        held.close()
        tensors = load(stage)
        beside(stage, tensors)
        held.enter_context(_with_tensors(model, layered.named(stage, tensors)))

    with ends, inner, ExitStack() as hooks:
        take(0, ends)
        for k, layer in enumerate(layers, start=1):
            before = layer.register_forward_pre_hook(lambda *_call, k=k: take(k, inner))
            after = layer.register_forward_hook(lambda *_call: inner.close())
            # Left alone, the copy and they would hold on to one another, and to open files.
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        turn = layers[-1].register_forward_hook(lambda *_call: take(depth + 1, ends))
        hooks.callback(turn.remove)
        return forward(model, batch, range(depth + 1), depth, answers)


@contextmanager
def _with_tensors(model: Any, tensors: Tensors) -> Iterator[None]:
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
