"""What each stage held against a limit and decided, read out of the report's document."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mergekit_collapse.formats.readings import (
    Reading,
    evaluation_readings,
    gate_readings,
    reason_text,
)

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
        reasons: as in the document, without those that a later stage gives as well.
        seconds: None where the document does not say.
    """

    name: StageName
    decision: str
    exit_code: int
    seconds: float | None
    reasons: tuple[dict[str, Any], ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Ending:
    """What became of the merge, over all stages.

    Attributes:
        word: such as ``refused``; ``allowed with warnings`` where a stage only warns.
    """

    word: str
    exit_code: int


def stages(document: dict[str, Any]) -> tuple[Stage, ...]:
    """The gate and what judged after it, in the order in which they ran.

    Args:
        document: complete.
    """
    later = [(name, document[name]) for name in _AFTER if document[name] is not None]
    told = [reason for _, found in later for reason in found["verdict"]["reasons"]]
    verdict = document["verdict"]
    own = tuple(reason for reason in verdict["reasons"] if reason not in told)
    timing = [seconds for step, seconds in document["timing"].items() if step not in _AFTER]
    # The verdict that a rehearsal made stands at the top as well.
    explained = len(own) < len(verdict["reasons"])
    gate = Stage(
        "gate",
        verdict["decision"],
        verdict["exit_code"],
        sum(timing) if timing else None,
        own,
        _checks(list(gate_readings(document)), own, verdict, explained),
    )
    return gate, *(_later(document, name, found) for name, found in later)


def ending(document: dict[str, Any]) -> Ending:
    """The worst that a stage decided: nothing passes because another stage passed."""
    found = stages(document)
    worst = max(stage.exit_code for stage in found)
    if worst == 0 and any(stage.decision == "warn" for stage in found):
        return Ending("allowed with warnings", 0)
    return Ending(_ENDINGS.get(worst, f"ended with exit code {worst}"), worst)


def _later(document: dict[str, Any], name: StageName, found: dict[str, Any]) -> Stage:
    verdict = found["verdict"]
    reasons = tuple(verdict["reasons"])
    checks = _checks(list(evaluation_readings(found, document)), reasons, verdict)
    return Stage(name, verdict["decision"], verdict["exit_code"], found["seconds"], reasons, checks)


def _checks(
    readings: list[Reading],
    reasons: Sequence[dict[str, Any]],
    verdict: dict[str, Any],
    explained: bool = False,
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
    if code != 0 and not explained and not any(check.outcome == bad for check in checks):
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
