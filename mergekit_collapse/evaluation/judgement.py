"""A merged model's measurements against the limits of the block."""

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.known_losses import applied
from mergekit_collapse.evaluation.own_answers import far_answers, why_unread
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import Measured
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
from mergekit_collapse.verdict import ALLOW, Reason, Rule, Verdict, concerns, passed

_OF_EXPERTS = ("max_distortion", "max_merging_loss", "max_own_distortion")
_APART = "Use the experts apart, or merge those that stand together in the K-group curve."


def judge_merged(
    found: Evaluation,
    limits: EvaluateBlock,
    budget: BudgetBlock,
    names: Sequence[str],
    *,
    exit_code: int,
    warn_only: bool,
    stop_at: float | None = None,
    given_up: Collection[str] = (),
) -> Verdict:
    """Hold a merged model against ``evaluate``.

    The distortion is read where the budget is: ``budget.space``, over ``budget.over``. A task
    whose loss is known is judged by that, any other that has an expert by the merged model's
    answers to its prompts. The default ``max_distortion`` gives way where losses tell what the
    merge is worth to every expert (``applied``).

    Args:
        found: what was measured; whatever is absent because the merge was stopped is no ground
            to allow it, since the stop itself is a reason.
        names: of the experts.
        exit_code: of a model that is over a limit.
        warn_only: a passed limit warns instead.
        stop_at: of the monitor, where that could not watch the merge.
        given_up: experts whose distortion and tasks no limit protects any more; what is over a
            limit there is told, and where that is all, the verdict is ``modified``.

    Raises:
        EvaluationError: the reading that a limit is about is undefined.
    """
    limits = applied(limits, found, len(names))
    reasons = (
        *_checks(found),
        *_distortion(found, limits, budget, names),
        *_losses(found, limits, names),
        *far_answers(found, limits, names),
        *_ratios(found.layers, limits),
        *_layers(found, stop_at, names),
    )
    if not reasons:
        return ALLOW
    if all(_is_given_up(reason, given_up) for reason in reasons):
        return Verdict("modified", 0, reasons)
    return Verdict("warn", 0, reasons) if warn_only else Verdict("refuse", exit_code, reasons)


def _is_given_up(reason: Reason, experts: Collection[str]) -> bool:
    """What is no number is never given up."""
    return reason.rule in _OF_EXPERTS and reason.value is not None and concerns(reason, experts)


def _checks(found: Evaluation) -> Iterator[Reason]:
    for check in found.checks:
        if not check.passed:
            advice = "The merge is broken; make it again, or mend what it was made from."
            yield Reason("check", check.detail, check.name, None, "failed", None, advice)


def _distortion(
    found: Evaluation, limits: EvaluateBlock, budget: BudgetBlock, names: Sequence[str]
) -> Iterator[Reason]:
    if limits.max_distortion is None:
        return
    if found.hidden is None:
        if found.stopped_at is None and all(check.passed for check in found.checks):
            raise EvaluationError(
                "the merged model's distortion was not measured, though nothing ended the merge "
                "and no check failed; set evaluate.max_distortion: null to judge it without"
            )
        return
    measured = found.predictive if budget.space == "predictive" else found.hidden
    if measured is None:
        raise EvaluationError(
            f"evaluate.max_distortion is read in predictive space, but {why_unread(found)}; "
            "set budget.space: hidden or max_distortion: null"
        )
    own = " on own tasks" if budget.over == "own_task" else ""
    reading = f"measured{own}, {budget.space} space"
    for subject, value in _readings(measured, budget, names):
        # Written so that a NaN refuses.
        if not value <= limits.max_distortion:
            yield passed("max_distortion", reading, subject, value, limits.max_distortion, _APART)


def _readings(
    measured: Measured, budget: BudgetBlock, names: Sequence[str]
) -> Iterator[tuple[str, float]]:
    if budget.over == "pooled":
        yield from zip(names, measured.distortion, strict=True)
        return
    if measured.own_task_worst is None:
        raise EvaluationError(
            f"evaluate.max_distortion is read over own tasks, but {measured.own_task_reason}; "
            "give every expert a task, or set max_distortion: null"
        )
    for task in measured.own_task:
        if task.owner is not None and task.distortion is not None:
            yield f"{names[task.owner]} on {task.name}", task.distortion


def _losses(found: Evaluation, limits: EvaluateBlock, names: Sequence[str]) -> Iterator[Reason]:
    if limits.max_merging_loss is None:
        return
    for task in found.tasks:
        # An expert that is worth nothing has nothing to lose, and its loss is undefined.
        if task.loss_percent is None:
            continue
        # Eq. 1 counts a loss as negative, the limit says how much of it is too much.
        if not -task.loss_percent <= limits.max_merging_loss:
            subject = f"{names[task.owner]} on {task.name}"
            reading = f"{task.metric} {task.expert:.3g} became {task.merged:.3g}"
            advice = f"The merge forgets {task.name}: give it more weight, or leave it out."
            loss, limit = -task.loss_percent, limits.max_merging_loss
            yield passed("max_merging_loss", reading, subject, loss, limit, advice)


def _ratios(layers: Sequence[LayerReading], limits: EvaluateBlock) -> Iterator[Reason]:
    """The lowest ratio over layers, of which each is a sign of collapse."""
    rules: tuple[tuple[Rule, float | None, str, str], ...] = (
        ("min_variance_ratio", limits.min_variance_ratio, "variance_ratio", "activation variance"),
        ("min_rank_ratio", limits.min_rank_ratio, "rank_ratio", "effective rank"),
    )
    for rule, limit, name, what in rules:
        readings = [(getattr(one, name), one.layer) for one in layers if one.layer > 0]
        known = [(value, layer) for value, layer in readings if value is not None]
        # Layers that correspond to no expert's, as in a merge of slices, have no ratio.
        if limit is None or not known:
            continue
        # What is no number first, so that it cannot hide behind one.
        value, layer = min(known, key=lambda pair: (math.isfinite(pair[0]), pair[0]))
        if not limit <= value < math.inf:
            advice = "The activations collapse: try weighted_karcher or rescaled_mean."
            yield passed(rule, f"{what} over the experts'", f"layer {layer}", value, limit, advice)


def require_layers(layers: Sequence[LayerReading]) -> None:
    """Raise if ``monitor.stop_at`` has nothing to be held against.

    Raises:
        EvaluationError: no layer has an expert's beside it.
    """
    if all(one.worst is None for one in layers):
        raise EvaluationError(
            "monitor.stop_at is set, but no layer of the merged model can be held against an "
            "expert's; remove it"
        )


def layer_over(
    one: LayerReading, stop_at: float, names: Sequence[str], advice: str
) -> Reason | None:
    """Why a layer ends the merge, or would have; None where it does not.

    Args:
        stop_at: of the monitor.
        names: of the experts.
    """
    worst = one.worst
    # Written so that a NaN ends it.
    if worst is None or worst <= stop_at:
        return None
    far = names[one.distortion.index(worst)] if worst in one.distortion else "an expert"
    return passed("stop_at", f"measured after layer {one.layer}", far, worst, stop_at, advice)


def _layers(found: Evaluation, stop_at: float | None, names: Sequence[str]) -> Iterator[Reason]:
    """What would have ended the merge, had it been watched."""
    if stop_at is None or found.stopped_at is not None:
        return
    require_layers(found.layers)
    reasons = (layer_over(one, stop_at, names, _APART) for one in found.layers)
    yield from islice((reason for reason in reasons if reason is not None), 1)
