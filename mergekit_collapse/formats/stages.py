"""What each stage held against a limit and decided, read out of the report's document."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mergekit_collapse.errors import MergeRefusedError, MergeRejectedError
from mergekit_collapse.formats.readings import (
    Reading,
    evaluation_readings,
    gate_readings,
    reason_text,
)
from mergekit_collapse.report.report import MADE_BEFORE

StageName = Literal["gate", "rehearsal", "monitor", "evaluation"]
Outcome = Literal["passed", "warned", "failed", "error", "skipped"]

_AFTER: tuple[StageName, ...] = ("rehearsal", "monitor", "evaluation")
_ENDINGS = {0: "allowed", 1: "not evaluated", 3: "refused", 4: "rejected"}


@dataclass(frozen=True)
class Check:
    """One reading, and whether it passed.

    Attributes:
        outcome: ``warned`` where a limit is passed and the recipe only wants to be told.
        text: the reason and the advice, or what else there is to say; may be empty.
    """

    reading: Reading
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Stage:
    """One stage that judged.

    Attributes:
        exit_code: 0 where something else was decided later.
        reasons: as in the document, without those that a later stage gives as well.
        seconds: None where the document does not say.
        note: what else became of its decision; may be empty.
    """

    name: StageName
    decision: str
    exit_code: int
    seconds: float | None
    reasons: tuple[dict[str, Any], ...]
    checks: tuple[Check, ...]
    note: str = ""

    @property
    def told(self) -> str:
        """The note, as it follows the decision."""
        return f", {self.note}" if self.note else ""


@dataclass(frozen=True)
class Ending:
    """What became of the merge, over all stages.

    Attributes:
        word: such as ``refused``; ``allowed with warnings`` where a stage only warns, and
            ``allowed after a change`` where an action made it so.
    """

    word: str
    exit_code: int


def stages(document: dict[str, Any]) -> tuple[Stage, ...]:
    """The gate and what judged after it, in the order in which they ran.

    Args:
        document: complete.
    """
    later = [(name, document[name]) for name in _AFTER if document[name] is not None]
    return _gate(document), *(_later(document, name, found) for name, found in later)


def _gate(document: dict[str, Any]) -> Stage:
    verdict = _gate_verdict(document)
    note = _overruled(document) if verdict["exit_code"] != 0 else ""
    if note:
        verdict = {**verdict, "exit_code": 0}
    reasons = tuple(verdict["reasons"])
    timing = [seconds for step, seconds in document["timing"].items() if step not in _AFTER]
    return Stage(
        "gate",
        verdict["decision"],
        verdict["exit_code"],
        sum(timing) if timing else None,
        reasons,
        _checks(list(gate_readings(document)), reasons, verdict),
        note,
    )


def _gate_verdict(document: dict[str, Any]) -> dict[str, Any]:
    """The gate's own verdict, with every reason at the top that no other stage gives."""
    last, gate = document["verdict"], document["gate"]
    later = [document[name]["verdict"] for name in _AFTER if document[name] is not None]
    told = [reason for one in later for reason in one["reasons"]]
    rest = [reason for reason in last["reasons"] if reason not in told]
    explained = any(one["exit_code"] != 0 for one in later)
    if gate is not None and (gate["exit_code"] != 0 or last["exit_code"] == 0 or explained):
        found = gate["reasons"]
        return {**gate, "reasons": [*found, *(one for one in rest if one not in found)]}
    # Older documents have the last verdict alone, to which every stage adds its reasons.
    if rest and last["exit_code"] == MergeRejectedError.exit_code and explained:
        return {"decision": "warn", "exit_code": 0, "reasons": rest}
    if not rest and last["reasons"] and (explained or last["exit_code"] == 0):
        return {"decision": "allow", "exit_code": 0, "reasons": []}
    return {**last, "reasons": rest}


def _overruled(document: dict[str, Any]) -> str:
    """Why a refusal of the gate is not the last word; empty where it is."""
    if document["gate"] is None or document["verdict"]["exit_code"] == MergeRefusedError.exit_code:
        return ""
    rehearsal, evaluation = document["rehearsal"], document["evaluation"]
    if rehearsal is not None and rehearsal["verdict"]["exit_code"] == 0:
        return "overruled by the rehearsal"
    if evaluation is not None and document.get("monitor_reason") == MADE_BEFORE:
        return f"but {MADE_BEFORE}"
    return ""


def ending(document: dict[str, Any]) -> Ending:
    """The worst that a stage decided: nothing passes because another stage passed."""
    found = stages(document)
    worst = max(document["verdict"]["exit_code"], *(stage.exit_code for stage in found))
    if worst == 0 and any(stage.decision == "warn" for stage in found):
        return Ending("allowed with warnings", 0)
    if worst == 0 and any(stage.decision == "modified" for stage in found):
        return Ending("allowed after a change", 0)
    return Ending(_ENDINGS.get(worst, f"ended with exit code {worst}"), worst)


def _later(document: dict[str, Any], name: StageName, found: dict[str, Any]) -> Stage:
    verdict = found["verdict"]
    reasons = tuple(verdict["reasons"])
    code, layer = verdict["exit_code"], found["stopped_at"]
    checks = _checks(list(evaluation_readings(found, document)), reasons, verdict)
    # Where it only warns, the merge went on, and was watched no longer.
    stopped = code != 0 and layer is not None
    note = f"stopped at layer {layer}; nothing was written" if stopped else ""
    return Stage(name, verdict["decision"], code, found["seconds"], reasons, checks, note)


def _checks(
    readings: list[Reading], reasons: Sequence[dict[str, Any]], verdict: dict[str, Any]
) -> tuple[Check, ...]:
    """The readings with what the verdict says of them.

    The verdict alone tells what failed. A reason about none of the readings is one of its
    own, and so is a refusal without reasons, so that nothing bad is lost.
    """
    code = verdict["exit_code"]
    bad: Outcome = "warned" if code == 0 else "error" if code == 1 else "failed"
    by_reading: dict[int, dict[str, Any]] = {}
    unmatched = []
    for reason in reasons:
        index = _about(reason, readings, by_reading.keys())
        if index is None:
            unmatched.append(reason)
        else:
            by_reading[index] = reason
    checks = [_check(reading, by_reading.get(index), bad) for index, reading in enumerate(readings)]
    checks += [Check(_own_reading(reason), bad, reason_text(reason)) for reason in unmatched]
    if code != 0 and not any(check.outcome == bad for check in checks):
        said = f"decided {verdict['decision']}, exit code {code}, without a reason"
        checks.append(Check(Reading("verdict", "", "the merge", None, said), bad, said))
    return tuple(checks)


def _check(reading: Reading, reason: dict[str, Any] | None, bad: Outcome) -> Check:
    if reason is not None:
        limited = replace(reading, limit=reason["limit"])
        return Check(limited, bad, reason_text(reason))
    if reading.passed is False:
        return Check(reading, bad, reading.value_reason or "")
    if reading.value is None and reading.passed is None:
        return Check(reading, "skipped", reading.value_reason or "undefined")
    return Check(reading, "passed", reading.value_reason or "")


def _about(
    reason: dict[str, Any], readings: Sequence[Reading], taken: Collection[int]
) -> int | None:
    """The index of the reading that a reason is about."""
    rule = _rule(reason)
    free = [index for index in range(len(readings)) if index not in taken]
    same = [i for i in free if readings[i].rule == rule]
    named = [i for i in same if readings[i].subject == reason["subject"]]
    # Two spaces have a reading of the same expert.
    exact = [i for i in named if readings[i].space in (reason.get("reading") or "")]
    if found := exact or named:
        return found[0]
    return same[0] if len(same) == 1 else None


def _own_reading(reason: dict[str, Any]) -> Reading:
    reading = Reading(
        _rule(reason), "", reason["subject"], reason["value"], reason.get("value_reason")
    )
    return replace(reading, limit=reason["limit"])


def _rule(reason: dict[str, Any]) -> str:
    """The limit's key in the block, without what it says of the direction."""
    rule: str = reason["rule"]
    return rule.removeprefix("max_").removeprefix("min_")
