"""The report's numbers as metrics with names that every experiment tracker takes."""

import re
from collections.abc import Iterator
from typing import Any

from mergekit_collapse.formats.missing_keys import complete
from mergekit_collapse.formats.readings import deciding, measured, scores
from mergekit_collapse.formats.stages import ending

PREFIX = "collapse"
_LONGEST = 60  # of a name inside a metric's; MLflow takes 250 characters in all


def scalars(document: dict[str, Any]) -> dict[str, float]:
    """Metric and value; an undefined number is left out.

    Names have letters, digits, underscores and slashes only, which each tracker takes.
    """
    return dict(_named(_scalars(complete(document))))


def profiles(document: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Metric, and per layer its number and value."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path, layer, value in _profiles(complete(document)):
        if value is not None:
            name = "/".join((PREFIX, "layer", *path))
            found.setdefault(name, []).append((layer, float(value)))
    return found


def _scalars(document: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], float | None]]:
    names = [expert["name"] for expert in document["experts"]]
    yield ("exit_code",), ending(document).exit_code
    if (geometry := deciding(document)) is not None:
        yield ("diameter_squared",), geometry["diameter_squared"]
        yield ("ball_radius_squared",), geometry["ball_radius_squared"]
        yield ("lower_bound",), geometry["bounds"]["converse"]
        for name, (score, _) in zip(names, scores(document), strict=True):
            yield ("mds", name), score
        for name, value in zip(names, geometry["predicted_distortion"] or [], strict=False):
            yield ("predicted_distortion", name), value
        for name, value in zip(names, measured(document), strict=False):
            yield ("measured_distortion", name), value
    for stage in ("rehearsal", "monitor", "evaluation"):
        for task in (document[stage] or {"tasks": []})["tasks"]:
            yield (stage, "merging_loss_percent", task["name"]), task["loss_percent"]
    for task_name, metrics in ((document["evaluation"] or {}).get("lm_eval") or {}).items():
        for metric, value in metrics.items():
            yield ("lm_eval", task_name, metric), value if _is_number(value) else None
    for step, seconds in document["timing"].items():
        yield ("seconds", step), seconds
    mean_cosine = (document["parameters"] or {}).get("mean_cosine")
    yield ("parameters", "mean_cosine"), mean_cosine if _is_number(mean_cosine) else None


def _profiles(
    document: dict[str, Any],
) -> Iterator[tuple[tuple[str, ...], int, float | None]]:
    for one in (deciding(document) or {"profile": []})["profile"]:
        for key in ("diameter_squared", "ball_radius_squared"):
            yield (key,), one["layer"], one[key]
    for stage in ("rehearsal", "monitor", "evaluation"):
        for one in (document[stage] or {"layers": []})["layers"]:
            known = [value for value in one["distortion"] if value is not None]
            yield (stage, "worst_distortion"), one["layer"], max(known, default=None)
            for key in ("variance_ratio", "rank_ratio"):
                yield (stage, key), one["layer"], one[key]


def _named(
    found: Iterator[tuple[tuple[str, ...], float | None]],
) -> Iterator[tuple[str, float]]:
    """Names of experts and tasks are anything; two must not become one metric.

    Numbered also where a number is undefined, so that it keeps its name from run to run.
    """
    taken: set[str] = set()
    for path, value in found:
        name = "/".join((PREFIX, *map(_legal, path)))
        unique, count = name, 1
        while unique.lower() in taken:  # a file system may not tell cases apart
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique.lower())
        if value is not None:
            yield unique, float(value)


def _legal(part: str) -> str:
    # The end of a path tells more than its start.
    return re.sub(r"[^A-Za-z0-9_]+", "_", part).strip("_")[-_LONGEST:] or "_"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
