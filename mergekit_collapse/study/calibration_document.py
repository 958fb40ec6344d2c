"""A calibration as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mergekit_collapse.study.calibration import Calibration
from mergekit_collapse.study.cluster_resamples import RESAMPLES
from mergekit_collapse.study.finished_merges import Unused
from mergekit_collapse.study.limit_search import RULE

FORMAT_VERSION = 1


def calibration_json(found: Calibration, unused: Sequence[Unused]) -> str:
    """The record's own fields. What is infinite or undefined is null beside the reason."""
    document = {
        "format_version": FORMAT_VERSION,
        "rule": RULE,
        "resamples": RESAMPLES,
        **asdict(found),
        "unfitted": dict(found.unfitted),
        "unused": [asdict(one) for one in unused],
    }
    return json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"


def _plain(part: Any) -> Any:
    if isinstance(part, dict):
        reasons = {f"{key}_reason": why for key, value in part.items() if (why := _why(value))}
        return {key: _plain(value) for key, value in part.items()} | reasons
    if isinstance(part, list | tuple):
        return [_plain(one) for one in part]
    return None if _why(part) else part


def _why(value: Any) -> str | None:
    if not isinstance(value, float) or math.isfinite(value):
        return None
    if math.isnan(value):
        return "undefined"
    return "infinite" if value > 0 else "minus infinite"
