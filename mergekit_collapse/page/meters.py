"""The readings that the verdict rests on, each against its limit."""

from collections.abc import Iterator
from dataclasses import dataclass

from mergekit_collapse.evaluation.unscored import unscored
from mergekit_collapse.geometry.merging_difficulty import INFINITE
from mergekit_collapse.page.numerals import limit as limit_text
from mergekit_collapse.page.numerals import percent, short, three
from mergekit_collapse.page.verdict_view import STAGES
from mergekit_collapse.report.stored_evaluation import StoredEvaluation
from mergekit_collapse.report.stored_geometry import StoredGeometry, StoredInterval
from mergekit_collapse.report.stored_report import StoredReport


@dataclass(frozen=True)
class Meter:
    """One reading against its limit.

    Attributes:
        label: what it is.
        value: as text; ``∞`` or a dash where it is no number.
        limit: as text; empty where none is known.
        note: what else to know, such as the interval.
        fill, mark: width of the bar and place of the limit, in percent; None leaves it out.
        low, high: the interval on the same scale.
        over: whether the limit is passed.
    """

    label: str
    value: str
    limit: str = ""
    note: str = ""
    fill: float | None = None
    mark: float | None = None
    low: float | None = None
    high: float | None = None
    over: bool = False


def meters(report: StoredReport) -> list[Meter]:
    """The readings that decide, and those of the merged model where there is one."""
    found: list[Meter] = []
    if (geometry := report.deciding) is not None:
        found += [*_distortion(report, geometry), *_difficulty(report)]
    if report.evaluations:
        key, evaluation = report.evaluations[0]
        found += _after(report, STAGES[key], evaluation)
    return found


def _distortion(report: StoredReport, geometry: StoredGeometry) -> Iterator[Meter]:
    budget = report.budget
    if budget.distortion is None:
        return
    sure = geometry.confidence
    predicted = [v for v in geometry.predicted_distortion or () if v is not None]
    readings: dict[tuple[bool, bool], tuple[float | None, str, StoredInterval]] = {
        (False, False): (geometry.ball_radius_squared, "", sure.ball_radius_squared),
        (False, True): (
            max(predicted, default=None),
            geometry.why("predicted_distortion"),
            sure.predicted_worst,
        ),
        (True, False): (
            geometry.own_task_minimax,
            geometry.why("own_task_minimax"),
            sure.own_task_minimax,
        ),
        (True, True): (
            geometry.own_task_predicted_worst,
            geometry.why("own_task_predicted_worst"),
            sure.own_task_predicted_worst,
        ),
    }
    value, why, interval = readings[budget.over == "own_task", budget.rule == "weights"]
    if budget.rule == "corollary":
        corollary = geometry.bounds.corollary
        value, why, interval = corollary, geometry.bounds.why("corollary"), StoredInterval()
    what = {"ball": "best possible", "weights": "with these weights", "corollary": "corollary"}
    own = ", own tasks" if budget.over == "own_task" else ""
    label = f"Distortion, {what.get(budget.rule, budget.rule)}{own}"
    yield _meter(label, value, budget.distortion, why=why, interval=interval)


def _difficulty(report: StoredReport) -> Iterator[Meter]:
    budget = report.budget
    scores = report.scores(budget.space)
    if budget.mds is None or not scores:
        return
    label = "Worst Merging Difficulty Score"
    endless = [i for i, (v, why) in enumerate(scores) if v is None and why == INFINITE]
    if endless:
        note = short(report.names[endless[0]])
        yield Meter(label, "∞", limit_text(budget.mds), note, 100.0, 25.0, over=True)
        return
    missing = next((why for v, why in scores if v is None), None)
    if missing is not None:
        yield _meter(label, None, budget.mds, why=missing)
        return
    worst = max(range(len(scores)), key=lambda i: scores[i][0] or 0.0)
    yield _meter(label, scores[worst][0], budget.mds, note=short(report.names[worst]))


def _after(report: StoredReport, when: str, evaluation: StoredEvaluation) -> Iterator[Meter]:
    limits = _limits(report, evaluation)
    measured = evaluation.space(report.budget.space) or evaluation.hidden or evaluation.predictive
    if measured is not None:
        own = measured.own_task_worst if report.budget.over == "own_task" else None
        value = own if own is not None else measured.worst
        label = f"Distortion, measured {when}"
        yield _meter(label, value, limits.get("max_distortion"), why=measured.why("worst"))
    yield from _own_answers(evaluation, when, limits.get("max_own_distortion"))
    losses = {t.name: t.loss_percent for t in evaluation.tasks if t.loss_percent is not None}
    if losses:
        worst = min(losses, key=lambda name: losses[name])
        allowed = limits.get("max_merging_loss")
        shown = _meter("", max(0.0, -losses[worst]), allowed)
        yield Meter(
            *(f"Worst merging loss {when}", percent(losses[worst])),
            *("" if allowed is None else f"−{limit_text(allowed)} %", short(worst)),
            *(shown.fill, shown.mark),
            over=shown.over,
        )


def _own_answers(evaluation: StoredEvaluation, when: str, limit: float | None) -> Iterator[Meter]:
    """The worst task that no loss is known of, where a limit is set for those."""
    own = evaluation.predictive.own_task if evaluation.predictive is not None else {}
    names = unscored(
        ((name, task.owner) for name, task in own.items()),
        ((task.name, task.loss_percent) for task in evaluation.tasks),
    )
    found = {
        name: task.distortion
        for name, task in own.items()
        if name in names and task.distortion is not None
    }
    if limit is None or not found:
        return
    worst = max(found, key=lambda name: found[name])
    label = f"Distortion of answers {when}"
    yield _meter(label, found[worst], limit, note=short(worst))


def _limits(report: StoredReport, evaluation: StoredEvaluation) -> dict[str, float]:
    """As the report's ``evaluate`` has them, else as the reasons name them."""
    found = (report.model_extra or {}).get("evaluate")
    limits = {
        key: float(value)
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e9
    }
    for reason in evaluation.verdict.reasons if evaluation.verdict is not None else ():
        if reason.limit is not None:
            limits.setdefault(reason.rule, reason.limit)
    return limits


def _meter(
    label: str,
    value: float | None,
    limit: float | None,
    *,
    why: str = "",
    note: str = "",
    interval: StoredInterval | None = None,
) -> Meter:
    allowed = "" if limit is None else limit_text(limit)
    if value is None:
        return Meter(label, "undefined", allowed, why)
    low, high = (interval.low, interval.high) if interval is not None else (None, None)
    top = max(value, 1.25 * (limit or 0.0), high or 0.0) or 1.0

    def place(one: float | None) -> float | None:
        return None if one is None else round(100 * min(max(one, 0.0) / top, 1.0), 2)

    if low is not None and high is not None:
        note = note or f"{three(low)} to {three(high)} with other probes"
    return Meter(
        *(label, three(value), allowed, note, place(value), place(limit)),
        low=place(low) if high is not None else None,
        high=place(high) if low is not None else None,
        over=limit is not None and not value <= limit,
    )
