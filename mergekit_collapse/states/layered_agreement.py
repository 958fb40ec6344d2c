"""Whether running a model layer by layer gives what the whole gives."""

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
    the precision's own (bfloat16: 2⁻⁷), as it must for the log-probabilities.

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
        layered = LayeredModel(config, options, where, [batch], answers)
        with told_as_evaluation_error(where, _MEND):
            whole = forward(whole_model, batch, range(layered.depth + 1), layered.depth, answers)
            # A stage at a time, the tensors of other stages are not read.
            tensors = whole_model.state_dict()
            return _difference(layered, lambda _: tensors, whole, options)
    except NotLayeredError as error:
        return str(error)
    except EvaluationError as error:
        return _reason(error)


def agrees_by_stage(
    layered: LayeredModel, load: Load, batch: Batch, answers: bool, options: LoadOptions
) -> str | None:
    """The same without a whole model in memory: its own forward pass, with weights as it calls.

    Args:
        layered: made for ``batch`` alone.
        load: a stage's tensors by the checkpoint's names.
    """
    try:
        with told_as_evaluation_error(layered.where, _MEND):
            whole = whole_outputs(layered, load, batch, answers)
            return _difference(layered, load, whole, options)
    except EvaluationError as error:
        return _reason(error)


def _reason(error: EvaluationError) -> str:
    if isinstance(error, OutOfMemoryError) or isinstance(error.__cause__, OSError):
        raise error
    return str(error)


def _difference(
    layered: LayeredModel, load: Load, whole: Outputs, options: LoadOptions
) -> str | None:
    depth = layered.depth
    epsilon = 0.0 if options.dtype == torch.float32 else torch.finfo(options.dtype).eps
    for _, states in layered.embed(load(0)):
        if not _same(states, whole.hidden[0], epsilon):
            return "its embeddings differ from those of the whole model"
    for k in range(1, depth + 1):
        for _, states in layered.layer(k, load(k)):
            # The last is compared after the norm, which is where the whole gives it.
            if k < depth and not _same(states, whole.hidden[k], epsilon):
                return f"its states after layer {k} differ from those of the whole model"
    for _, outputs in layered.head(load(depth + 1)):
        return _end_difference(outputs, whole, epsilon)
    return "it gives no states"


def _end_difference(outputs: Outputs, whole: Outputs, epsilon: float) -> str | None:
    if not _same(outputs.hidden[0], whole.hidden[-1], epsilon):
        return "its states after the last layer differ from those of the whole model"
    if outputs.answers is None or whole.answers is None:
        return None
    if not _same(outputs.answers, whole.answers, epsilon):
        return "its answers differ from those of the whole model"
    return None


def _same(layered: torch.Tensor, whole: torch.Tensor, epsilon: float) -> bool:
    if layered.shape != whole.shape:
        return False
    if not epsilon:
        return torch.equal(layered, whole)
    difference = torch.linalg.vector_norm(layered.double() - whole.double())
    # NaN is not within any distance.
    return bool(difference <= epsilon * torch.linalg.vector_norm(whole.double()))
