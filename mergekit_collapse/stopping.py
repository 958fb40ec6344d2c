"""The quantities that a verdict hangs on, and whether they are clear of their limits already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mergekit_collapse.geometry.chance_distances import ChanceDistances, chance_distances
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.geometry import usable_coefficients
from mergekit_collapse.geometry.jackknife import jackknife, leave_one_out_weights, tasks_of_parts
from mergekit_collapse.geometry.merging_difficulty import similarities
from mergekit_collapse.geometry.minimax import minimax_distortion
from mergekit_collapse.geometry.own_task import PooledSample, on_probes
from mergekit_collapse.geometry.probe_parts import probe_parts
from mergekit_collapse.geometry.resampling import (
    resampled_chance,
    resampled_distance,
    resampled_distortion,
    resampled_squared,
)
from mergekit_collapse.geometry.rows import select_probes
from mergekit_collapse.geometry.scales import LayerScale, Scale, layer_scales
from mergekit_collapse.geometry.sequential import LEVEL, Held, clear_side
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.shapes import Float64, Int64
from mergekit_collapse.states.states import SpaceStates

Outcome = Literal["below", "above", "undefined"]

_Rows = Float64[np.ndarray, "row quantity"]


@dataclass(frozen=True)
class Look:
    """What was known after one round of probes.

    Attributes:
        samples: probes of each task, or all of a task that has fewer.
        probes: of all tasks.
        level: spent here; 0 after the last round, where there is nothing left to stop.
        outcome: where the deciding quantities lie for certain: all ``below`` their limits, one
            ``above``, or ``undefined`` whatever the probes; None where that is open.
    """

    samples: int
    probes: int
    level: float
    outcome: Outcome | None


@dataclass(frozen=True)
class Stop:
    """How many of the probes were used, and why no more.

    Attributes:
        looks: one after each round.
        samples, probes: what there would have been, as in ``Look``.
    """

    looks: tuple[Look, ...]
    samples: int
    probes: int

    @property
    def used(self) -> Look:
        """The last look."""
        return self.looks[-1]

    @property
    def spent(self) -> float:
        """Of the rate of wrong stops, at all looks together."""
        return sum(look.level for look in self.looks)


def stop_text(stop: Stop) -> str:
    """A line for a person."""
    looks, used = len(stop.looks), stop.used
    why = {
        "below": "clear of every limit",
        "above": "clearly over a limit",
        "undefined": "no number of probes would decide",
        None: "not clear before all were used",
    }[used.outcome]
    return (
        f"Used {used.samples} of {stop.samples} probes a task after "
        f"{looks} {'look' if looks == 1 else 'looks'}: {why} "
        f"(at {stop.spent:.1%} of the {LEVEL:.0%} allowed for a wrong stop)."
    )


def outcome(held: Sequence[Held], level: float, *, refusing: bool) -> Outcome | None:
    """Whether more probes could matter, at a level as ``clear_side`` has it.

    Args:
        refusing: whether to stop above a limit. A recipe that is to be repaired then is searched
            for a better one, among many, which is for all probes to tell.
    """
    if any(np.isnan(one.found.value).any() for one in held):
        return "undefined"
    side = clear_side(held, level)
    return side if refusing or side == "below" else None


def deciding_quantities(
    states: SpaceStates,
    expert_count: int,
    task_of_probe: Int64[np.ndarray, " probe"],
    tasks: Sequence[tuple[str, int | None]],
    *,
    scale: Scale,
    coefficients: Float64[np.ndarray, " model"] | None,
    budget: BudgetBlock,
    seed: int,
) -> tuple[Held, ...]:
    """All that ``judging.judge`` holds against a limit, with its jackknife over the probes.

    A Merging Difficulty Score is the share 1 − 1/MDS here, the mean dissimilarity, which is
    finite and over 1 − 1/limit exactly where the score is over its limit.

    Args:
        states: of the space that decides.
        tasks: name and owner of each.
        coefficients: α of the recipe, or None.

    Returns:
        One record for each limit. A reading that the recipe leaves undefined is NaN.

    Raises:
        EvaluationError: on these probes something is degenerate; it need not be on more.
    """
    scale = scale if states.space == "hidden" else "none"
    every = np.arange(len(task_of_probe), dtype=np.int64)
    rows = select_probes(states, every, unit=scale == "unit")
    parts = probe_parts(task_of_probe, 1 + len(states.values), len(rows.models), seed)
    weights = leave_one_out_weights(task_of_probe, parts)
    scales = _plain(layer_scales(rows, range(expert_count), scale, weights, "all probes"))
    squared = [one.squared for one in scales]
    distances = probe_distances(rows, squared, parts)
    sample = PooledSample(rows, expert_count, scale, distances, scales, task_of_probe, weights)
    alpha, _ = usable_coefficients(coefficients, "")
    task_of_part = tasks_of_parts(task_of_probe, parts)
    held = []
    if budget.distortion is not None:
        read = _own_task if budget.over == "own_task" else _pooled
        values = read(sample, tasks, alpha, budget)
        held.append(Held(jackknife(values, task_of_part), budget.distortion))
    if budget.mds is not None:
        pairs = chance_distances(rows, expert_count, squared, seed)
        clipped, plain = (
            jackknife(values, task_of_part) for values in _dissimilarity(sample, pairs, budget)
        )
        # What is clipped to 1 moves no more, but might with other probes.
        error = np.fmax(clipped.error, plain.error)
        held.append(Held(replace(clipped, error=error), 1 - 1 / budget.mds))
    return tuple(held)


def _pooled(
    sample: PooledSample,
    tasks: Sequence[tuple[str, int | None]],
    alpha: Float64[np.ndarray, " model"] | None,
    budget: BudgetBlock,
) -> _Rows:
    experts, found = sample.expert_count, (sample.distances, sample.scales, sample.weights)
    if budget.rule == "weights":
        if alpha is None:
            return _undefined(sample)
        return resampled_distortion(*found, alpha)[:, :experts]
    squared = resampled_squared(*found)[:, :experts, :experts]
    if budget.rule == "corollary":
        dimension = sum(v.shape[2] for v in sample.rows.states.values)
        first, second = np.triu_indices(experts, 1)
        pairs = squared[:, first, second]
        multiple: _Rows = pairs * (dimension / (2 * (dimension + 1)))
        return multiple
    return _each(squared, _radius)


def _own_task(
    sample: PooledSample,
    tasks: Sequence[tuple[str, int | None]],
    alpha: Float64[np.ndarray, " model"] | None,
    budget: BudgetBlock,
) -> _Rows:
    owners = np.array([owner for _, owner in tasks if owner is not None], dtype=np.int64)
    lacking = set(range(sample.expert_count)) - set(owners.tolist())
    if lacking or (budget.rule == "weights" and alpha is None):
        return _undefined(sample)
    found = []
    for index, (name, owner) in enumerate(tasks):
        if owner is None:
            continue
        probes = np.flatnonzero(sample.task_of_probe == index).astype(np.int64)
        own = on_probes(sample, probes, owner, f"task {name!r}")
        ours = own.distances, _plain(own.scales), own.weights
        if budget.rule == "weights":
            assert alpha is not None
            found.append(resampled_distortion(*ours, alpha)[:, owner])
        else:
            found.append(resampled_squared(*ours)[:, : sample.expert_count, : sample.expert_count])
    if budget.rule == "weights":
        return np.stack(found, axis=1)
    return _each(np.stack(found, axis=1), lambda one: minimax_distortion(one, owners).distortion)


def _dissimilarity(
    sample: PooledSample, pairs: ChanceDistances | None, budget: BudgetBlock
) -> tuple[_Rows, _Rows]:
    """Mean of 1 − S over the other experts, and the same before anything is clipped."""
    experts = sample.expert_count
    apart = resampled_distance(sample.distances, sample.weights)[:, :experts, :experts]
    chance = None if pairs is None else resampled_chance(pairs, sample.weights)
    clipped = 1 - similarities(budget.similarity, apart, chance)
    plain = clipped
    if budget.similarity == "unrelated" and chance is not None:
        plain = np.divide(apart, chance, out=np.full_like(apart, np.nan), where=chance > 0)
        plain[:, np.arange(experts), np.arange(experts)] = 0.0
    return clipped.sum(axis=2) / (experts - 1), plain.sum(axis=2) / (experts - 1)


def _each(squared: np.ndarray, reading: Callable[[np.ndarray], float]) -> _Rows:
    values = [reading(one) if np.isfinite(one).all() else np.nan for one in squared]
    return np.array(values)[:, None]


def _radius(squared: Float64[np.ndarray, "expert expert"]) -> float:
    return enclosing_ball(squared).radius_squared


def _undefined(sample: PooledSample) -> _Rows:
    return np.full((len(sample.weights), 1), np.nan)


def _plain(scales: Sequence[LayerScale]) -> tuple[LayerScale, ...]:
    """Without the factor that makes up for drawing with replacement: the last row is the sample."""
    return tuple(
        LayerScale(one.squared, one.resampled * (one.squared / one.resampled[-1])) for one in scales
    )
