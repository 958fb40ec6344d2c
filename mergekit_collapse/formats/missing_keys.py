"""Documents of older versions, and those that lost a key, read as ones that say nothing there."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Maybe:
    """A part that may be null."""

    keys: dict[str, Any]


@dataclass(frozen=True)
class _Each:
    """Parts in a list, or in an object under names of the user's own."""

    keys: dict[str, Any]
    empty: type = list


_INTERVAL: dict[str, Any] = {"low": None, "high": None}
_REASON = dict.fromkeys(("rule", "reading", "subject", "advice"), "") | {
    "value": None,
    "limit": None,
}
_VERDICT = {"decision": "refuse", "exit_code": 1, "reasons": _Each(_REASON)}
_SPACE = _Maybe(
    {
        **dict.fromkeys(("pooling", "scale", "predicted_distortion", "diameter_pair"), None),
        **dict.fromkeys(("squared_distance", "diameter_squared", "ball_radius_squared"), None),
        "layers": [],
        "to_base": _Maybe({"squared_distance": None}),
        "bounds": dict.fromkeys(("converse", "jung", "jung_dimension", "corollary")),
        "confidence": {
            "diameter_squared": _INTERVAL,
            "ball_radius_squared": _INTERVAL,
            "predicted_worst": _INTERVAL,
            "mds": {},
        },
        "profile": _Each(dict.fromkeys(("layer", "diameter_squared", "ball_radius_squared"))),
        "own_task": _Each(dict.fromkeys(("owner", "predicted_distortion")), dict),
        "own_task_minimax": None,
    }
)
_MEASURED = _Maybe(
    {"distortion": [], "own_task": _Each(dict.fromkeys(("owner", "distortion")), dict)}
)
_EVALUATION = _Maybe(
    {
        **dict.fromkeys(("seconds", "stopped_at", "lm_eval"), None),
        "verdict": _VERDICT,
        "hidden": _MEASURED,
        "predictive": _MEASURED,
        "layers": _Each({"layer": 0, "distortion": [], "variance_ratio": None, "rank_ratio": None}),
        "tasks": _Each(
            {"name": "", **dict.fromkeys(("owner", "metric", "rows"))}
            | dict.fromkeys(("expert", "merged", "loss_percent"))
        ),
        "checks": _Each({"name": "", "passed": False, "detail": ""}),
    }
)
_MEMBER = ("weight_before", "weight_after", "predicted_before", "predicted_after")
_DOCUMENT = {
    "verdict": _VERDICT,
    "gate": _Maybe(_VERDICT),
    "hint": None,
    "versions": {},
    "timing": {},
    "budget": {
        **dict.fromkeys(("distortion", "mds"), None),
        **{"rule": "ball", "over": "pooled", "space": "hidden", "similarity": "unrelated"},
    },
    "evaluate": {"max_own_distortion": None},
    "recipe": dict.fromkeys(("path", "sha256", "method")),
    "experts": _Each({"name": "", "model": "", "weight": None}),
    "warnings": _Each(dict.fromkeys(("subject", "message", "advice"), "")),
    "probes": _Maybe({"digest": None, "tasks": _Each({"name": "", "rows": None})}),
    "forward": _Maybe({}),
    "geometry": {"hidden": _SPACE, "predictive": _SPACE},
    "mds": {},
    "remedy": _Maybe(
        {
            **dict.fromkeys(("diff", "split", "distortion_before", "distortion_after"), None),
            **{"action": "", "notes": [], "dropped": [], "joined": []},
            "experts": _Each({"name": "", **dict.fromkeys(_MEMBER)}),
        }
    ),
    "plan": _Maybe(dict.fromkeys(("path", "sha256"))),
    **dict.fromkeys(("rehearsal", "monitor", "evaluation"), _EVALUATION),
    "parameters": _Maybe({"mean_cosine": None}),
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every key that the formats read.

    A number that is missing is null, a verdict that is missing is no approval.
    """
    return _filled(document, _DOCUMENT)


def _filled(part: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    return {**part, **{key: _value(part, key, shape) for key, shape in keys.items()}}


def _value(part: dict[str, Any], key: str, shape: Any) -> Any:
    if isinstance(shape, _Maybe):
        found = part.get(key)
        return None if found is None else _filled(found, shape.keys)
    if isinstance(shape, _Each):
        found = part.get(key) or shape.empty()
        if isinstance(found, dict):
            return {name: _filled(one, shape.keys) for name, one in found.items()}
        return [_filled(one, shape.keys) for one in found]
    if isinstance(shape, dict) and shape:
        return _filled(part.get(key) or {}, shape)
    found = part.get(key)
    return shape if found is None else found
