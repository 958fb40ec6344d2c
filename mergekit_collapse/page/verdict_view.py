"""What the page says first: the verdict, and why."""

from dataclasses import dataclass

from mergekit_collapse.report.stored import StoredReason, StoredVerdict
from mergekit_collapse.report.stored_report import StoredReport

REJECTED = 4
BEFORE = "before the merge"
STAGES = {
    "rehearsal": "in rehearsal",
    "monitor": "while merging",
    "evaluation": "after the merge",
}


@dataclass(frozen=True)
class Headline:
    """The verdict in a word and a sentence.

    Attributes:
        state: ``allow``, ``warn``, ``refuse`` or ``unknown``: its colour.
        mark: its sign, so that colour is not alone.
        word: the verdict.
        sentence: what it means.
    """

    state: str
    mark: str
    word: str
    sentence: str


def headline(report: StoredReport) -> Headline:
    """From the verdict of the report, and of what was measured afterwards."""
    return _failed(report) or _warned(report) or _passed(report)


def _failed(report: StoredReport) -> Headline | None:
    verdict, stages = report.verdict, _verdicts(report)
    monitor = report.monitor
    if monitor is not None and monitor.stopped_at is not None and _fails(monitor.verdict):
        return Headline(
            *("refuse", "✕", "Rejected while merging"),
            f"Stopped at layer {monitor.stopped_at}; nothing was written. {_count(report)}",
        )
    if REJECTED in (verdict.exit_code, *(stage.exit_code for stage in stages.values())):
        return Headline(
            *("refuse", "✕", "Rejected after the merge"),
            f"The models were merged, and the result failed. {_count(report)}",
        )
    if verdict.exit_code == 1:
        return Headline(
            *("unknown", "?", "Could not be evaluated"),
            "No reading decides, and what was not measured is not allowed.",
        )
    if verdict.decision == "refuse" or (_fails(report.gate) and not report.evaluations):
        refusing = (key for key in ("monitor", "rehearsal") if _decision(stages, key) == "refuse")
        when = next((STAGES[key] for key in refusing), BEFORE)
        return Headline("refuse", "✕", f"Refused {when}", _count(report))
    return None


def _warned(report: StoredReport) -> Headline | None:
    stages = _verdicts(report)
    if "warn" in (report.verdict.decision, *(stage.decision for stage in stages.values())):
        return Headline(
            *("warn", "!", "Warning: over a limit"),
            f"{_count(report)} The recipe asks only to be told, so it is merged all the same.",
        )
    if report.verdict.decision == "modified":
        fits = "The recipe was changed to fit."
        if reasons(report):
            fits = f"The recipe was changed to fit, but for what it gives up. {_count(report)}"
        return Headline("warn", "↻", "Allowed after a change", fits)
    return None


def _passed(report: StoredReport) -> Headline:
    if not report.spaces:
        why = report.geometry.why("hidden")
        sentence = f"{why[:1].upper()}{why[1:]}."
    elif _fails(report.gate) and report.evaluations:
        # A rehearsal decided in its place, or the merge was made before.
        sentence = "The prediction is outside a limit, but the merged model is inside every one."
    elif "evaluation" in _verdicts(report):
        sentence = "Every reading is inside its limit, and so is the merged model."
        return Headline("allow", "✓", "Allowed and confirmed", sentence)
    else:
        sentence = "Every reading is inside its limit."
    return Headline("allow", "✓", "Allowed", sentence)


def _verdicts(report: StoredReport) -> dict[str, StoredVerdict]:
    return {key: one.verdict for key, one in report.evaluations if one.verdict is not None}


def _fails(verdict: StoredVerdict | None) -> bool:
    """Whether it ends a merge; one that only warns does not."""
    return verdict is not None and verdict.exit_code != 0


def _decision(stages: dict[str, StoredVerdict], key: str) -> str:
    return stages[key].decision if key in stages else ""


def _count(report: StoredReport) -> str:
    over = len(reasons(report))
    return (
        f"{over} readings are outside their limits."
        if over != 1
        else "One reading is outside its limit."
    )


def reasons(report: StoredReport) -> list[tuple[str, StoredReason]]:
    """All limits that are passed, each once, with the stage at which it was."""
    found: list[tuple[str, StoredReason]] = []
    for key, one in reversed(report.evaluations):
        if one.verdict is not None:
            found += [(STAGES[key], reason) for reason in one.verdict.reasons]
    later = [reason for _, reason in found]
    early = list(report.gate.reasons) if report.gate is not None else []
    early += [one for one in report.verdict.reasons if one not in (*later, *early)]
    return [(BEFORE, reason) for reason in early] + found


def grouped(report: StoredReport) -> list[list[tuple[str, StoredReason]]]:
    """The reasons, those together that differ in nothing but subject and value."""
    groups: dict[tuple[str, str, str, float | None, str], list[tuple[str, StoredReason]]] = {}
    for when, one in reasons(report):
        key = (when, one.rule, one.reading, one.limit, one.advice)
        groups.setdefault(key, []).append((when, one))
    return list(groups.values())
