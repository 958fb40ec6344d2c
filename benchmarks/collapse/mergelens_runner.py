"""Runs inside MergeLens's own environment: one JSON line in for each group, one out.

    python -I mergelens_runner.py SVD_FOLDER < groups > scores

In: {"base": PATH, "experts": [PATH, ...], "calls": [...]}, with the calls that are wanted of

    based         `compare EXPERTS --base BASE`, of which only the score is taken
    bare          `compare EXPERTS`, likewise
    task_vectors  `compare EXPERTS --base BASE`, of which only the rows about the group are taken
    diagnose      `diagnose` of a recipe of equal weights

by the public API, with no signal asked for but those that enter the number. Out: first
{"version": ...}, then for each group in order an object by call.

A group's score is the lowest of its pairs' by MergeLens's rule `minimum_pair_score`, so each pair
is compared once. Nearly all the time goes into singular value decompositions, so each is kept in
SVD_FOLDER by the digest of its matrix; --plain keeps none. Neither changes a number.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mergelens
import mergelens.compare.metrics
import mergelens.utils.tensor_ops
import torch
from safetensors.torch import load_file, save_file

SCORED = ["cosine_similarity", "spectral_overlap", "effective_rank_ratio"]
"""The signals that the score is made of."""
OF_TASK_VECTORS = ["sign_disagreement_rate", "tsv_interference"]
"""The signals of which the score is not made."""

tools: Any = mergelens.utils.tensor_ops
metrics: Any = mergelens.compare.metrics


def keep_decompositions(folder: Path) -> None:
    """Have both decompositions of MergeLens looked up before they are computed."""
    folder.mkdir(parents=True, exist_ok=True)
    full = _kept(folder, tools.bounded_full_svd)
    values = _kept(folder, tools.bounded_singular_values)
    metrics.bounded_full_svd = full
    # effective_rank looks it up in its own module.
    tools.bounded_singular_values = metrics.bounded_singular_values = values


def _kept(folder: Path, function: Callable[..., Any]) -> Callable[..., Any]:
    def lookup(matrix: torch.Tensor, **settings: int) -> Any:
        if matrix.numel() > tools.MAX_ELEMENTS_FOR_SVD:
            return function(matrix, **settings)  # which refuses it
        values = tools.flatten_to_2d(matrix).float().contiguous()
        digest = hashlib.blake2b(values.numpy().tobytes(), digest_size=20)
        digest.update(repr((tuple(values.shape), settings, function.__name__)).encode())
        file = folder / f"{digest.hexdigest()}.safetensors"
        if not file.exists():
            found = function(matrix, **settings)
            parts = found if isinstance(found, tuple) else (found,)
            part = file.with_suffix(".part")
            save_file({str(i): t.clone().contiguous() for i, t in enumerate(parts)}, part)
            part.rename(file)
            return found
        kept = load_file(file)
        return tuple(kept[str(i)] for i in range(len(kept))) if len(kept) > 1 else kept["0"]

    return lookup


class Pairs:
    """Each pair's score, compared when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def based(self, base: str, experts: list[str]) -> list[dict[str, Any]]:
        """Of the base and each expert; one that is new is compared with its whole group."""
        if any((base, expert) not in self._known for expert in experts):
            for expert, pair in zip(experts, _compared(experts, base), strict=True):
                self._known.setdefault((base, expert), pair)
        return [self._known[base, expert] for expert in experts]

    def bare(self, experts: list[str]) -> list[dict[str, Any]]:
        """Of the first expert and each of the others."""
        first, *others = experts
        for other in others:
            if (first, other) not in self._known:
                (self._known[first, other],) = _compared([first, other], None)
        return [self._known[first, other] for other in others]


def _compared(experts: list[str], base: str | None) -> list[dict[str, Any]]:
    """Scores before and after they are rounded, MergeLens's words for them and the seconds."""
    start = time.process_time()
    result = mergelens.compare_models(
        experts, base_model=base, metrics=SCORED, show_progress=False, include_strategy=False
    )
    pairs = list(result.pair_assessments.values())
    seconds = (time.process_time() - start) / len(pairs)
    return [
        {
            "score": pair.score,
            "unrounded": None
            if pair.score is None
            else 100 * sum(pair.components[n] * w for n, w in pair.component_weights.items()),
            "labels": [pair.validation_status, pair.risk_tier],
            "seconds": seconds,
        }
        for pair in pairs
    ]


def task_vectors(base: str, experts: list[str]) -> dict[str, Any]:
    """Means over tensors, unweighted, as MergeLens's own text on a strategy has them."""
    start = time.process_time()
    result = mergelens.compare_models(
        experts,
        base_model=base,
        metrics=OF_TASK_VECTORS,
        show_progress=False,
        include_strategy=False,
    )
    found: dict[str, Any] = {}
    for name in OF_TASK_VECTORS:
        rows = [v for r in result.candidate_set_metrics if (v := getattr(r, name)) is not None]
        found[name] = sum(rows) / len(rows) if rows else None
    return found | {"seconds": time.process_time() - start}


def diagnose(base: str, experts: list[str]) -> dict[str, Any]:
    """The static proxy of a recipe that weighs all alike."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yml"
        models = [{"model": path, "parameters": {"weight": 1.0}} for path in experts]
        # JSON is YAML.
        text = json.dumps({"merge_method": "linear", "base_model": base, "models": models})
        recipe.write_text(text, encoding="utf-8")
        result = mergelens.diagnose_config(str(recipe))
    return {
        "interference": result.overall_interference,
        "labels": [result.analysis_status],
        "seconds": time.process_time() - start,
    }


def answer(asked: dict[str, Any], pairs: Pairs) -> dict[str, Any]:
    """All wanted calls of one group; of scores, one for each pair of the call."""
    base, experts = asked["base"], asked["experts"]
    found: dict[str, Any] = {}
    if "based" in asked["calls"]:
        found["based"] = pairs.based(base, experts)
    if "bare" in asked["calls"]:
        found["bare"] = pairs.bare(experts)
    if "task_vectors" in asked["calls"]:
        found["task_vectors"] = task_vectors(base, experts)
    if "diagnose" in asked["calls"]:
        found["diagnose"] = diagnose(base, experts)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("svd_folder", type=Path)
    parser.add_argument("--plain", action="store_true", help="keep no decomposition")
    options = parser.parse_args()
    if not options.plain:
        keep_decompositions(options.svd_folder)
    # Whatever a library prints is kept apart from the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    pairs = Pairs()
    print(json.dumps({"version": mergelens.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), pairs)), file=answers, flush=True)


if __name__ == "__main__":
    main()
