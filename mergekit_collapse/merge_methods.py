"""MergeKit's ``weighted_karcher`` and ``rescaled_mean``: the means of `karcher` as merge methods.

Nothing of MergeKit is imported before it is asked for: the start-up file asks while MergeKit's own
module is being imported, perhaps from here, and in several threads at once.
"""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.karcher import karcher_mean, rescaled_mean

NAMES = ("weighted_karcher", "rescaled_mean")

REFERENCE = "https://arxiv.org/abs/2603.04972"

_log = logging.getLogger(__name__)

# MergeKit validates these when it plans, before it reads a tensor.
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Step = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Iterations = Annotated[int, Field(ge=1)]


def register_methods() -> None:
    """Make both known to MergeKit by name; once is as good as often."""
    from mergekit.merge_methods import register, registered_methods

    known = {method.spec.name for method in registered_methods()}
    for method in _methods():
        if method.spec.name not in known:
            register(method)


def _methods() -> Sequence[Any]:
    from mergekit.merge_methods import PerInput, TensorGroup, merge_method

    def weighted_karcher_kernel(
        group: TensorGroup,
        weight: PerInput[Weight] = 1.0,
        eta: Step = 1.0,
        tol: Tolerance = 1e-10,
        max_iter: Iterations = 100,
    ) -> torch.Tensor:
        weights = weight.values_for(group.entries)
        try:
            mean = karcher_mean(group.tensors, weights, eta=eta, tol=tol, max_iter=max_iter)
        except (EvaluationError, InvalidRecipeError) as error:
            raise _at(group, error) from error
        if mean.antipodal:
            _log.warning("%s: inputs are opposite; the heaviest decides", _name(group))
        elif not mean.converged:
            _log.warning(
                "%s: the Karcher mean is %.1e radians from its tolerance after %d steps; "
                "raise max_iter, or lower eta",
                *(_name(group), mean.residual, mean.iterations),
            )
        return mean.tensor

    def rescaled_mean_kernel(group: TensorGroup, weight: PerInput[Weight] = 1.0) -> torch.Tensor:
        try:
            return rescaled_mean(group.tensors, weight.values_for(group.entries))
        except (EvaluationError, InvalidRecipeError) as error:
            raise _at(group, error) from error

    karcher_name, mean_name = NAMES
    return (
        merge_method(
            weighted_karcher_kernel,
            name=karcher_name,
            pretty_name="Weighted Karcher Mean",
            reference_url=REFERENCE,
        ),
        merge_method(
            rescaled_mean_kernel,
            name=mean_name,
            pretty_name="Rescaled Mean",
            reference_url=REFERENCE,
        ),
    )


def _name(group: Any) -> str:
    return group.metadata.name or "a tensor without a name"


def _at(
    group: Any, error: EvaluationError | InvalidRecipeError
) -> EvaluationError | InvalidRecipeError:
    """The same error, with the tensor and the models in their order."""
    models = ", ".join(str(entry.id) for entry in group.entries)
    return type(error)(f"{_name(group)}: {error} (inputs: {models})")
