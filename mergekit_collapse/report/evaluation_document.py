"""A merged model's measurements as plain data for JSON: an undefined number is null."""

import math
from typing import Any

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import Measured
from mergekit_collapse.report.geometry_document import defined
from mergekit_collapse.verdict import Verdict

_NOT_FINITE = "NaN or infinite"
_NO_LAYER = "the merge ended before its first layer was read"
_NO_EXPERTS = "no expert has this layer, or none varies there"


def evaluation_document(
    found: Evaluation, hidden: Geometry | None, predictive: Geometry | None
) -> dict[str, Any]:
    """What was measured beside what was predicted.

    Args:
        found: of one merged model.
        hidden, predictive: of its experts; None where no two models are merged.
    """
    inner = space = None
    unread = found.hidden is None and any(not check.passed for check in found.checks)
    if found.hidden is not None and hidden is not None:
        inner = _space(found.hidden, hidden)
    if found.predictive is not None and predictive is not None:
        space = _space(found.predictive, predictive)
    return {
        "source": found.source,
        **defined("model", found.model, "it was never in a folder"),
        "seconds": round(found.seconds, 3),
        "verdict": verdict_document(found.verdict),
        **defined("stopped_at", found.stopped_at, "it was not stopped"),
        **defined("hidden", inner, _unmeasured(found)),
        **defined("predictive", space, found.predictive_reason),
        "layers": [_layer(reading) for reading in found.layers],
        **({} if found.layers else {"layers_reason": found.layers_reason or _NO_LAYER}),
        "tasks": [
            {
                "name": task.name,
                "owner": task.owner,
                "metric": task.metric,
                "rows": task.rows,
                "expert": task.expert,
                "merged": task.merged,
                **defined("loss_percent", task.loss_percent, task.loss_reason),
            }
            for task in found.tasks
        ],
        **({} if found.tasks else {"tasks_reason": _unscored(found)}),
        "checks": [
            {"name": check.name, "passed": check.passed, "detail": check.detail}
            for check in found.checks
        ],
        **defined(
            "lm_eval",
            {task: dict(metrics) for task, metrics in found.lm_eval.items()}
            if found.lm_eval is not None
            else None,
            _unmeasured(found) if unread else "it was not asked for",
        ),
        "notes": list(found.notes),
    }


def _unmeasured(found: Evaluation) -> str:
    """Why there is no distortion."""
    if found.stopped_at is not None:
        return f"the watch ended at layer {found.stopped_at}, before the last one was read"
    if failed := [check.name for check in found.checks if not check.passed]:
        return f"the model failed its checks, and was not run: {', '.join(failed)}"
    return "it was not measured"


def _unscored(found: Evaluation) -> str:
    """Why there is no merging loss."""
    if found.source == "monitor":
        return "the watch scores nothing; the evaluation does"
    if found.hidden is None:
        return _unmeasured(found)
    return "no task has targets and an expert that could be scored on them"


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Decision, exit code and every limit that is passed."""
    reasons = [
        {
            "rule": reason.rule,
            "reading": reason.reading,
            "subject": reason.subject,
            **defined("value", reason.value, reason.value_reason),
            **defined("limit", reason.limit, "it passes or fails"),
            "advice": reason.advice,
        }
        for reason in verdict.reasons
    ]
    return {"decision": verdict.decision, "exit_code": verdict.exit_code, "reasons": reasons}


def _space(measured: Measured, geometry: Geometry) -> dict[str, Any]:
    predicted = list(geometry.predicted) if geometry.predicted is not None else None
    return {
        "layers": list(measured.layers),
        "distortion": list(measured.distortion),
        "worst": measured.worst,
        "own_task": {
            task.name: {
                "owner": task.owner,
                **defined("distortion", task.distortion, task.reason),
            }
            for task in measured.own_task
        },
        **defined("own_task_worst", measured.own_task_worst, measured.own_task_reason),
        **defined("predicted_distortion", predicted, geometry.predicted_reason),
        "lower_bound": geometry.bounds.converse,
        "ball_radius_squared": geometry.ball.radius_squared,
    }


def _layer(reading: LayerReading) -> dict[str, Any]:
    return {
        "layer": reading.layer,
        # Null for an expert without the layer, and for what is no number: then the variance
        # is none either.
        "distortion": [_finite(one) for one in reading.distortion],
        **_number("variance", reading.variance),
        **_number("variance_ratio", reading.variance_ratio),
        **_number("effective_rank", reading.effective_rank),
        **_number("rank_ratio", reading.rank_ratio),
    }


def _number(key: str, value: float | None) -> dict[str, Any]:
    return defined(key, _finite(value), _NO_EXPERTS if value is None else _NOT_FINITE)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
