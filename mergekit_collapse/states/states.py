"""What the models answered on the probes: the record between the networks and the geometry."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mergekit_collapse.shapes import Float32, Int64
from mergekit_collapse.states.estimate import Estimate

Space = Literal["hidden", "predictive"]


@dataclass(frozen=True)
class SpaceStates:
    """States of all models in one space.

    A probe has one row, or several: each token under ``pooling: tokens``, each
    target position in predictive space. Rows of one probe stand together and
    row r of every model belongs to the same position of the same probe.

    Attributes:
        space: ``hidden`` (the model's own units) or ``predictive`` (square roots of
            next-token probabilities, so each row has norm 1).
        pooling: how tokens became rows: ``mean``, ``last_token``, ``tokens`` or,
            in predictive space, ``answer``.
        layers: the layer that each array was taken after; 0 is the embeddings.
        values: per layer the experts in the order of the recipe, then the base if any.
        probe_of_row: index of each row's probe, ascending from 0.
    """

    space: Space
    pooling: str
    layers: tuple[int, ...]
    values: tuple[Float32[np.ndarray, "model row feature"], ...]
    probe_of_row: Int64[np.ndarray, " row"]


@dataclass(frozen=True)
class LayerStatistics:
    """How much a model's activations after one layer spread, over probes and positions.

    Attributes:
        variance: mean over features of the variance, in squared units of the states.
        effective_rank: exp of the entropy of the covariance's normalised eigenvalues.
    """

    variance: float
    effective_rank: float


@dataclass(frozen=True)
class ModelLayers:
    """One model after every layer, from 0 (the embeddings) to L (after the final norm).

    Attributes:
        pooled: per layer, a row for each probe; ``tokens`` are pooled by their mean here.
        statistics: per layer.
    """

    pooled: tuple[Float32[np.ndarray, "probe feature"], ...]
    statistics: tuple[LayerStatistics, ...]


@dataclass(frozen=True)
class States:
    """Every measured space, and how it was measured.

    Attributes:
        models: names, experts in the order of the recipe, then the base if any.
        expert_count: how many of ``models`` are experts.
        predictive: None where it was not asked for or has no meaning, with the reason.
        device: where the forward passes ran, such as ``cpu`` or ``cuda:0``.
        dtype: the precision of the forward passes, such as ``bfloat16``.
        engine: how the weights were brought in, such as ``whole-model``.
        layers: of each expert, where they were asked for, else empty.
        cached: names of the models that were not run, since an earlier run's states were kept.
        estimate: what running the others was expected to take; None where none was.
    """

    models: tuple[str, ...]
    expert_count: int
    hidden: SpaceStates
    predictive: SpaceStates | None
    predictive_reason: str | None
    device: str
    dtype: str
    engine: str
    layers: tuple[ModelLayers, ...] = ()
    cached: tuple[str, ...] = ()
    estimate: Estimate | None = None
