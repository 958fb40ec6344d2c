"""Checks on tensors that are in memory: finite, complete, unchanged."""

from collections.abc import Iterable
from typing import Any

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import shortened

_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def require_finite(where: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise if a weight is NaN or infinite.

    Raises:
        EvaluationError: names the tensor.
    """
    finite = {
        name: _all_finite(tensor)
        for name, tensor in tensors
        if tensor.is_floating_point() and tensor.numel()
    }
    # A GPU has been asked for all of them before the first answer is waited for.
    for name, answer in finite.items():
        if not answer:
            raise EvaluationError(
                f"{where}: NaN or infinite values in the weights {name}; the checkpoint is"
                " broken (diverged training or a failed save), use another one"
            )


def _all_finite(tensor: torch.Tensor) -> torch.Tensor:
    # aminmax hands NaN on and, unlike isfinite, needs no second tensor of the same size.
    low, high = torch.aminmax(tensor)
    return low.isfinite() & high.isfinite()


def require_complete(where: str, loading: dict[str, Any]) -> None:
    """Raise if transformers had to make weights up.

    Args:
        loading: what ``from_pretrained(..., output_loading_info=True)`` says.

    Raises:
        EvaluationError: names the tensors.
    """
    if mismatched := sorted(loading["mismatched_keys"]):
        shapes = [f"{name} ({list(got)}, not {list(due)})" for name, got, due in mismatched]
        raise EvaluationError(
            f"{where}: tensors of another shape than its config.json says: {shortened(shapes)};"
            " use the config.json that belongs to these weights"
        )
    # BERT's pooler is absent from many checkpoints and no hidden state goes through it.
    missing = [key for key in loading["missing_keys"] if "pooler" not in key.split(".")]
    if missing:
        raise EvaluationError(
            f"{where}: the checkpoint lacks {shortened(sorted(missing))};"
            " download or save the model again"
        )


def fingerprint(model: torch.nn.Module) -> dict[str, int]:
    """Sum of each tensor's bit patterns as integers, by name: equal if nothing was changed."""
    return {
        name: int(tensor.detach().contiguous().view(_SIGNED[tensor.element_size()]).sum())
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
