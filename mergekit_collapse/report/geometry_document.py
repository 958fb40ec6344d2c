"""One space's geometry as plain data for JSON: an undefined number is null beside its reason."""

from typing import Any

import numpy as np

from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.own_task import OwnTask
from mergekit_collapse.geometry.resampling import LEVEL, Interval
from mergekit_collapse.shapes import Float64


def defined(key: str, value: Any, reason: str | None) -> dict[str, Any]:
    """``{key: value}``, or null with a sibling ``key_reason``."""
    return {key: value} if value is not None else {key: None, f"{key}_reason": reason}


def geometry_document(geometry: Geometry, layer: Any) -> dict[str, Any]:
    """Matrices are of the experts alone, in the order of the recipe; the base is apart.

    Args:
        geometry: of one space.
        layer: as the block names it.
    """
    bounds, own = geometry.bounds, geometry.own_task
    hidden = geometry.space == "hidden"
    return {
        **defined("layer", layer if hidden else None, "answers, not states of a layer"),
        "layers": list(geometry.layers),
        "pooling": geometry.pooling,
        "scale": geometry.scale,
        "scale_squared": list(geometry.scale_squared),
        "dimension": geometry.dimension,
        **_matrices(geometry.distance, geometry.squared, geometry.expert_count),
        **defined(
            "chance_distance",
            geometry.chance.tolist() if geometry.chance is not None else None,
            "fewer than two probes",
        ),
        "diameter_squared": bounds.diameter_squared,
        "diameter_pair": list(bounds.diameter_pair),
        "ball_radius_squared": geometry.ball.radius_squared,
        "bounds": {
            "converse": bounds.converse,
            "jung": bounds.jung,
            "jung_dimension": bounds.jung_dimension,
            "corollary": bounds.corollary,
        },
        "optimistic": geometry.optimistic,
        "center": geometry.ball.weights.tolist(),
        **defined("predicted_distortion", geometry.predicted, geometry.predicted_reason),
        "confidence": _confidence(geometry),
        "profile": [
            {
                "layer": layer.layer,
                "diameter_squared": layer.diameter_squared,
                "ball_radius_squared": layer.ball_radius_squared,
            }
            for layer in geometry.profile
        ],
        "own_task": {task.name: _own_task(task, geometry.expert_count) for task in own.tasks},
        "own_task_bounds": None,
        "own_task_bounds_reason": "tasks have different probes: no bound holds for every model",
        **defined(
            "own_task_minimax", own.minimax.distortion if own.minimax else None, own.minimax_reason
        ),
        **defined(
            "own_task_minimax_weights",
            own.minimax.weights.tolist() if own.minimax else None,
            own.minimax_reason,
        ),
        **defined("own_task_predicted_worst", own.predicted_worst, own.predicted_reason),
    }


def scores_document(geometry: Geometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Similarity and MDS, per reading and expert."""
    similarity: dict[str, Any] = {}
    mds: dict[str, Any] = {}
    for reading in geometry.mds:
        matrix = reading.similarity.tolist() if reading.similarity is not None else None
        reason = next((why for why in reading.reasons if why), None)
        similarity |= defined(reading.reading, matrix, reason)
        mds[reading.reading] = list(reading.mds)
        if any(reading.reasons):
            mds[f"{reading.reading}_reason"] = list(reading.reasons)
    return similarity, mds


def groups_document(geometry: Geometry) -> list[dict[str, Any]]:
    """The K curve; groups are of indices into the experts."""
    return [
        {
            "k": grouping.group_count,
            "worst_ball_radius_squared": grouping.worst_radius_squared,
            "groups": [list(group) for group in grouping.groups],
            "exact": grouping.exact,
        }
        for grouping in geometry.groups
    ]


def _matrices(
    distance: Float64[np.ndarray, "model model"],
    squared: Float64[np.ndarray, "model model"],
    experts: int,
) -> dict[str, Any]:
    to_base = None
    if len(squared) > experts:
        to_base = {
            "distance": distance[:experts, experts].tolist(),
            "squared_distance": squared[:experts, experts].tolist(),
        }
    return {
        "distance": distance[:experts, :experts].tolist(),
        "squared_distance": squared[:experts, :experts].tolist(),
        **defined("to_base", to_base, "the recipe has no base apart from its experts"),
    }


def _confidence(geometry: Geometry) -> dict[str, Any]:
    found = geometry.confidence
    own = geometry.own_task
    return {
        "level": LEVEL,
        "diameter_squared": _interval(found.diameter_squared),
        "ball_radius_squared": _interval(found.ball_radius_squared),
        "predicted_worst": _interval(found.predicted_worst),
        "own_task_minimax": _interval(own.minimax_interval),
        "own_task_predicted_worst": _interval(own.predicted_interval),
        "mds": {
            reading.reading: [_interval(interval) for interval in intervals]
            for reading, intervals in zip(geometry.mds, found.mds, strict=True)
        },
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        **defined("low", interval.low, interval.reason),
        **defined("high", interval.high, interval.reason),
    }


def _own_task(task: OwnTask, experts: int) -> dict[str, Any]:
    keys = ("distance", "squared_distance", "to_base")
    matrices: dict[str, Any] = {
        k: v for key in keys for k, v in defined(key, None, task.reason).items()
    }
    if task.squared is not None and task.distance is not None:
        matrices = _matrices(task.distance, task.squared, experts)
    return {
        "owner": task.owner,
        "rows": task.probe_count,
        **matrices,
        **defined("predicted_distortion", task.predicted_distortion, task.predicted_reason),
    }
