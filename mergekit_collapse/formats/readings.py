"""The readings that the limits are about, read out of the report's document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_collapse.evaluation.unscored import unscored

_RULES = {
    "mds": "MDS",
    "merging_loss": "merging loss",
    "own_distortion": "distortion of answers",
    "variance_ratio": "variance ratio",
    "rank_ratio": "rank ratio",
}


@dataclass(frozen=True)
class Reading:
    """One number, or one yes or no.

    Attributes:
        rule: as in a verdict's reasons, without ``max_`` or ``min_``.
        space: ``hidden``, ``predictive`` or nothing.
        subject: the experts, task or layer that it is about.
        value: None where it is undefined, or where the reading is a yes or no.
        value_reason: why it is undefined, or what a yes or no says.
        limit: None where the document does not say.
        passed: of a yes or no.
    """

    rule: str
    space: str
    subject: str
    value: float | int | None  # as JSON has them
    value_reason: str | None = None
    limit: float | int | None = None
    passed: bool | None = None

    @property
    def name(self) -> str:
        """Such as ``MDS of sentiment (hidden)``; of a yes or no, what is asked."""
        if self.passed is not None:
            return self.subject
        space = f" ({self.space})" if self.space else ""
        return f"{_RULES.get(self.rule, self.rule)} of {self.subject}{space}"


def reason_text(reason: dict[str, Any]) -> str:
    """A reason of a verdict as a sentence, and its advice."""
    if reason["limit"] is None:  # of a check
        return f"{reason['subject']}: {reason['reading']}. {reason['advice']}".strip()
    shown = reason.get("value_reason") if reason["value"] is None else f"{reason['value']:.3g}"
    reading = f" ({reason['reading']})" if reason.get("reading") else ""
    rule = f"{reason['rule']} of {reason['subject']}{reading}"
    return f"{rule} is {shown}, limit {reason['limit']:g}. {reason['advice']}".strip()


def deciding(document: dict[str, Any]) -> dict[str, Any] | None:
    """The geometry of the space that decides; None where nothing was measured."""
    found: dict[str, Any] | None = document["geometry"].get(document["budget"]["space"])
    return found


def scores(document: dict[str, Any]) -> list[tuple[float | None, str | None]]:
    """The deciding Merging Difficulty Score of each expert, or why it is undefined."""
    budget = document["budget"]
    readings = document["mds"].get(budget["space"], {})
    values = readings.get(budget["similarity"]) or [None] * len(document["experts"])
    reasons = readings.get(f"{budget['similarity']}_reason") or [None] * len(values)
    return list(zip(values, reasons, strict=True))


def measured(document: dict[str, Any]) -> list[float | None]:
    """Each expert's distortion under the merged model, in the space that decides.

    Of the model that was published or rejected, else of the rehearsal. Empty where no merged
    model was measured.
    """
    found = document["evaluation"] or document["rehearsal"] or {}
    space = found.get(document["budget"]["space"]) or {}
    return list(space.get("distortion") or [])


def gate_readings(document: dict[str, Any]) -> Iterator[Reading]:
    """What the budget's limits are about, in the space that decides."""
    geometry, budget = deciding(document), document["budget"]
    if geometry is None:
        return
    names, space = [expert["name"] for expert in document["experts"]], budget["space"]
    if (limit := budget["mds"]) is not None:
        for name, (value, why) in zip(names, scores(document), strict=True):
            yield Reading("mds", space, name, value, why, limit)
    if (limit := budget["distortion"]) is not None:
        for subject, value, why in _distortions(geometry, budget, names):
            yield Reading("distortion", space, subject, value, why, limit)


def _distortions(
    geometry: dict[str, Any], budget: dict[str, Any], names: Sequence[str]
) -> Iterator[tuple[str, float | None, str | None]]:
    """Subject, value and why there is none, as the budget's rule reads the geometry."""
    own, everyone = budget["over"] == "own_task", ", ".join(names)
    if own and budget["rule"] == "weights":
        for name, task in geometry["own_task"].items():
            if task["owner"] is not None:
                subject = f"{names[task['owner']]} on {name}"
                why = task.get("predicted_distortion_reason")
                yield subject, task["predicted_distortion"], why
    elif own:
        yield everyone, geometry["own_task_minimax"], geometry.get("own_task_minimax_reason")
    elif budget["rule"] == "weights":
        why = geometry.get("predicted_distortion_reason")
        values = geometry["predicted_distortion"] or [None] * len(names)
        yield from ((name, value, why) for name, value in zip(names, values, strict=True))
    elif budget["rule"] == "corollary":
        first, second = (names[index] for index in geometry["diameter_pair"])
        yield f"{first} and {second}", geometry["bounds"]["corollary"], None
    else:
        yield everyone, geometry["ball_radius_squared"], None


def evaluation_readings(found: dict[str, Any], document: dict[str, Any]) -> Iterator[Reading]:
    """What was read of a merged model: in a rehearsal, as it was made, or afterwards."""
    names, budget = [expert["name"] for expert in document["experts"]], document["budget"]
    for check in found["checks"]:
        yield Reading("check", "", check["name"], None, check["detail"], None, check["passed"])
    for space in ("hidden", "predictive"):
        values = (found[space] or {}).get("distortion") or []
        for name, value in zip(names, values, strict=False):
            yield Reading("distortion", space, name, value)
    if budget["over"] == "own_task" and (deciding_space := found[budget["space"]]) is not None:
        for name, task in deciding_space["own_task"].items():
            if task["owner"] is not None:
                subject = f"{names[task['owner']]} on {name}"
                yield Reading("distortion", budget["space"], subject, task["distortion"])
    for task in found["tasks"]:
        owner = f"{names[task['owner']]} on " if task["owner"] is not None else ""
        why, loss = task.get("loss_percent_reason"), task["loss_percent"]
        # As the limit counts it: Eq. 1 has a loss negative.
        lost = -loss if loss is not None else None
        yield Reading("merging_loss", "", f"{owner}{task['name']}", lost, why)
    yield from _own_answers(found, document)
    for rule in ("variance_ratio", "rank_ratio"):
        ratios = [(one[rule], one["layer"]) for one in found["layers"] if one["layer"] > 0]
        if known := [pair for pair in ratios if pair[0] is not None]:
            value, layer = min(known)
            # The layer is no part of the subject: CI systems follow a case by its name.
            yield Reading(rule, "", "the worst layer", value, f"layer {layer}")


def _own_answers(found: dict[str, Any], document: dict[str, Any]) -> Iterator[Reading]:
    """Of the tasks that no loss is known of, where the document has a limit for them."""
    limit = document["evaluate"]["max_own_distortion"]
    if limit is None or found["predictive"] is None:
        return
    tasks = found["predictive"]["own_task"]
    names = unscored(
        ((name, task["owner"]) for name, task in tasks.items()),
        ((task["name"], task["loss_percent"]) for task in found["tasks"]),
    )
    for name, task in tasks.items():
        if name in names:
            subject = f"{document['experts'][task['owner']]['name']} on {name}"
            value, why = task["distortion"], task.get("distortion_reason")
            yield Reading("own_distortion", "predictive", subject, value, why, limit)
