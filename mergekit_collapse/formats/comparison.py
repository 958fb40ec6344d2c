"""What changed between two reports, for the terminal."""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any

from mergekit_collapse.findings import printable
from mergekit_collapse.formats.missing_keys import complete
from mergekit_collapse.formats.readings import deciding, measured, scores
from mergekit_collapse.formats.stages import ending
from mergekit_collapse.geometry.merging_difficulty import INFINITE
from mergekit_collapse.report.report import cell

_MARK = "*"
_SETTINGS = ("layers", "pooling", "scale")
_NAME_WIDTH = 40

# A name, the two values as shown, and whether the second is outside the first's interval.
Row = tuple[str, str, str, bool]


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Verdict, experts and numbers that differ, one a line, aligned.

    Experts are matched by model, tasks by name. A number is marked where the second value
    lies outside the first one's confidence interval, so that chance in the choice of probes
    does not explain it. Where probes or settings differ, numbers are shown unmarked, and it is
    said that they cannot be compared.

    Args:
        first, second: documents of ``report.json``.
    """
    one, two = complete(first), complete(second)
    differs = list(_measured_differently(one, two))
    numbers = [*_geometry(one, two), *_experts(one, two), *_tasks(one, two)]
    if differs:
        numbers = [(name, before, after, False) for name, before, after, _ in numbers]
    changed = [row for row in [*_facts(one, two), *numbers] if row[1] != row[2]]
    verdict = ("verdict", ending(one).word, ending(two).word, False)
    heads = ("", _title(one, "first"), _title(two, "second"), False)
    blocks = [
        _aligned([heads, verdict, *changed]),
        [*_membership(one, two)],
        [f"The numbers are not comparable: {', '.join(differs)} differ."] if differs else [],
    ]
    if not any((changed, blocks[1], differs)) and verdict[1] == verdict[2]:
        blocks.append(["Nothing changed."])
    if any(mark for *_, mark in changed):
        blocks.append([f"{_MARK} outside the first report's confidence interval"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _title(document: dict[str, Any], default: str) -> str:
    return document["recipe"]["path"] or default


def _facts(one: dict[str, Any], two: dict[str, Any]) -> Iterator[Row]:
    yield "method", str(one["recipe"]["method"]), str(two["recipe"]["method"]), False
    for key in one["budget"] | two["budget"]:
        yield f"budget.{key}", str(one["budget"].get(key)), str(two["budget"].get(key)), False
    for name in one["versions"] | two["versions"]:
        versions = [document["versions"].get(name, "-") for document in (one, two)]
        yield f"version of {name}", versions[0], versions[1], False


def _measured_differently(one: dict[str, Any], two: dict[str, Any]) -> Iterator[str]:
    """What of the measurement differs, so that numbers are of different things."""
    before, after = deciding(one), deciding(two)
    if before is None or after is None:
        return
    if (one["probes"] or {}).get("digest") != (two["probes"] or {}).get("digest"):
        yield "the probes"
    for key in ("space", "similarity"):
        if one["budget"][key] != two["budget"][key]:
            yield f"budget.{key}"
    yield from (key for key in _SETTINGS if before[key] != after[key])


def _membership(one: dict[str, Any], two: dict[str, Any]) -> Iterator[str]:
    models = [{expert["model"] or expert["name"] for expert in d["experts"]} for d in (one, two)]
    for mark, names in (("-", models[0] - models[1]), ("+", models[1] - models[0])):
        yield from (f"{mark} expert {printable(name)}" for name in sorted(names))


def _geometry(one: dict[str, Any], two: dict[str, Any]) -> Iterator[Row]:
    before, after = deciding(one), deciding(two)
    for label, key in (("Δ²", "diameter_squared"), ("ball r²", "ball_radius_squared")):
        values = [geometry[key] if geometry else None for geometry in (before, after)]
        yield _number(label, values, before["confidence"][key] if before else None)
    worst = [_worst(found["predicted_distortion"]) if found else None for found in (before, after)]
    interval = before["confidence"]["predicted_worst"] if before else None
    yield _number("worst predicted distortion", worst, interval)
    yield _number("worst measured distortion", [_worst(measured(d)) for d in (one, two)])


def _experts(one: dict[str, Any], two: dict[str, Any]) -> Iterator[Row]:
    """Of the experts that both have."""
    tables = [
        {expert["model"] or expert["name"]: i for i, expert in enumerate(document["experts"])}
        for document in (one, two)
    ]
    before, after = deciding(one), deciding(two)
    for model, index in tables[0].items():
        other = tables[1].get(model)
        if other is None:
            continue
        name = one["experts"][index]["name"]
        weights = [one["experts"][index]["weight"], two["experts"][other]["weight"]]
        yield _number(f"weight of {name}", weights)
        if before is None or after is None:
            continue
        intervals = before["confidence"]["mds"].get(one["budget"]["similarity"])
        found = [scores(one)[index], scores(two)[other]]
        # An infinite score is beyond every interval.
        values = [inf if why == INFINITE else value for value, why in found]
        yield _number(f"MDS of {name}", values, intervals[index] if intervals else None)
        places = (index, other)
        for label, lists in (
            ("predicted", (before["predicted_distortion"], after["predicted_distortion"])),
            ("measured", (measured(one), measured(two))),
        ):
            pair = [found[i] if found else None for found, i in zip(lists, places, strict=True)]
            yield _number(f"{label} distortion of {name}", pair)


def _tasks(one: dict[str, Any], two: dict[str, Any]) -> Iterator[Row]:
    evaluations = [document["evaluation"] or {"tasks": []} for document in (one, two)]
    losses = [
        {task["name"]: task["loss_percent"] for task in found["tasks"]} for found in evaluations
    ]
    for name in losses[0] | losses[1]:
        yield _number(f"merging loss of {name}, %", [found.get(name) for found in losses])


def _worst(values: Iterable[float | None] | None) -> float | None:
    return max((value for value in values or () if value is not None), default=None)


def _number(
    name: str, values: Sequence[float | None], interval: dict[str, Any] | None = None
) -> Row:
    low, high = (interval["low"], interval["high"]) if interval else (None, None)
    before, after = (cell(None, INFINITE) if value == inf else cell(value) for value in values)
    beyond = False
    if low is not None and high is not None and values[1] is not None:
        beyond = not low <= values[1] <= high
    return name, before, after, beyond


def _aligned(rows: Sequence[Row]) -> list[str]:
    shown = [[_short(text) for text in row[:3]] for row in rows]
    name, before = (max(len(row[i]) for row in shown) for i in (0, 1))
    return [
        f"{row[0]:<{name}}  {row[1]:<{before}}  {row[2]}{f' {_MARK}' if mark else ''}".rstrip()
        for row, (*_, mark) in zip(shown, rows, strict=True)
    ]


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _NAME_WIDTH else f"…{text[1 - _NAME_WIDTH :]}"
