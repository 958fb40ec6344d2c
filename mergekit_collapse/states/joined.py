"""The states of two rounds of probes as those of one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mergekit_collapse.shapes import Float32
from mergekit_collapse.states import storage
from mergekit_collapse.states.estimate import Estimate
from mergekit_collapse.states.layer_statistics import over_rounds
from mergekit_collapse.states.states import ModelLayers, SpaceStates, States

_First = Float32[np.ndarray, "model first feature"]
_Second = Float32[np.ndarray, "model second feature"]
_Both = Float32[np.ndarray, "model both feature"]


def joined(first: States, second: States, *, idle: str) -> States:
    """The probes of ``first``, then those of ``second``, of the same models.

    Args:
        first: of earlier rounds.
        second: of one round.
        idle: the engine of a round in which no model was run.
    """
    counts = [_probe_count(one) for one in (first, second)]
    predictive = None
    if first.predictive is not None and second.predictive is not None:
        predictive = _space(first.predictive, second.predictive, counts[0])
    layers = zip(first.layers, second.layers, strict=False)
    return States(
        models=first.models,
        expert_count=first.expert_count,
        hidden=_space(first.hidden, second.hidden, counts[0]),
        predictive=predictive,
        predictive_reason=first.predictive_reason or second.predictive_reason,
        device=first.device,
        dtype=first.dtype,
        engine=second.engine if first.engine == idle else first.engine,
        layers=tuple(_layers(one, other, counts) for one, other in layers),
        cached=tuple(name for name in first.cached if name in second.cached),
        estimate=_estimate(first.estimate, second.estimate),
    )


def _estimate(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """One round's memory is given back before the next."""
    if first is None or second is None:
        return second if first is None else first
    larger = max(first, second, key=lambda one: one.memory.peak)
    return replace(
        larger,
        models=max(first.models, second.models),
        bytes_read=first.bytes_read + second.bytes_read,
        flops=first.flops + second.flops,
    )


def _probe_count(states: States) -> int:
    return int(states.hidden.probe_of_row[-1]) + 1


def _space(first: SpaceStates, second: SpaceStates, probes: int) -> SpaceStates:
    what = f"the {first.space} states of all models"
    return SpaceStates(
        space=first.space,
        pooling=first.pooling,
        layers=first.layers,
        values=tuple(
            _one_after_the_other(a, b, what)
            for a, b in zip(first.values, second.values, strict=True)
        ),
        probe_of_row=np.concatenate([first.probe_of_row, second.probe_of_row + probes]),
    )


def _one_after_the_other(first: _First, second: _Second, what: str) -> _Both:
    models, rows, features = first.shape
    # Not by numpy's concatenate, which knows no file where memory ends.
    whole = storage.zeros((models, rows + second.shape[1], features), what)
    whole[:, :rows], whole[:, rows:] = first, second
    return whole


def _layers(first: ModelLayers, second: ModelLayers, counts: Sequence[int]) -> ModelLayers:
    return ModelLayers(
        tuple(np.concatenate(pair) for pair in zip(first.pooled, second.pooled, strict=True)),
        tuple(
            over_rounds(pair, counts)
            for pair in zip(first.statistics, second.statistics, strict=True)
        ),
    )
