"""Whether running a model layer by layer gives what the whole gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.states.batching import Batch
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.forward import (
    LayersNotToldApartError,
    Outputs,
    forward,
    has_language_head,
)
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.whole_by_stage import Load, whole_outputs

_MEND = "check that the model runs in transformers by itself"
_LAST = "states after the last layer"


def agrees_with_whole(
    whole_model: Any, config: Any, options: LoadOptions, where: str, batches: Sequence[Batch]
) -> str | None:
    """Run one batch both ways with a whole model's own tensors.

    In float32 every state and every log-probability must be the same number. In a lower
    precision ‖layered − whole‖ ≤ ε ‖whole‖ must hold for the states of each layer, ε being
    the precision's own (bfloat16: 2⁻⁷), as it must for the log-probabilities.

    Args:
        whole_model: on ``options.device`` in ``options.dtype``.
        batches: the first is compared, of several sequences of different lengths. The others take
            turns with it layer by layer, as in earnest: what a layer leaves for the next beside
            its states would be theirs.

    Returns:
        None where they agree, else the reason, to follow "because". Either is true of every model
        that computes alike.

    Raises:
        EvaluationError: nothing was found out, since the weights do not fit or give NaN or
            infinity, memory ran out, or the model fails.
    """
    try:
        answers = has_language_head(whole_model)
        layered = LayeredModel(config, options, where, batches, answers)
        with told_as_evaluation_error(where, _MEND):
            depth = layered.depth
            whole = forward(whole_model, batches[0], range(depth + 1), depth, answers)
            tensors, run = whole_model.state_dict(), _Layered(layered)
            for stage in range(depth + 2):
                # The tensors of other stages are not read.
                run.add(stage, tensors)
            return run.difference(whole, options)
    except (NotLayeredError, LayersNotToldApartError) as error:
        return str(error)


def agrees_by_stage(
    layered: LayeredModel,
    load: Load,
    batches: Sequence[Batch],
    answers: bool,
    options: LoadOptions,
) -> str | None:
    """The same without a whole model in memory: its own forward pass, with weights as it calls.

    Args:
        layered: of the model, for any batches.
        load: a stage's tensors by the checkpoint's names; called once for each stage, in order.

    Raises:
        EvaluationError: as above, or a file cannot be read.
    """
    try:
        with told_as_evaluation_error(layered.where, _MEND):
            run = _Layered(layered.afresh(layered.where, batches))
            whole = whole_outputs(layered, load, batches[0], answers, run.add)
            return run.difference(whole, options)
    except LayersNotToldApartError as error:
        return str(error)


class _Layered:
    """What the first of its batches comes to layer by layer."""

    def __init__(self, layered: LayeredModel) -> None:
        self._layered = layered
        self._states: list[torch.Tensor] = []
        self._answers: torch.Tensor | None = None

    def add(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Run the next stage."""
        depth = self._layered.depth
        if stage > depth:
            (_, outputs), *_ = self._layered.head(tensors)
            # The last is compared after the norm, which is where the whole gives it.
            self._states[depth:] = outputs.hidden
            self._answers = outputs.answers
            return
        given = self._layered.layer(stage, tensors) if stage else self._layered.embed(tensors)
        (_, states), *_ = given
        self._states.append(states)

    def difference(self, whole: Outputs, options: LoadOptions) -> str | None:
        """What differs from the whole's outputs after every layer.

        Raises:
            EvaluationError: what differs is NaN or infinite.
        """
        depth = self._layered.depth
        if len(self._states) != depth + 1:
            return "its forward pass does not run all its layers"
        of = ["embeddings", *(f"states after layer {k}" for k in range(1, depth))]
        compared = list(zip([*of, _LAST], self._states, whole.hidden, strict=True))
        if self._answers is not None and whole.answers is not None:
            compared.append(("answers", self._answers, whole.answers))
        epsilon = 0.0 if options.dtype == torch.float32 else torch.finfo(options.dtype).eps
        for what, mine, due in compared:
            if _same(mine, due, epsilon):
                continue
            if not (mine.isfinite().all() and due.isfinite().all()):
                raise EvaluationError(f"{self._layered.where}: its {what} are NaN or infinite")
            return f"its {what} differ from those of the whole model"
        return None


def _same(layered: torch.Tensor, whole: torch.Tensor, epsilon: float) -> bool:
    if layered.shape != whole.shape:
        return False
    if not epsilon:
        return torch.equal(layered, whole)
    difference = torch.linalg.vector_norm(layered.double() - whole.double())
    # NaN is not within any distance.
    return bool(difference <= epsilon * torch.linalg.vector_norm(whole.double()))
