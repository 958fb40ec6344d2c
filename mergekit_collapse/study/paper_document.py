"""The study of the paper's tables as JSON."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from mergekit_collapse.study.paper_study import PaperStudy

FORMAT_VERSION = 1


def paper_json(study: PaperStudy) -> str:
    """The record's own fields, arrays as lists. NaN and infinity are no JSON, and raise."""
    document = {"format_version": FORMAT_VERSION, **asdict(study)}
    return json.dumps(document, indent=1, default=_listed, allow_nan=False) + "\n"


def _listed(value: object) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a JSON document")
