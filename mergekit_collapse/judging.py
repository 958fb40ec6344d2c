"""From readings and limits to allow, warn or refuse, with the reasons."""

from collections.abc import Iterator, Sequence

import numpy as np

from mergekit_collapse.errors import EvaluationError, MergeRefusedError
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.merging_difficulty import INFINITE
from mergekit_collapse.geometry.own_task import OwnTask
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.verdict import ALLOW, Reason, Verdict


def judge(
    geometry: Geometry, budget: BudgetBlock, names: Sequence[str], *, warn_only: bool
) -> Verdict:
    """Hold the deciding readings against their limits.

    Args:
        geometry: of the space that ``budget.space`` names.
        budget: limits; None switches one off.
        names: of the experts.
        warn_only: a passed limit warns instead of refusing.

    Raises:
        EvaluationError: a deciding reading is undefined, which is no ground to allow a merge.
    """
    reasons = (*_distortion(geometry, budget, names), *_difficulty(geometry, budget, names))
    if not reasons:
        return ALLOW
    if warn_only:
        return Verdict("warn", 0, reasons)
    return Verdict("refuse", MergeRefusedError.exit_code, reasons)


def _distortion(geometry: Geometry, budget: BudgetBlock, names: Sequence[str]) -> Iterator[Reason]:
    if budget.distortion is None:
        return
    own = " on own tasks" if budget.over == "own_task" else ""
    reading = f"{budget.rule}{own}, {budget.space} space"
    for subject, value, advice in _readings(geometry, budget, budget.distortion, names):
        # Written so that a NaN refuses.
        if not value <= budget.distortion:
            yield Reason("distortion", reading, subject, value, None, budget.distortion, advice)


def deciding_distortion(geometry: Geometry, budget: BudgetBlock, names: Sequence[str]) -> float:
    """The reading that a distortion limit is about, the worst where every expert has one.

    Raises:
        EvaluationError: as ``judge``.
    """
    return max(value for _, value, _ in _readings(geometry, budget, np.inf, names))


def is_borderline(geometry: Geometry, budget: BudgetBlock) -> bool:
    """Whether the limit lies within the interval of the reading that is held against it."""
    if budget.distortion is None:
        return False
    pooled, own, share = geometry.confidence, geometry.own_task, 1.0
    if budget.over == "own_task":
        found = own.predicted_interval if budget.rule == "weights" else own.minimax_interval
    elif budget.rule == "corollary":
        found = pooled.diameter_squared
        # The corollary is this multiple of Δ².
        share = geometry.dimension / (2 * (geometry.dimension + 1))
    else:
        found = pooled.predicted_worst if budget.rule == "weights" else pooled.ball_radius_squared
    low, high = found.low, found.high
    # An interval that is not known says nothing for sure.
    return low is None or high is None or low * share <= budget.distortion <= high * share


def _readings(
    geometry: Geometry, budget: BudgetBlock, limit: float, names: Sequence[str]
) -> Iterator[tuple[str, float, str]]:
    """Subject, value and advice of each."""
    readings = _own_task_readings if budget.over == "own_task" else _pooled_readings
    return readings(geometry, budget, limit, names)


def _pooled_readings(
    geometry: Geometry, budget: BudgetBlock, limit: float, names: Sequence[str]
) -> Iterator[tuple[str, float, str]]:
    ball = geometry.ball
    if budget.rule == "weights":
        if geometry.predicted is None:
            raise _undefined("rule: weights", geometry.predicted_reason)
        advice = _fewer_experts(geometry, limit, names)
        if ball.radius_squared <= limit:
            shares = ", ".join(f"{n} {w:.2f}" for n, w in zip(names, ball.weights, strict=True))
            advice = f"With the weights {shares} the worst would be {ball.radius_squared:.3g}."
        for name, value in zip(names, geometry.predicted, strict=True):
            yield name, value, advice
    elif budget.rule == "corollary":
        first, second = (names[i] for i in geometry.bounds.diameter_pair)
        advice = _fewer_experts(geometry, limit, names)
        yield f"{first} and {second}", geometry.bounds.corollary, advice
    else:
        rim = [name for name, weight in zip(names, ball.weights, strict=True) if weight > 1e-6]
        yield ", ".join(rim), ball.radius_squared, _fewer_experts(geometry, limit, names)


def _own_task_readings(
    geometry: Geometry, budget: BudgetBlock, limit: float, names: Sequence[str]
) -> Iterator[tuple[str, float, str]]:
    own = geometry.own_task
    if budget.rule == "weights":
        if own.predicted_worst is None:
            raise _undefined("over: own_task with rule: weights", own.predicted_reason)
        for task in own.tasks:
            if task.owner is not None and task.predicted_distortion is not None:
                subject = f"{names[task.owner]} on {task.name}"
                yield subject, task.predicted_distortion, _farthest(task, names)
    else:
        if own.minimax is None:
            raise _undefined("over: own_task", own.minimax_reason)
        owned = [task for task in own.tasks if task.owner is not None]
        advice = " ".join(dict.fromkeys(_farthest(task, names) for task in owned))
        yield ", ".join(names), own.minimax.distortion, advice


def _farthest(task: OwnTask, names: Sequence[str]) -> str:
    """Which expert answers a task least like its owner."""
    if task.squared is None or task.owner is None:
        return ""
    row = task.squared[task.owner, : len(names)]
    other = names[int(row.argmax())]
    return f"On {task.name}, {other} is farthest from {names[task.owner]}: part them."


def _difficulty(geometry: Geometry, budget: BudgetBlock, names: Sequence[str]) -> Iterator[Reason]:
    if budget.mds is None:
        return
    reading = geometry.difficulty(budget.similarity)
    inside = [n for n, value in zip(names, reading.mds, strict=True) if _within(value, budget.mds)]
    for index, (value, why) in enumerate(zip(reading.mds, reading.reasons, strict=True)):
        if value is None and why != INFINITE:
            raise _undefined(f"similarity: {budget.similarity}", why)
        if not _within(value, budget.mds):
            how = f"{budget.similarity}, {budget.space} space"
            advice = "Every expert of this merge is over it: they do not belong together."
            if inside:
                advice = f"Leave {names[index]} out, or replace it by one nearer to the others."
            yield Reason("mds", how, names[index], value, why, budget.mds, advice)


def _within(value: float | None, limit: float) -> bool:
    """None stands for infinity here; written so that a NaN is outside."""
    return value is not None and value <= limit


def _fewer_experts(geometry: Geometry, limit: float, names: Sequence[str]) -> str:
    """The fewest merged models that are all inside the limit; none merges pairs far apart."""
    for grouping in geometry.groups[1:]:
        if grouping.worst_radius_squared <= limit and grouping.group_count < len(names):
            shown = " | ".join(" + ".join(names[i] for i in group) for group in grouping.groups)
            return (
                f"Merge {grouping.group_count} models instead of one: {shown} "
                f"(ball {grouping.worst_radius_squared:.3g})."
            )
    if (most := geometry.groups[-1].group_count) < len(names):
        return (
            f"No split into at most {most} models was found inside the limit; merge fewer experts."
        )
    return "No two of these experts are inside the limit; use them apart or train them nearer."


def _undefined(what: str, reason: str | None) -> EvaluationError:
    return EvaluationError(
        f"the deciding reading, {what}, is undefined: {reason}. "
        "Choose another reading in compat.budget, or mend its cause"
    )
