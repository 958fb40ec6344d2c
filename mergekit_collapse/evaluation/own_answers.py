"""A merged model's answers on tasks without a merging loss, against those of each task's expert."""

from collections.abc import Iterator, Sequence

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.unscored import unscored
from mergekit_collapse.geometry.measured import Measured, MeasuredTask
from mergekit_collapse.recipe.limits import EvaluateBlock
from mergekit_collapse.verdict import Reason, passed


def unscored_tasks(measured: Measured, found: Evaluation) -> tuple[MeasuredTask, ...]:
    """Tasks that have an expert, and no merging loss that says what the merge is worth there."""
    names = unscored(
        ((task.name, task.owner) for task in measured.own_task),
        ((task.name, task.loss_percent) for task in found.tasks),
    )
    return tuple(task for task in measured.own_task if task.name in names)


def unread_tasks(found: Evaluation, limits: EvaluateBlock) -> tuple[MeasuredTask, ...]:
    """Tasks whose answers ``max_own_distortion`` is about, where no answers were read."""
    if limits.max_own_distortion is None or found.hidden is None or found.predictive is not None:
        return ()
    return unscored_tasks(found.hidden, found)


def why_unread(found: Evaluation) -> str:
    """Why there are no answers, as it is said of an evaluation without them."""
    return found.predictive_reason or "it was not measured"


def unjudged(found: Evaluation, limits: EvaluateBlock) -> tuple[str, ...]:
    """Notes on what the defaults would judge and cannot, since it was not measured."""
    unread = unread_tasks(found, limits)
    if not unread or limits.wrote("max_own_distortion"):
        return ()
    return (
        f"without a merging loss, and not held against evaluate.max_own_distortion: "
        f"{', '.join(task.name for task in unread)} ({why_unread(found)})",
    )


def far_answers(found: Evaluation, limits: EvaluateBlock, names: Sequence[str]) -> Iterator[Reason]:
    """Twice the squared Hellinger distance from each expert's answers on its own task.

    Args:
        found: what was measured of the merged model.
        limits: ``max_own_distortion`` of these.
        names: of the experts.

    Returns:
        A reason for every task over the limit.

    Raises:
        EvaluationError: the author's own limit is about answers that were not read, or a
            distance is undefined.
    """
    if limits.max_own_distortion is None:
        return
    if unread_tasks(found, limits) and limits.wrote("max_own_distortion"):
        raise EvaluationError(
            "evaluate.max_own_distortion is read in predictive space, but "
            f"{why_unread(found)}; add predictive to compat.space, give the tasks a "
            "target:, or set max_own_distortion: null"
        )
    for task in unscored_tasks(found.predictive, found) if found.predictive is not None else ():
        assert task.owner is not None
        subject = f"{names[task.owner]} on {task.name}"
        if task.distortion is None:
            raise EvaluationError(
                f"evaluate.max_own_distortion of {subject} is undefined: {task.reason}; mend the "
                "task's prompts, or set max_own_distortion: null"
            )
        # Written so that a NaN refuses.
        if not task.distortion <= limits.max_own_distortion:
            advice = (
                f"The merge answers {task.name} unlike its expert: give it more weight, or leave "
                "it out. With a target: the task is scored, and its score decides."
            )
            value, limit = task.distortion, limits.max_own_distortion
            reading = "measured on own tasks, predictive space"
            yield passed("max_own_distortion", reading, subject, value, limit, advice)
