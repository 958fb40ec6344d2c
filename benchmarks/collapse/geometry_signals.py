"""What the experts' states say before a merge, in many readings, for every set of members."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from expert_states import BUILTIN, MANY, REHEARSED, ExpertStates, prompts_of
from merged_sets import METHODS
from zoo import EXPERTS

from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.merging_difficulty import READINGS as KINDS
from mergekit_collapse.geometry.merging_difficulty import merging_difficulty
from mergekit_collapse.geometry.predicted import predicted_distortion


@dataclass(frozen=True)
class Reading:
    """One way to look at the states.

    Attributes:
        pooled: ``mean`` or ``last`` of hidden states, or ``answer`` for predictive space; ``many``
            or ``tokens`` of the last layer, which are there for sets of seen tasks.
        every_layer: the mean over layers of each layer in its own scale.
        probes: of every task.
        builtin: whether the shipped probes are read beside the members' own, or alone.
        share: of every member's task vector, with the base for the rest; equal shares if None.
    """

    name: str
    pooled: str = "mean"
    every_layer: bool = False
    probes: int = 64
    builtin: Literal["not", "also", "alone"] = "not"
    share: float | None = None


READINGS = (
    Reading("gate", probes=32, builtin="also"),
    Reading("hidden"),
    Reading("hidden5", probes=5),
    Reading("hidden16", probes=16),
    Reading("hidden32", probes=32),
    Reading("hidden_builtin", builtin="alone"),
    Reading("last_token", "last"),
    Reading("every_layer", every_layer=True),
    Reading("predictive", "answer", probes=REHEARSED),
    Reading("predictive_builtin", "answer", probes=REHEARSED, builtin="alone"),
    Reading("arithmetic", share=METHODS["task_arithmetic"]["weight"]),
)
OF_SEEN_TASKS = (
    Reading("hidden128", "many", probes=MANY),
    Reading("tokens", "tokens", probes=10**6),
)
CHANCE_ROWS = 2048
"""Of all members; a mean over pairs of more says no more."""


def readings_of(members: Sequence[str], *, wide: bool) -> tuple[Reading, ...]:
    """What is read of a set: more where no unseen task takes part, and stage ``wide`` has run."""
    seen = not any(EXPERTS[name].unseen for name in members)
    return (*READINGS, *OF_SEEN_TASKS) if seen and wide else READINGS


def signals(
    members: Sequence[str], states: ExpertStates, readings: Sequence[Reading]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Values for the set, and for each member; what is undefined is left out.

    For each reading R, of which ``gate`` is what an ordinary block reads: ``R.diameter`` is Δ²,
    ``R.ball`` r², ``R.predicted`` the distortion of equal weights, ``R.own`` the same on the
    member's own probes, ``R.mds_…`` the readings of the Merging Difficulty Score; of the set, the
    worst of its members. ``R.seconds`` is what computing them took. With shares of task vectors
    there is ``R.predicted`` alone.
    """
    group: dict[str, float] = {}
    each: list[dict[str, float]] = [{} for _ in members]
    for reading in readings:
        start = time.perf_counter()
        found = _read(reading, members, states, group)
        for signal, numbers in found.items():
            known = [n for n in numbers if n is not None]
            if len(known) == len(members):
                group[f"{reading.name}.{signal}"] = max(known)
            for member, number in zip(each, numbers, strict=True):
                if number is not None:
                    member[f"{reading.name}.{signal}"] = number
        group[f"{reading.name}.seconds"] = time.perf_counter() - start
    return group, each


def _read(
    reading: Reading, members: Sequence[str], states: ExpertStates, group: dict[str, float]
) -> dict[str, list[float | None]]:
    # As the gate has it, a task for each member: the probes of two of one task count twice.
    own = list(map(prompts_of, members)) if reading.builtin != "alone" else []
    own += [BUILTIN] if reading.builtin != "not" else []
    last = len(states(members[0], own[0]).mean) - 1
    layers = range(last + 1) if reading.every_layer else (last,)
    models = [*members, "base"] if reading.share is not None else members
    counts = [len(_of(reading, states, members[0], task, last)) for task in own]
    rows = np.repeat(np.arange(len(own)), np.minimum(counts, reading.probes))
    values = [_states(reading, models, own, states, layer) for layer in layers]
    count = len(members)
    scaled = [v[:count] for v in values]
    squares = np.mean(
        [_squares(v) / _scale(reading, s) for v, s in zip(values, scaled, strict=True)], axis=0
    )
    mean = squares.mean(axis=0)
    if reading.share is not None:
        weights = np.append(np.full(count, reading.share), 1 - count * reading.share)
        return {"predicted": predicted_distortion(mean, weights)[:count].tolist()}
    name = reading.name
    group[f"{name}.diameter"] = float(mean.max())
    group[f"{name}.ball"] = enclosing_ball(mean).radius_squared
    predicted = predicted_distortion(mean, np.full(count, 1 / count))
    found: dict[str, list[float | None]] = {"predicted": predicted.tolist()}
    if len(values) == 1:
        chance = _chance(values[0]) / np.sqrt(_scale(reading, values[0]))
        for kind in KINDS:
            score = merging_difficulty(kind, np.sqrt(squares).mean(axis=0), chance)
            found[f"mds_{kind}"] = [
                np.inf if why == "infinite" else mds
                for mds, why in zip(score.mds, score.reasons, strict=True)
            ]
    if reading.builtin != "alone":
        in_own_scale = reading.pooled != "answer"
        found["own"] = [_own(i, rows == i, values, scaled=in_own_scale) for i in range(count)]
    return found


def _states(
    reading: Reading,
    members: Sequence[str],
    tasks: Sequence[str],
    states: ExpertStates,
    layer: int,
) -> np.ndarray:
    """Of every member on every probe: [member, probe, feature]."""
    parts = [
        np.concatenate([_of(reading, states, m, t, layer)[: reading.probes] for t in tasks])
        for m in members
    ]
    return np.stack(parts).astype(np.float64)


def _of(reading: Reading, states: ExpertStates, model: str, task: str, layer: int) -> np.ndarray:
    if reading.pooled in ("many", "tokens"):
        wide: np.ndarray = getattr(states.wide(model, task), reading.pooled)
        return wide
    found = states(model, task)
    if reading.pooled == "answer":
        return found.answer
    values: np.ndarray = getattr(found, reading.pooled)[layer]
    return values


def _squares(values: np.ndarray) -> np.ndarray:
    """‖h_i − h_j‖² by probe: [probe, member, member]. Subtracted first: near twins cancel."""
    count, probes, _ = values.shape
    found = np.zeros((probes, count, count))
    for i in range(count):
        for j in range(i):
            apart = values[i] - values[j]
            found[:, i, j] = found[:, j, i] = np.einsum("pf,pf->p", apart, apart)
    return found


def _scale(reading: Reading, values: np.ndarray) -> float:
    if reading.pooled == "answer":
        return 1.0
    return float(values.var(axis=1).sum(axis=1).mean())


def _chance(values: np.ndarray) -> np.ndarray:
    """Mean ‖h_i(x) − h_j(x')‖ over all x ≠ x', or over those of evenly spaced ones."""
    values = values[:, :: max(1, math.ceil(values.shape[0] * values.shape[1] / CHANCE_ROWS))]
    count, probes, width = values.shape
    flat = values.reshape(count * probes, width).astype(np.float32)
    energy = np.einsum("rf,rf->r", flat, flat)
    apart = np.sqrt(np.maximum(energy[:, None] + energy[None] - 2 * flat @ flat.T, 0))
    apart = apart.reshape(count, probes, count, probes).transpose(0, 2, 1, 3)
    diagonal = np.einsum("ijpp->ij", apart)
    result: np.ndarray = (apart.sum(axis=(2, 3)) - diagonal) / (probes * (probes - 1))
    return result.astype(np.float64)


def _own(index: int, mine: np.ndarray, values: Sequence[np.ndarray], *, scaled: bool) -> float:
    """What equal weights do to one member on its own probes, the mean over layers."""
    found = []
    for layer in values:
        apart = layer[index, mine] - layer[:, mine].mean(axis=0)
        scale = float(layer[index, mine].var(axis=0).sum()) if scaled else 1.0
        found.append(np.einsum("pf,pf->p", apart, apart).mean() / scale)
    return float(np.mean(found))
