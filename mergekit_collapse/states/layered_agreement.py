"""Whether running a model layer by layer gives what the whole gives."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mergekit_collapse.errors import EvaluationError, OutOfMemoryError
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.forward import Outputs, forward, has_language_head
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.whole_by_stage import Load, whole_outputs

_MEND = "check that the model runs in transformers by itself"


def agrees_with_whole(
    whole_model: Any, config: Any, options: LoadOptions, where: str, batch: Batch
) -> str | None:
    """Run one batch both ways with a whole model's own tensors.

    In float32 every state and every log-probability must be the same number. In a lower
    precision ‖layered − whole‖ ≤ ε ‖whole‖ must hold for the states of each layer, ε being
    the precision's own (bfloat16: 2⁻⁷), as it must for the log-probabilities. Layer by layer,
    another batch takes turns with it, as in earnest.

    Args:
        whole_model: on ``options.device`` in ``options.dtype``.
        batch: a small one, of several sequences of different lengths.

    Returns:
        None where they agree, else the reason, to follow "because".

    Raises:
        EvaluationError: memory ran out or a file cannot be read, which says nothing of the model.
    """
    try:
        answers = has_language_head(whole_model)
        layered = LayeredModel(config, options, where, _with_another(batch), answers)
        with told_as_evaluation_error(where, _MEND):
            whole = forward(whole_model, batch, range(layered.depth + 1), layered.depth, answers)
            tensors, run = whole_model.state_dict(), _Layered(layered)
            for stage in range(layered.depth + 2):
                # The tensors of other stages are not read.
                run.add(stage, tensors)
            return run.difference(whole, options)
    except NotLayeredError as error:
        return str(error)
    except EvaluationError as error:
        return _reason(error)


def agrees_by_stage(
    layered: LayeredModel, load: Load, batch: Batch, answers: bool, options: LoadOptions
) -> str | None:
    """The same without a whole model in memory: its own forward pass, with weights as it calls.

    Args:
        layered: of the model, for any batches.
        load: a stage's tensors by the checkpoint's names; called once for each stage.
    """
    try:
        with told_as_evaluation_error(layered.where, _MEND):
            layered = layered.afresh(layered.where, _with_another(batch))
            run = _Layered(layered)
            whole = whole_outputs(layered, load, batch, answers, run.add)
            return run.difference(whole, options)
    except EvaluationError as error:
        return _reason(error)


def _reason(error: EvaluationError) -> str:
    if isinstance(error, OutOfMemoryError) or isinstance(error.__cause__, OSError):
        raise error
    return str(error)


def _with_another(batch: Batch) -> list[Batch]:
    """The batch and one of other tokens: what a layer leaves for the next beside its state would
    be the other's.
    """
    inputs = replace(batch.inputs, ids=batch.inputs.ids.flip(1))
    return [batch, replace(batch, inputs=inputs)]


class _Layered:
    """What the first of its batches comes to layer by layer."""

    def __init__(self, layered: LayeredModel) -> None:
        self._layered = layered
        self._states: list[torch.Tensor] = []

    def add(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Run the next stage."""
        if stage > self._layered.depth:
            (_, self._outputs), *_ = self._layered.head(tensors)
            return
        given = self._layered.layer(stage, tensors) if stage else self._layered.embed(tensors)
        (_, states), *_ = given
        self._states.append(states)

    def difference(self, whole: Outputs, options: LoadOptions) -> str | None:
        """What differs from the whole's outputs after every layer."""
        epsilon = 0.0 if options.dtype == torch.float32 else torch.finfo(options.dtype).eps
        # The last is compared after the norm, which is where the whole gives it.
        states = [*self._states[:-1], self._outputs.hidden[0]]
        for layer, (mine, due) in enumerate(zip(states, whole.hidden, strict=True)):
            if not _same(mine, due, epsilon):
                return f"its {self._called(layer)} differ from those of the whole model"
        answers = self._outputs.answers
        if answers is None or whole.answers is None:
            return None
        if not _same(answers, whole.answers, epsilon):
            return "its answers differ from those of the whole model"
        return None

    def _called(self, layer: int) -> str:
        if layer == 0:
            return "embeddings"
        place = "the last layer" if layer == self._layered.depth else f"layer {layer}"
        return f"states after {place}"


def _same(layered: torch.Tensor, whole: torch.Tensor, epsilon: float) -> bool:
    if layered.shape != whole.shape:
        return False
    if not epsilon:
        return torch.equal(layered, whole)
    difference = torch.linalg.vector_norm(layered.double() - whole.double())
    # NaN is not within any distance.
    return bool(difference <= epsilon * torch.linalg.vector_norm(whole.double()))
