"""A finished merge, read back from its folder and held against its experts."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.evaluation.harness import run_lm_eval
from mergekit_collapse.evaluation.scoring import score_model
from mergekit_collapse.evaluation.smoke import check_merge
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.material import Material
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.states.forward import has_language_head
from mergekit_collapse.states.hidden_states import StateRequest, collect, default_batch_tokens
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.states import States

NOTHING_MERGED = "every slice has one source, so no two models are merged"


def evaluate_folder(folder: Path, material: Material) -> Evaluation:
    """Check, run and score a merged model; what it is worth is judged elsewhere.

    Args:
        folder: of the merged model.
        material: of the recipe that it was merged by.

    Raises:
        InvalidRecipeError: ``evaluate.lm_eval`` names what does not exist or is not installed.
        EvaluationError: the model's states cannot be compared with its experts'.
    """
    with told_as_evaluation_error(f"merged model {folder}", "see all of it with -v"):
        return _evaluated(folder, material)


def check_folder(folder: Path, recipe: Recipe, options: LoadOptions) -> Evaluation:
    """The checks alone, for a merge that has no experts to be held against."""
    start = time.perf_counter()
    with told_as_evaluation_error(f"merged model {folder}", "see all of it with -v"):
        dtype = recipe.config.out_dtype or recipe.config.dtype
        checks, _ = check_merge(folder, dtype=dtype, load_options=options)
    return Evaluation(
        "merged",
        str(folder),
        predictive_reason=NOTHING_MERGED,
        layers_reason=NOTHING_MERGED,
        checks=checks,
        seconds=time.perf_counter() - start,
    )


def _evaluated(folder: Path, material: Material) -> Evaluation:
    start = time.perf_counter()
    recipe, options = material.recipe, material.options
    dtype = recipe.config.out_dtype or recipe.config.dtype
    checks, model = check_merge(folder, dtype=dtype, load_options=options)
    if model is None or any(check.name == "generates" and not check.passed for check in checks):
        reason = "a check failed, so its answers were not measured"
        return Evaluation(
            "merged",
            str(folder),
            predictive_reason=reason,
            layers_reason=reason,
            checks=checks,
            seconds=time.perf_counter() - start,
        )
    known = material.own_scores.scores
    scores: dict[int, float] = {}
    if known and not has_language_head(model):
        raise EvaluationError(
            f"{folder}: the merged model has no head that predicts a next token, which its "
            "experts have; the merge lost it"
        )
    if known:
        tokens = default_batch_tokens(options.device)
        scores = score_model(model, material.scoring, known, max_tokens=tokens)
    merged = _states(folder, model, material)
    hidden, predictive, predictive_reason = material.distortion(merged)
    layers, layers_reason = _readings(material, merged)
    return Evaluation(
        "merged",
        str(folder),
        hidden,
        predictive,
        predictive_reason,
        layers,
        layers_reason,
        tasks=material.losses(scores) if scores else (),
        checks=checks,
        lm_eval=_lm_eval(folder, material),
        notes=material.unscored,
        seconds=time.perf_counter() - start,
    )


def _states(folder: Path, model: Any, material: Material) -> States:
    block = material.recipe.compat
    return collect(
        [ModelReference.model_validate({"model": {"path": str(folder)}})],
        [f"the merged model {folder}"],
        1,
        material.probes,
        StateRequest(
            material.predictive is not None,
            block.layers,
            block.pooling,
            profile=bool(material.states.layers),
        ),
        material.options,
        each=lambda _references, _options, visit: visit(0, model),
    )


def _readings(material: Material, merged: States) -> tuple[tuple[LayerReading, ...], str | None]:
    if not merged.layers or not material.states.layers:
        return (), "these models do not tell their layers' states apart"
    found = merged.layers[0]
    depth = len(found.pooled) - 1
    return tuple(
        material.reading(layer, depth, found.pooled[layer], found.statistics[layer])
        for layer in range(1, depth + 1)
    ), None


def _lm_eval(folder: Path, material: Material) -> Mapping[str, Mapping[str, float]] | None:
    tasks = material.recipe.compat.evaluate.lm_eval
    if not tasks:
        return None
    options = material.options
    return run_lm_eval(
        tasks,
        folder,
        device=options.device,
        dtype=str(options.dtype).removeprefix("torch."),
        trust_remote_code=options.trust_remote_code,
        folder=material.recipe.folder,
    )
