"""Parameter conflict as plain data for JSON, and as lines for a terminal."""

from typing import Any

import numpy as np

from mergekit_collapse.parameters.conflict import READINGS, ParameterConflict
from mergekit_collapse.shapes import Float64

# What two task vectors show that have nothing to do with each other.
_UNRELATED = {"sign_change_ratio": "unrelated: .5", "cosine": "unrelated: 0"}
_NO_PAIR = "one expert makes no pair"


def conflict_document(found: ParameterConflict) -> dict[str, Any]:
    """Plain data for JSON: an undefined number is null, beside its reason."""
    document: dict[str, Any] = {
        "base": found.base,
        "experts": list(found.experts),
        "tensors": found.tensors,
        "elements": found.elements,
        "changed": found.changed.tolist(),
        "norm": found.norm.tolist(),
    }
    for name in READINGS:
        matrix: Float64[np.ndarray, "expert expert"] = getattr(found, name)
        document[name] = [[None if np.isnan(v) else float(v) for v in row] for row in matrix]
        if name in found.reasons:
            document[f"{name}_reason"] = found.reasons[name]
        document[f"mean_{name}"] = found.mean(name)
        if document[f"mean_{name}"] is None:
            document[f"mean_{name}_reason"] = found.reasons.get(name, _NO_PAIR)
    return document | {"notes": list(found.notes), "seconds": found.seconds}


def conflict_text(found: ParameterConflict) -> str:
    """Five lines, the mean and the range over pairs, and then the notes."""
    lines = [
        f"parameter conflict of {len(found.experts)} experts, "
        f"over the {found.elements:,} parameters of {found.base}"
    ]
    for name in READINGS:
        lines.append(f"  {name.replace('_', ' '):<36}{_reading(found, name)}")
    return "\n".join([*lines, *(f"  note: {note}" for note in found.notes)])


def _reading(found: ParameterConflict, name: str) -> str:
    mean = found.mean(name)
    if mean is None:
        return f"undefined: {found.reasons.get(name, _NO_PAIR)}"
    pairs = getattr(found, name)[np.triu_indices(len(found.experts), 1)]
    aside = [f"{pairs.min():.3f} to {pairs.max():.3f}"] if len(pairs) > 1 else []
    aside += [_UNRELATED[name]] if name in _UNRELATED else []
    return f"{mean:.3f}" + (f"  ({'; '.join(aside)})" if aside else "")
