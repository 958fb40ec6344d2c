"""Conflict of task vectors and their norms, as predictors of collapse.

    python benchmarks/collapse/parameter_conflict_scores.py --folder FOLDER --output predictors.csv

The four readings of `mergekit_collapse.parameters.conflict`, as 1 − cosine for the cosine, so that
higher is worse in all. A pair's numbers do not depend on the other experts, so the weights of all
experts are streamed once, all pairs at a time, and a group's reading is its mean over pairs. Norms
are those of the task vectors, in the units of the weights and relative to the base.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mergekit.common import ModelReference
from predictor_rows import Group, PredictorRow, arguments, pair_rows, row, run
from safetensors import safe_open

from mergekit_collapse.parameters.conflict import ParameterConflict
from mergekit_collapse.parameters.parameter_conflict import parameter_conflict

# What each reading of the package is called here.
PAIRED = {
    "magnitude_change_ratio": "magnitude_change_ratio",
    "sign_change_ratio": "sign_change_ratio",
    "conflicting_magnitude_change_ratio": "conflicting_magnitude_change_ratio",
    "cosine": "task_vector_cosine",
}
NORMS = (
    "task_vector_norm",
    "task_vector_norm_max",
    "task_vector_norm_ratio",
    "task_vector_relative_norm",
    "task_vector_relative_norm_max",
)
PREDICTORS = (*(f"{name}{end}" for name in PAIRED.values() for end in ("", "_max")), *NORMS)


def conflict_rows(
    group: Group, found: ParameterConflict, base_norm: float, seconds: float
) -> Iterator[PredictorRow]:
    """A group's rows from the conflict of experts that it is part of."""
    index = [found.experts.index(name) for name in group]
    for reading, name in PAIRED.items():
        pairs: np.ndarray = getattr(found, reading)[np.ix_(index, index)]
        yield from pair_rows(group, name, 1 - pairs if reading == "cosine" else pairs, seconds)
    members, norms = "+".join(group), found.norm[index]
    ratio = float(norms.max() / norms.min()) if norms.min() > 0 else None
    yield row(members, "", "task_vector_norm_ratio", ratio, seconds)
    for name, size in (("norm", 1.0), ("relative_norm", base_norm)):
        scaled = norms / size
        yield row(members, "", f"task_vector_{name}", float(scaled.mean()), seconds)
        yield row(members, "", f"task_vector_{name}_max", float(scaled.max()), seconds)
        for expert, value in zip(group, scaled, strict=True):
            yield row(members, expert, f"task_vector_{name}", float(value), seconds)


def scores(folder: Path, groups: Sequence[Group]) -> Iterator[PredictorRow]:
    """All rows of all groups.

    Seconds are those of streaming one group of the same size by itself, measured once a size.
    """
    names = list(dict.fromkeys(name for group in groups for name in group))
    found, base_norm = _conflict(folder, names), norm_of(folder / "base")
    cost: dict[int, float] = {}
    for group in groups:
        if len(group) not in cost:
            start = time.process_time()
            _conflict(folder, group)
            cost[len(group)] = time.process_time() - start
        yield from conflict_rows(group, found, base_norm, cost[len(group)])


def norm_of(model: Path) -> float:
    """Euclidean norm of all weights in a model folder, one tensor in memory at a time."""
    total = 0.0
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a mapping)
                total += float(opened.get_tensor(name).double().square().sum())
    return math.sqrt(total)


def _conflict(folder: Path, names: Sequence[str]) -> ParameterConflict:
    references = [ModelReference.parse(str(folder / "experts" / name)) for name in names]
    base = ModelReference.parse(str((folder / "base").resolve()))
    return parameter_conflict(references, names, base, progress=False)


if __name__ == "__main__":
    run(arguments(__doc__).parse_args(), PREDICTORS, scores)
