"""Merges whose outcome was measured, out of the reports about them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mergekit_collapse.report.stored_evaluation import StoredEvaluation, StoredScore
from mergekit_collapse.report.stored_report import SPACES, StoredReport
from mergekit_collapse.study.report_signals import SIGNALS

_SETTINGS = ("pooling", "scale", "layer")


@dataclass(frozen=True)
class FinishedMerge:
    """One merge, made and scored.

    Attributes:
        path: of its report.
        experts: what was merged, sorted: merges of the same experts are no independent trials.
        method: of the recipe.
        base: of the recipe.
        task: the one that lost most, or gained least.
        lost: percent of the expert's score there; negative for a gain.
        readings: by the name of the signal; infinite over every limit.
        missing: why a report has no such reading.
        settings: how each space was measured.
        probes: digest of their texts.
    """

    path: str
    experts: tuple[str, ...]
    method: str | None
    base: str | None
    task: str
    lost: float
    readings: Mapping[str, float]
    missing: Mapping[str, str]
    settings: Mapping[str, Mapping[str, str]]
    probes: str | None


@dataclass(frozen=True)
class Unused:
    """A file that says nothing about a finished merge.

    Attributes:
        kind: ``unreadable``; ``unscored``, without a merging loss; ``repeated``, of a merge that
            another report is about.
        reason: as a sentence tells it.
    """

    path: str
    kind: Literal["unreadable", "unscored", "repeated"]
    reason: str


def finished_merges(
    reports: Iterable[tuple[str, StoredReport]],
) -> tuple[tuple[FinishedMerge, ...], tuple[Unused, ...]]:
    """One merge for each recipe that was scored, and the reports that say nothing new.

    Two reports are about the same merge where the digest of the recipe, what was merged after
    ``on_violation`` and the experts are the same. The first counts.

    Args:
        reports: with their paths, in the order in which they count.
    """
    merges: dict[object, FinishedMerge] = {}
    unused = []
    for path, report in reports:
        found = _finished(path, report)
        if isinstance(found, Unused):
            unused.append(found)
            continue
        recipe = report.recipe
        known = recipe.sha256 is not None or recipe.effective is not None
        key = (recipe.sha256, recipe.effective, found.experts) if known else path
        if key in merges:
            first = merges[key]
            unused.append(Unused(path, "repeated", _repeats(first, found)))
        else:
            merges[key] = found
    return tuple(merges.values()), tuple(unused)


def _finished(path: str, report: StoredReport) -> FinishedMerge | Unused:
    scored = [(one, loss) for _, one in report.evaluations if (loss := _losses(one))]
    if not scored:
        return Unused(path, "unscored", _unscored(report))
    worst, lost = max(scored[0][1], key=lambda pair: pair[1])
    readings = {signal.name: signal.read(report) for signal in SIGNALS}
    return FinishedMerge(
        path=path,
        experts=tuple(sorted(expert.model or expert.name for expert in report.experts)),
        method=report.recipe.method,
        base=report.base,
        task=worst.name,
        lost=lost,
        readings={k: v for k, v in readings.items() if not isinstance(v, str)},
        missing={k: v for k, v in readings.items() if isinstance(v, str)},
        settings=_settings(report),
        probes=report.probes.text_digest if report.probes is not None else None,
    )


def _losses(found: StoredEvaluation) -> list[tuple[StoredScore, float]]:
    """An expert that scores nothing has nothing to lose, and its loss is null."""
    return [(t, -t.loss_percent) for t in found.tasks if t.loss_percent is not None]


def _unscored(report: StoredReport) -> str:
    if not report.evaluations:
        return "no merged model was evaluated"
    _, found = report.evaluations[0]
    if failed := [check.name for check in found.checks if not check.passed]:
        return f"no merging loss: the merged model failed its checks ({', '.join(failed)})"
    if found.tasks:
        return "no merging loss: " + found.tasks[0].why("loss_percent")
    return "no merging loss: " + found.why("tasks")


def _settings(report: StoredReport) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for space in SPACES:
        geometry = getattr(report.geometry, space)
        if geometry is not None:
            kept = {**(geometry.model_extra or {}), **dict(geometry)}
            found[space] = {key: f"{kept.get(key)}" for key in _SETTINGS}
    return found


def _repeats(first: FinishedMerge, again: FinishedMerge) -> str:
    told = f"the same merge as {first.path}"
    if (first.lost, first.readings) != (again.lost, again.readings):
        told += ", measured otherwise"
    return told
