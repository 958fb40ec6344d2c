"""The report as JUnit XML, which CI systems show as tests: a suite per stage, a case per limit."""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from mergekit_collapse.findings import printable
from mergekit_collapse.formats.change import change_line
from mergekit_collapse.formats.missing_keys import complete
from mergekit_collapse.formats.stages import Check, Stage, stages

_ROOT = "mergekit-collapse"
# JUnit's child of a case; what passed has none.
_MARKS = {"failed": "failure", "error": "error", "skipped": "skipped"}
_COUNTED = {"tests": "tests", "failures": "failed", "errors": "error", "skipped": "skipped"}


def to_junit(document: dict[str, Any]) -> str:
    """The document as one XML file.

    A case fails where its limit refuses or rejects the merge, so that some case fails exactly
    where the exit code is not 0; one that only warns passes, and says so in ``system-out``.
    What XML 1.0 cannot hold is written out, such as ``\\x1b``.
    """
    root, found = ET.Element("testsuites", name=_ROOT), complete(document)
    for stage in stages(found):
        root.append(_suite(stage, found))
    return _text(root)


def error_junit(message: str, exit_code: int) -> str:
    """The file of a recipe that ended before it was judged: one case, an error.

    Args:
        message: of the exception.
        exit_code: that the command ends with, 1 or 2.
    """
    root = ET.Element("testsuites", name=_ROOT)
    suite = ET.SubElement(root, "testsuite", name="gate")
    case = _case("gate", "evaluated", 0.0)
    kind = "invalid recipe" if exit_code == 2 else "not evaluated"
    mark = ET.SubElement(case, "error", message=printable(message), type=kind)
    mark.text = printable(message)
    suite.append(case)
    _count(suite, {"tests": 1, "error": 1}, 0.0)
    return _text(root)


def _suite(stage: Stage, document: dict[str, Any]) -> ET.Element:
    suite = ET.Element("testsuite", name=stage.name)
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(stage, document).items():
        ET.SubElement(properties, "property", name=printable(name), value=printable(value))
    for name, seconds in _steps(stage, document).items():
        suite.append(_case(stage.name, f"step: {name}", seconds))
    taken: Counter[str] = Counter()
    for check in stage.checks:
        name = check.reading.name
        taken[name] += 1
        # CI systems tell cases apart by their names alone.
        unique = name if taken[name] == 1 else f"{name} #{taken[name]}"
        suite.append(_checked(stage.name, unique, check))
    if stage.name == "gate" and (lines := _told(document)):
        ET.SubElement(suite, "system-out").text = "\n".join(printable(line) for line in lines)
    outcomes = Counter[str](check.outcome for check in stage.checks)
    _count(suite, {"tests": len(suite.findall("testcase")), **outcomes}, stage.seconds or 0.0)
    return suite


def _told(document: dict[str, Any]) -> list[str]:
    """What the preflight warned of, and what was changed."""
    lines = [f"{w['subject']}: {w['message']}; {w['advice']}" for w in document["warnings"]]
    if (remedy := document["remedy"]) is not None:
        lines += [change_line(remedy), *(f"note: {note}" for note in remedy["notes"])]
        lines += (remedy["diff"] or remedy["split"] or "").splitlines()
    return lines


def _properties(stage: Stage, document: dict[str, Any]) -> dict[str, str]:
    found = {"decision": stage.decision, "exit_code": str(stage.exit_code)}
    if stage.note:
        found["note"] = stage.note
    if stage.name == "gate":
        recipe, probes = document["recipe"], document["probes"]
        found |= {f"recipe.{key}": recipe[key] or "" for key in ("path", "sha256", "method")}
        if probes is not None:
            found["probes.digest"] = probes["digest"] or ""
        if document["remedy"] is not None:
            found["remedy"] = change_line(document["remedy"])
        if (plan := document["plan"]) is not None:
            found["plan.sha256"] = plan["sha256"] or ""
        found |= {f"version.{name}": version for name, version in document["versions"].items()}
    elif document[stage.name]["stopped_at"] is not None:
        found["stopped_at"] = str(document[stage.name]["stopped_at"])
    return found


def _steps(stage: Stage, document: dict[str, Any]) -> dict[str, float]:
    """What took the time: a limit that is held against a number takes none."""
    if stage.name != "gate":
        return {"measured": stage.seconds or 0.0}
    later = {"rehearsal", "monitor", "evaluation"}
    return {name: s for name, s in document["timing"].items() if name not in later}


def _case(suite: str, name: str, seconds: float) -> ET.Element:
    classname = f"{_ROOT}.{suite}"
    return ET.Element("testcase", classname=classname, name=printable(name), time=f"{seconds:.3f}")


def _checked(suite: str, name: str, check: Check) -> ET.Element:
    case = _case(suite, name, 0.0)
    reading = check.reading
    if (tag := _MARKS.get(check.outcome)) is not None:
        mark = ET.SubElement(case, tag, message=printable(check.text))
        if tag != "skipped":  # which has no type
            mark.set("type", printable(reading.rule))
            mark.text = printable(check.text)
        return case
    value = "" if reading.value is None else f"{reading.value:.6g}"
    limit = "" if reading.limit is None else f"limit {reading.limit:g}"
    said = ", ".join(part for part in (value, limit, check.text) if part)
    if said:
        warned = "WARNING: " if check.outcome == "warned" else ""
        ET.SubElement(case, "system-out").text = printable(f"{warned}{said}")
    return case


def _count(suite: ET.Element, counts: Mapping[str, int], seconds: float) -> None:
    for attribute, outcome in _COUNTED.items():
        suite.set(attribute, str(counts.get(outcome, 0)))
    suite.set("time", f"{seconds:.3f}")


def _text(root: ET.Element) -> str:
    for attribute in ("tests", "failures", "errors"):
        root.set(attribute, str(sum(int(suite.get(attribute, "0")) for suite in root)))
    root.set("time", f"{sum(float(suite.get('time', '0')) for suite in root):.3f}")
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'
