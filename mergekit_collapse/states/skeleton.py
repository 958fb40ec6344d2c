"""A model without weights, as transformers would run it, around a stack of layers."""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import accelerate
import torch
import transformers
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.dry_forward import LayerCall, NotLayeredError, finish, record
from mergekit_collapse.states.forward import arguments_of, depth, has_language_head
from mergekit_collapse.states.loader import LoadOptions, model_class, quiet

__all__ = ["NotLayeredError", "Skeleton", "kept_precisions"]


class Skeleton:
    """A model on ``meta``, to be run with the weights of one stage at a time.

    Args:
        config: of transformers.
        options: device and precision of the forward passes.
        where: which model, the beginning of every message.
        batch: any, to see by how the model runs.
        answers: whether its head is run; None for where it has one.

    Attributes:
        answers: whether its head is run.
        model: the whole, in evaluation mode; its buffers are real and on the device.
        depth: L, the number of layers.
        stack: name of the list of layers.
        layers: its members.
        in_tuple: whether the model expects a layer to return a tuple.
        early: names of the tensors that are used before the first layer.

    Raises:
        EvaluationError: transformers knows no such architecture.
        NotLayeredError: the model is not a stack of layers that can be run apart.
    """

    def __init__(
        self, config: Any, options: LoadOptions, where: str, batch: Batch, answers: bool | None
    ) -> None:
        if config.is_encoder_decoder:
            raise NotLayeredError("it is an encoder-decoder, which is more than a stack of layers")
        self.depth = depth(config)
        self.model = _build(config, options, where)
        head = has_language_head(self.model)
        if answers and not head:
            raise NotLayeredError("it has no head that predicts a next token")
        self.answers = head if answers is None else answers
        self.stack, self.layers = _find_stack(self.model, self.depth)
        self._runner = self.model if self.answers else self.model.base_model
        names = {id(module): name for name, module in self.model.named_modules()}
        self._prefix = f"{name}." if (name := names[id(self._runner)]) else ""
        self._device = torch.device(options.device)
        self.in_tuple, self.early = self._learn(batch)

    def record(
        self, tensors: Mapping[str, torch.Tensor], batch: Batch, in_tuple: bool
    ) -> tuple[torch.Tensor, list[LayerCall]]:
        """What the embeddings give for a batch, and what each layer is called with."""
        return record(lambda: self._call(tensors, batch), self.layers, in_tuple)

    def finish(
        self, tensors: Mapping[str, torch.Tensor], batch: Batch, hidden: torch.Tensor, extra: int
    ) -> Any:
        """What the model returns for a batch if its last layer gives ``hidden``."""
        return finish(lambda: self._call(tensors, batch), self.layers, hidden, extra)

    def stand_ins(self) -> dict[str, torch.Tensor]:
        """Zeros in the place of everything outside the layers, each the memory of one number."""
        return {
            name: torch.zeros((), dtype=tensor.dtype, device=self._device).expand(tensor.shape)
            for name, tensor in self.model.state_dict(keep_vars=True).items()
            if not name.startswith(f"{self.stack}.")
        }

    def _call(self, tensors: Mapping[str, torch.Tensor], batch: Batch) -> Any:
        given = {
            name.removeprefix(self._prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(self._prefix)
        }
        keywords = arguments_of(self._runner, batch, self._device, inner=False)
        # Names that are tied are given each by itself.
        return torch.func.functional_call(self._runner, given, (), keywords, tie_weights=False)

    @torch.inference_mode()
    def _learn(self, batch: Batch) -> tuple[bool, set[str]]:
        zeros = self.stand_ins()
        # Any tokens do, and there may be none but the first: a merge may yet add to them.
        ids, mask = torch.zeros_like(batch.inputs.ids[:2]), batch.inputs.mask[:2]
        batch = replace(batch, inputs=replace(batch.inputs, ids=ids, mask=mask))
        reason: Exception = NotLayeredError("it has no layers")
        # What a layer returns cannot be asked; what the model takes can be tried.
        for in_tuple in (False, True):
            uses = _Uses(zeros)
            try:
                with uses:
                    self.record(zeros, batch, in_tuple)
                return in_tuple, uses.names
            except Exception as error:
                # The model's own code may raise anything when it is handed something else.
                reason = error if not in_tuple or isinstance(error, NotLayeredError) else reason
        if isinstance(reason, NotLayeredError):
            raise reason
        raise NotLayeredError(f"it cannot be run without its layers ({first_line(reason)})")


class _Uses(TorchFunctionMode):
    """Notes which of some tensors enter the computation of another."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Not a question for its device or its shape.
        if isinstance(result, torch.Tensor):
            ids = {id(leaf) for leaf in tree_leaves((args, kwargs))}
            self.names |= {name for key, name in self._names.items() if key in ids}
        return result


def _build(config: Any, options: LoadOptions, where: str) -> Any:
    """The model that the loader would give, in evaluation mode, its parameters on ``meta``.

    Buffers are real and on the device: rotary frequencies are in no checkpoint.

    Raises:
        EvaluationError: transformers knows no such architecture.
        NotLayeredError: the model's own code cannot be built without weights.
    """
    chosen = model_class(config, options, where)
    # Building writes the precision into the configuration.
    config = copy.deepcopy(config)
    named = issubclass(chosen, transformers.PreTrainedModel)
    build, more = chosen.from_config if not named else chosen._from_config, {}
    if not named:
        more["trust_remote_code"] = options.trust_remote_code
    try:
        for part in (config, config.get_text_config()):
            # Asked for in config.json, they would be collected at every call.
            part.output_hidden_states = part.output_attentions = False
        with quiet(), accelerate.init_empty_weights(include_buffers=False):
            model = build(config, dtype=options.dtype, **more)
        # Within the block every parameter became a copy of its own.
        model.tie_weights()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(options.device)
    except Exception as error:
        # The code may be anybody's, so what it raises may be anything.
        raise NotLayeredError(
            f"it cannot be built without weights ({first_line(error)})"
        ) from error
    # Ties are ours to keep: a parameter on meta is not one with its copy there.
    return model.eval()


def _find_stack(model: Any, depth: int) -> tuple[str, tuple[torch.nn.Module, ...]]:
    """The name and the members of the one list of ``depth`` layers.

    Raises:
        NotLayeredError: there is none, or more than one.
    """
    inside = {id(module) for module in model.base_model.modules()}
    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in found)
        fits = isinstance(module, torch.nn.ModuleList) and len(module) == depth
        # A list within a layer, such as that of its experts, may be as long by chance.
        if fits and id(module) in inside and not nested:
            found[name] = module
    if len(found) != 1:
        names = f" ({', '.join(found)})" if found else ""
        raise NotLayeredError(f"it has {len(found)} lists of {depth} layers{names}, not one")
    ((name, stack),) = found.items()
    if depth == 0 or len({id(layer) for layer in stack}) != depth:
        raise NotLayeredError("its layers are not modules of their own")
    return name, tuple(stack)


def kept_precisions(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Per floating tensor of the checkpoint, the precision that the loader would give it."""
    # transformers has no public word for what it keeps in float32, or for when it does.
    plan = model._get_dtype_plan(dtype) if hasattr(model, "_get_dtype_plan") else {}
    patterns = [(re.compile(key.replace("*", ".*")), kept) for key, kept in plan.items()]
    precisions = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            kept = (precision for pattern, precision in patterns if pattern.search(name))
            precisions[name] = next(kept, tensor.dtype)
    return precisions
