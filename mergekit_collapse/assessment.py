"""From a recipe to a verdict: preflight, probes, states, geometry, judgement, in one line."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from mergekit.options import MergeOptions

from mergekit_collapse import __version__
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.geometry.geometry import Geometry, measure
from mergekit_collapse.preflight.preflight import PreflightRequest, check_models
from mergekit_collapse.preflight.tokenizers_agree import load_tokenizer
from mergekit_collapse.probes.probes import gather_probes
from mergekit_collapse.probes.tokens import tokenize
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.report.report import Measurement, Report
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.loader import LoadOptions, choose_dtype
from mergekit_collapse.states.states import SpaceStates
from mergekit_collapse.verdict import ALLOW, judge

LOG = logging.getLogger(__name__)
_LIBRARIES = ("mergekit", "torch", "transformers")


def assess(recipe: Recipe, options: MergeOptions, *, merging: bool = False) -> Report:
    """Measure a recipe's experts and judge the merge; nothing is merged or written.

    Args:
        recipe: what is to be judged.
        options: MergeKit's own.
        merging: whether a merge follows, which needs more of ``options``.

    Raises:
        InvalidRecipeError: the recipe or its block is wrong.
        EvaluationError: the models or probes cannot be measured.
    """
    clock = _Clock()
    with clock.stage("preflight"):
        preflight = check_models(_preflight_request(recipe, options, merging))
        preflight.raise_errors()
    versions = {"mergekit-collapse": __version__} | {n: metadata.version(n) for n in _LIBRARIES}
    if recipe.merges_nothing:
        return Report(recipe, None, preflight, None, ALLOW, versions, clock.seconds)
    coefficients = recipe_coefficients(recipe)
    block = recipe.compat
    with clock.stage("probes"):
        probe_set = gather_probes(block.probes, recipe.owners, recipe.folder)
        tokenizer = load_tokenizer(preflight.tokenizer_model, **_hub(options))
        settings = preflight.facts[recipe.models[0]].settings
        probes = tokenize(
            probe_set,
            tokenizer,
            block.probes.max_tokens,
            encoder_decoder=bool(settings.get("is_encoder_decoder")),
        )
    LOG.info("measuring %d models on %d probes", len(recipe.models), len(probes.probes))
    with clock.stage("states"):
        layers = (block.layer,) if isinstance(block.layer, int) else block.layer
        states = collect(
            recipe.models,
            recipe.model_names,
            len(recipe.experts),
            probes,
            StateRequest("predictive" in block.space, layers, block.pooling),
            _load_options(options),
        )
    if block.budget.space == "predictive" and states.predictive is None:
        raise EvaluationError(
            f"compat.budget.space is predictive, but {states.predictive_reason}; use space: hidden"
        )

    def geometry_of(space: SpaceStates) -> Geometry:
        return measure(
            space,
            states.expert_count,
            probes.task_of_probe,
            [(task.name, task.owner) for task in probe_set.tasks],
            scale=block.scale,
            coefficients=coefficients.alpha,
            coefficients_reason=coefficients.note or "",
            seed=block.probes.seed,
            models=recipe.model_names,
        )

    with clock.stage("geometry"):
        hidden = geometry_of(states.hidden)
        predictive = geometry_of(states.predictive) if states.predictive is not None else None
    deciding = predictive if block.budget.space == "predictive" else hidden
    assert deciding is not None
    warn_only = block.on_violation == "warn"
    verdict = judge(deciding, block.budget, recipe.names, warn_only=warn_only)
    measurement = Measurement(
        probe_set=probe_set,
        token_digest=probes.digest,
        device=states.device,
        dtype=states.dtype,
        engine=states.engine,
        hidden=hidden,
        predictive=predictive,
        predictive_reason=states.predictive_reason,
    )
    return Report(recipe, coefficients, preflight, measurement, verdict, versions, clock.seconds)


def _hub(options: MergeOptions) -> dict[str, Any]:
    return {
        "cache_dir": options.transformers_cache,
        "trust_remote_code": options.trust_remote_code,
    }


def _load_options(options: MergeOptions) -> LoadOptions:
    device = options.device or "cpu"
    try:
        dtype = choose_dtype(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidRecipeError(
            f"device {device!r} cannot be used: {error}; choose --device cpu or one that torch has"
        ) from None
    return LoadOptions(device, dtype, progress=not options.quiet, **_hub(options))


def _preflight_request(recipe: Recipe, options: MergeOptions, merging: bool) -> PreflightRequest:
    config = recipe.config
    return PreflightRequest(
        method=config.merge_method,
        groups=recipe.groups,
        references=recipe.experts,
        base=recipe.base,
        tokenizer_configured=config.tokenizer_source is not None or config.tokenizer is not None,
        allow_crimes=options.allow_crimes,
        adapters_can_be_merged=not merging or options.lora_merge_cache is not None,
        unsafe_truncate_embeddings=options.unsafe_truncate_embeddings,
        dtype=config.dtype,
        **_hub(options),
    )


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
