"""A model run a layer at a time for all batches, with weights that are handed in."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.dry_forward import LayerCall
from mergekit_collapse.states.forward import Outputs, answers_in, captured, head_sees_only
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.skeleton import Skeleton, kept_precisions
from mergekit_collapse.states.tensor_stages import TensorStages

_MEND = "check that the model runs in transformers by itself"


class LayeredModel:
    """transformers' own model, of which never more than one stage's weights are in memory.

    ``embed``, ``layer`` 1 to L and ``head`` are called once each in this order, with every
    iterator used up before the next call. Each may be given the tensors of other stages too;
    it does not read them. A stage's tensors are let go of when its last batch is done;
    embeddings that the head shares are given to both.

    Args:
        config: of transformers.
        options: device and precision of the forward passes.
        where: which model, the beginning of every message.
        batches: all that are to be run, at least one; the states of one layer are held for each.
        answers: whether ``head`` is to give log-probabilities; None for where the model can.

    Attributes:
        where: which model, the beginning of every message.
        depth: L, the number of layers.

    Raises:
        EvaluationError: transformers knows no such architecture.
        NotLayeredError: the model is not a stack of layers that can be run apart.
    """

    def __init__(
        self,
        config: Any,
        options: LoadOptions,
        where: str,
        batches: Sequence[Batch],
        answers: bool | None,
    ) -> None:
        self.where = where
        self._skeleton = skeleton = Skeleton(config, options, where, batches[0], answers)
        self._answers = skeleton.answers
        self._device = torch.device(options.device)
        self._precisions = kept_precisions(skeleton.model, options.dtype)
        self._stages = TensorStages(skeleton.model, skeleton.stack, skeleton.depth, skeleton.early)
        # How many further items a layer returns, -1 for a bare tensor.
        self._extra = 0 if skeleton.in_tuple else -1
        self.depth = skeleton.depth
        self._begin(batches)

    def _begin(self, batches: Sequence[Batch]) -> None:
        self._batches = tuple(batches)
        self._next: int | None = 0
        self._numbers: tuple[int, ...] = tuple(range(len(self._batches)))
        self._states: dict[int, torch.Tensor] = {}
        self._calls: dict[int, list[LayerCall]] = {}

    def afresh(self, where: str, batches: Sequence[Batch]) -> "LayeredModel":
        """A model of the same configuration for other batches, of which nothing was run yet."""
        other = copy.copy(self)
        other.where = where
        other._begin(batches)
        return other

    @property
    def model(self) -> Any:
        """transformers' own model, its parameters without values."""
        return self._skeleton.model

    @property
    def layers(self) -> tuple[torch.nn.Module, ...]:
        """The model's layers, the first first."""
        return self._skeleton.layers

    def branch(self, where: str, numbers: Collection[int]) -> "LayeredModel":
        """A model that goes on from here by itself, with other weights and these batches alone.

        What was computed before is shared and not copied.
        """
        other = copy.copy(self)
        other.where = where
        other.keep(numbers)
        return other

    def keep(self, numbers: Collection[int]) -> None:
        """Go on with these batches alone."""
        self._numbers = tuple(n for n in self._numbers if n in numbers)
        self._states = {n: self._states[n] for n in self._numbers if n in self._states}

    def stages_of(self, tensor_name: str) -> tuple[int, ...]:
        """0 for the embeddings, k for layer k, L + 1 for norm and head; both for what they share.

        A tensor for which the model has no place is in none.
        """
        return self._stages.stages_of(tensor_name)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Tensors that a checkpoint with these names lacks; tied ones are not missing."""
        return self._stages.missing(names)

    def vocabulary_of(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """Rows of the token embeddings among these tensors, None if they are not there."""
        return self._stages.embedding_rows(tensors)

    def prepared(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of a checkpoint as its stages compute with them; those of no stage left out."""
        places = {name: self._stages.place(name) for name in tensors}
        return {
            name: self._placed({place: tensors[name]})[place]
            for name, place in places.items()
            if place is not None
        }

    def named(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One stage's tensors by the whole model's names, as it computes with them.

        Raises:
            EvaluationError: a tensor is missing or of another shape.
        """
        return self._placed(self._stages.pick(stage, tensors, self.where))

    def embed(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Per batch its number and transformers' ``hidden_states[0]``.

        Raises:
            EvaluationError: a tensor is missing or of another shape, or the model fails.
        """
        given = self._take(0, tensors)
        self._states, self._calls = {}, {}
        return self._embedded(self._placed(given))

    def layer(
        self, k: int, tensors: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Per batch its number and what layer k returns: ``hidden_states[k]`` for k < L.

        Raises:
            EvaluationError: a tensor is missing or of another shape, or the model fails.
        """
        prefix = f"{self._skeleton.stack}.{k - 1}."
        given = self._placed(self._take(k, tensors))
        return self._run(k, {name.removeprefix(prefix): t for name, t in given.items()})

    def head(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, Outputs]]:
        """Per batch its number, ``last_hidden_state`` and the answers, as ``forward`` gives them.

        Raises:
            EvaluationError: a tensor is missing or of another shape, or the model fails.
        """
        placed = self._placed(self._take(self.depth + 1, tensors))
        return self._finished({**self._skeleton.stand_ins(), **placed})

    def _take(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._next != stage:
            due = "a stage that is not used up" if self._next is None else f"stage {self._next}"
            raise RuntimeError(f"{self.where}: stage {stage} was asked for, but {due} is due")
        return self._stages.pick(stage, tensors, self.where)

    def _placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # detach, since functional_call would hand a parameter's gradients on.
        return {
            name: tensor.detach().to(self._device, self._precisions.get(name, tensor.dtype))
            for name, tensor in tensors.items()
        }

    def _embedded(self, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        self._next = None
        for number in self._numbers:
            with told_as_evaluation_error(self.where, _MEND), torch.inference_mode():
                hidden, self._calls[number] = self._skeleton.record(
                    tensors, self._batches[number], self._skeleton.in_tuple
                )
            self._states[number] = hidden
            yield number, hidden
        self._next = 1

    def _run(self, k: int, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        self._next = None
        module = self._skeleton.layers[k - 1]
        for number in self._numbers:
            with told_as_evaluation_error(self.where, _MEND), torch.inference_mode():
                output = self._calls[number][k - 1].run(module, tensors, self._states[number])
                self._extra = len(output) - 1 if isinstance(output, tuple) else -1
                hidden = output[0] if isinstance(output, tuple) else output
                if hidden.shape != self._states[number].shape:
                    raise EvaluationError(f"{self.where}: layer {k} gives no state per position")
            self._states[number] = hidden
            yield number, hidden
        self._next = k + 1

    def _finished(self, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[int, Outputs]]:
        self._next = None
        for number in self._numbers:
            batch, hidden = self._batches[number], self._states.pop(number)
            with (
                told_as_evaluation_error(self.where, _MEND),
                torch.inference_mode(),
                captured(self._skeleton.model) as outputs,
                head_sees_only(self._skeleton.model, batch, self._device, self._answers) as seen,
            ):
                output = self._skeleton.finish(tensors, batch, hidden, self._extra)
                answers = answers_in(output.logits, batch, seen) if self._answers else None
                last = outputs[-1].last_hidden_state
            yield number, Outputs((last,), answers)
        self._next = self.depth + 2
