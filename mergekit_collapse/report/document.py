"""The report as ``report.json``: one JSON document, the same for every way in."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.known_losses import applied
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.sequential import LEVEL, SPENDING
from mergekit_collapse.parameters.conflict_document import conflict_document
from mergekit_collapse.recipe.coefficients import Coefficients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.report.estimate_document import estimate_document
from mergekit_collapse.report.evaluation_document import evaluation_document, verdict_document
from mergekit_collapse.report.geometry_document import (
    defined,
    geometry_document,
    groups_document,
    scores_document,
)
from mergekit_collapse.report.hint import hint
from mergekit_collapse.report.remedy import remedy_document
from mergekit_collapse.report.report import Measurement, Report
from mergekit_collapse.stopping import Stop
from mergekit_collapse.whole_file import write_whole

FORMAT_VERSION = 1
_FILE_NAME = "report.json"
_NOTHING_MERGED = "every slice has one source, so no two models are merged"


def to_document(report: Report) -> dict[str, Any]:
    """The document; an undefined number is null beside its ``…_reason``."""
    recipe, measured = report.recipe, report.measurement
    found: dict[str, Geometry | None] = {"hidden": None, "predictive": None}
    why = dict.fromkeys(found, _NOTHING_MERGED)
    if measured is not None:
        found = {"hidden": measured.hidden, "predictive": measured.predictive}
        why["predictive"] = measured.predictive_reason or ""
    spaces = {name: geometry for name, geometry in found.items() if geometry is not None}
    scores = {name: scores_document(geometry) for name, geometry in spaces.items()}
    geometry: dict[str, Any] = {
        name: geometry_document(one, recipe.compat.layer) for name, one in spaces.items()
    }
    for name in found.keys() - spaces.keys():
        geometry |= defined(name, None, why[name])
    deciding = report.deciding
    return {
        "format_version": FORMAT_VERSION,
        "verdict": verdict_document(report.verdict),
        "gate": verdict_document(report.gate_verdict),
        **defined("hint", hint(report), "nothing is left open that a rehearsal would tell"),
        "versions": dict(report.versions),
        "timing": {stage: round(seconds, 3) for stage, seconds in report.timing.items()},
        "budget": recipe.compat.budget.model_dump(),
        # As they were applied, so that no page shows a limit that gave way.
        "evaluate": applied(
            recipe.compat.evaluate, report.evaluation or report.rehearsal, len(recipe.experts)
        ).model_dump(mode="json"),
        "recipe": {
            "path": str(recipe.path) if recipe.path is not None else None,
            # Of the file as it lies there, whatever is merged instead.
            "sha256": report.remedy.source_sha256 if report.remedy else recipe.sha256,
            "method": recipe.config.merge_method,
            "effective": recipe.source,
        },
        "experts": _experts(recipe, report.coefficients),
        "base": str(recipe.base) if recipe.base is not None else None,
        "coefficients": _coefficients(report.coefficients),
        "warnings": [
            {"subject": f.subject, "message": f.message, "advice": f.advice}
            for f in (report.preflight.warnings if report.preflight is not None else ())
        ],
        "probes": _probes(recipe, measured) if measured else None,
        "forward": (
            {
                "device": measured.device,
                "dtype": measured.dtype,
                "engine": measured.engine,
                "cached": list(measured.cached),
            }
            if measured
            else None
        ),
        **_estimate(measured),
        "geometry": geometry,
        "similarity": {name: similarity for name, (similarity, _) in scores.items()},
        "mds": {name: mds for name, (_, mds) in scores.items()},
        "groups": groups_document(deciding) if deciding is not None else [],
        **_remedy(report),
        **_plan(report),
        **_merged(report),
    }


def to_json(report: Report) -> str:
    """The document as text. NaN and infinity are no JSON, and raise."""
    return json.dumps(to_document(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_report(report: Report, folder: Path) -> Report:
    """Write ``report.json`` into ``folder``, whole or not at all.

    Returns:
        The report, with the file's path.

    Raises:
        EvaluationError: the folder cannot be written, or the disk is full.
    """
    path = folder / _FILE_NAME
    try:
        write_whole(path, to_json(report))
    except OSError as error:
        raise EvaluationError(
            f"{path}: the report cannot be written: {error.strerror}. "
            "Free the disk, or give compat.report another folder"
        ) from None
    return replace(report, path=path)


def _experts(recipe: Recipe, coefficients: Coefficients | None) -> list[dict[str, Any]]:
    reason = f"{recipe.config.merge_method} takes no weights"
    weights = coefficients.weights if coefficients is not None else (None,) * len(recipe.experts)
    return [
        {"name": name, "model": str(model), **defined("weight", weight, reason)}
        for name, model, weight in zip(recipe.names, recipe.experts, weights, strict=True)
    ]


def _coefficients(found: Coefficients | None) -> dict[str, Any] | None:
    if found is None:
        return None
    alpha = found.alpha.tolist() if found.alpha is not None else None
    return {**defined("alpha", alpha, found.note), "exact": found.exact, "note": found.note}


def _probes(recipe: Recipe, measured: Measurement) -> dict[str, Any]:
    probe_set, stop = measured.probe_set, measured.stop
    tasks = [
        {
            "name": task.name,
            "model": str(recipe.experts[task.owner]) if task.owner is not None else None,
            "source": task.source,
            "rows": task.rows,
        }
        for task in probe_set.tasks
    ]
    return {
        "digest": measured.token_digest,
        "text_digest": probe_set.digest,
        "tasks": tasks,
        "samples": recipe.compat.probes.samples if stop is None else stop.used.samples,
        **defined("rounds", None if stop is None else _rounds(stop), "samples is not auto"),
    }


def _rounds(stop: Stop) -> dict[str, Any]:
    return {
        "looks": [asdict(look) for look in stop.looks],
        "samples": stop.samples,
        "probes": stop.probes,
        "rule": SPENDING,
        "level": LEVEL,
        "spent": stop.spent,
    }


def _estimate(measured: Measurement | None) -> dict[str, Any]:
    """What running the models was expected to take, beside what it took."""
    if measured is None or measured.estimate is None or measured.used is None:
        return defined(
            "estimate", None, _NOTHING_MERGED if measured is None else "no model was run"
        )
    return {"estimate": estimate_document(measured.estimate, measured.used)}


def _remedy(report: Report) -> dict[str, Any]:
    document = remedy_document(report.remedy) if report.remedy is not None else None
    return defined("remedy", document, report.remedy_reason)


def _plan(report: Report) -> dict[str, Any]:
    found, document = report.plan, None
    if found is not None:
        document = {"path": str(found.path), "sha256": found.sha256}
    return defined("plan", document, "no plan was followed")


def _merged(report: Report) -> dict[str, Any]:
    """What was seen of the merged model, and of the weights; null beside the reason."""
    parts: dict[str, Any] = {}
    for name in ("rehearsal", "monitor", "evaluation"):
        found, document = getattr(report, name), None
        if found is not None:
            measured = report.measurement
            hidden = measured.hidden if measured is not None else None
            predictive = measured.predictive if measured is not None else None
            document = evaluation_document(found, hidden, predictive)
        parts |= defined(name, document, getattr(report, f"{name}_reason"))
    weights = report.parameters
    document = conflict_document(weights) if weights is not None else None
    return parts | defined("parameters", document, report.parameters_reason)
