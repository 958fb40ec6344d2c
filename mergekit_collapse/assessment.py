"""From a recipe to a verdict: preflight, probes, states, geometry, judgement, in one line."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata

import numpy as np
from mergekit.options import MergeOptions

from mergekit_collapse import __version__
from mergekit_collapse.caches import open_caches
from mergekit_collapse.early_stop import in_rounds, rounds_of
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.expert_scores import NOBODY, ExpertScores, StandIns
from mergekit_collapse.evaluation.harness import require_tasks
from mergekit_collapse.evaluation.scoring_set import scoring_set
from mergekit_collapse.finished_merge import NOTHING_MERGED
from mergekit_collapse.formats.tracking import require_trackers
from mergekit_collapse.geometry.geometry import Geometry, measure
from mergekit_collapse.judging import judge
from mergekit_collapse.material import Material
from mergekit_collapse.merge_options import hub_options, load_options, preflight_request
from mergekit_collapse.parameters.parameter_conflict import base_of, parameter_conflict
from mergekit_collapse.preflight.preflight import check_models
from mergekit_collapse.preflight.tokenizers_agree import load_tokenizer
from mergekit_collapse.probes.probes import gather_probes
from mergekit_collapse.probes.rounds import SCORED
from mergekit_collapse.probes.tokens import TokenizedProbes, tokenize
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.report.report import Measurement, Report
from mergekit_collapse.shapes import Float64
from mergekit_collapse.states.devices import runner
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.memory_use import Meter
from mergekit_collapse.states.run_models import run_models
from mergekit_collapse.states.states import SpaceStates, States
from mergekit_collapse.stopping import Outcome, deciding_quantities, outcome
from mergekit_collapse.verdict import ALLOW

LOG = logging.getLogger(__name__)
_LIBRARIES = ("mergekit", "torch", "transformers")


@dataclass(frozen=True)
class Assessment:
    """What is known before the merge.

    Attributes:
        report: with the verdict on the geometry.
        material: the states behind it, where anything was measured.
    """

    report: Report
    material: Material | None


def assess(
    recipe: Recipe,
    options: MergeOptions,
    *,
    merging: bool = False,
    profile: bool = False,
    scores: bool = False,
    token_digest: str | None = None,
    stand_ins: StandIns = NOBODY,
) -> Assessment:
    """Measure a recipe's experts and judge their geometry; nothing is merged or written.

    Args:
        recipe: what is to be judged.
        options: MergeKit's own.
        merging: whether a merge follows, which needs more of ``options``.
        profile: whether the experts' states after every layer are wanted, which a merged model's
            layers are held against.
        scores: whether each expert's score on its own task is wanted.
        token_digest: of the probes, where they must be those of an earlier assessment.
        stand_ins: experts that are to be scored on the tasks of others as well, and all on
            their own.

    Raises:
        InvalidRecipeError: the recipe or its block is wrong.
        EvaluationError: the models or probes cannot be measured.
    """
    clock = Clock()
    caches = open_caches(recipe.compat.cache)
    require_trackers(recipe.compat.log_to)
    if recipe.compat.evaluate.lm_eval:
        require_tasks(recipe.compat.evaluate.lm_eval, recipe.folder, options.trust_remote_code)
    with clock.stage("preflight"):
        preflight = check_models(preflight_request(recipe, options, merging))
        preflight.raise_errors()
    versions = library_versions()
    if recipe.merges_nothing:
        report = Report(
            recipe,
            None,
            preflight,
            None,
            ALLOW,
            versions,
            clock.seconds,
            rehearsal_reason=NOTHING_MERGED,
        )
        return Assessment(report, None)
    coefficients = recipe_coefficients(recipe)
    block, load = recipe.compat, load_options(options)
    with clock.stage("probes"):
        probe_set = gather_probes(block.probes, recipe.owners, recipe.folder)
        settings = preflight.facts[recipe.models[0]].settings
        two_sided = bool(settings.get("is_encoder_decoder"))
        tokenizer = load_tokenizer(preflight.tokenizer_model, **hub_options(options))
        most = block.probes.max_tokens
        probes = tokenize(probe_set, tokenizer, most, encoder_decoder=two_sided)
        rounds = rounds_of(probes, token_digest)
        scoring = scoring_set(
            probe_set.first(SCORED),
            _choices(recipe),
            tokenizer,
            most,
            encoder_decoder=two_sided,
        )
    meter = Meter(load.device, here=runner(load.device) is run_models)
    LOG.info("measuring %d models on %d probes", len(recipe.models), len(probes.probes))
    tasks = [(task.name, task.owner) for task in probe_set.tasks]
    look = partial(_look, block, coefficients.alpha, tasks)

    def collected(added: TokenizedProbes, number: int) -> States:
        return collect(
            recipe.models,
            recipe.model_names,
            len(recipe.experts),
            added,
            StateRequest("predictive" in block.space, block.layers, block.pooling, profile),
            load,
            beside=own if (scores or stand_ins) and number == 0 else None,
            trial=trial,
            store=caches.states,
        )

    with clock.stage("states"):
        full = block.cache.full
        trial = LayeredTrial(recipe.models, probes.first(1), load, caches.layered, full=full)
        own = ExpertScores(scoring, recipe.experts, load, caches.own_scores, stand_ins)
        states, stop = in_rounds(
            probes,
            collected,
            look,
            samples=max(task.rows for task in probe_set.tasks),
            rounds=rounds,
        )
    if stop is not None:
        probe_set, probes = probe_set.first(len(stop.looks)), probes.first(len(stop.looks))
    if block.budget.space == "predictive" and states.predictive is None:
        raise EvaluationError(
            f"compat.budget.space is predictive, but {states.predictive_reason}; use space: hidden"
        )

    def geometry_of(space: SpaceStates) -> Geometry:
        return measure(
            space,
            states.expert_count,
            probes.task_of_probe,
            tasks,
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
        cached=states.cached,
        stop=stop,
        estimate=states.estimate,
        used=meter.used() if states.estimate is not None else None,
    )
    report = Report(recipe, coefficients, preflight, measurement, verdict, versions, clock.seconds)
    report = replace(report, geometry_verdict=verdict)
    unlayered = trial.reason() if profile else "its layers were not asked for"
    material = Material(
        recipe=recipe,
        options=load,
        probe_set=probe_set,
        probes=probes,
        states=states,
        hidden=hidden,
        predictive=predictive,
        scoring=scoring,
        own_scores=own,
        unlayered=unlayered,
    )
    return Assessment(report, material)


def library_versions() -> dict[str, str]:
    """Of this package, and of the libraries that compute the numbers and the merge."""
    return {"mergekit-collapse": __version__} | {n: metadata.version(n) for n in _LIBRARIES}


def with_parameters(report: Report, options: MergeOptions) -> Report:
    """The report with the conflict of the experts' weights, or why it is undefined."""
    recipe = report.recipe
    try:
        base = base_of(recipe.experts, recipe.base)
    except EvaluationError as error:
        return replace(report, parameters=None, parameters_reason=str(error))
    found = parameter_conflict(
        recipe.experts, recipe.names, base, progress=not options.quiet, **hub_options(options)
    )
    return replace(report, parameters=found, parameters_reason=None)


def _choices(recipe: Recipe) -> list[tuple[str, ...] | None]:
    """Per task of the probe set, of which the shipped probes are the first."""
    block = recipe.compat.probes
    offered: list[tuple[str, ...] | None] = [task.choices for task in block.tasks]
    return [None, *offered] if block.builtin else offered


def _look(  # noqa: PLR0917  (what a recipe fixes, then what each round brings)
    block: CompatBlock,
    alpha: Float64[np.ndarray, " model"] | None,
    tasks: Sequence[tuple[str, int | None]],
    states: States,
    used: TokenizedProbes,
    level: float,
) -> Outcome | None:
    """What the states of some rounds say of the limits that decide."""
    space = states.predictive if block.budget.space == "predictive" else states.hidden
    if space is None:
        return "undefined"
    try:
        held = deciding_quantities(
            space,
            states.expert_count,
            used.task_of_probe,
            tasks,
            scale=block.scale,
            coefficients=alpha,
            budget=block.budget,
            seed=block.probes.seed,
        )
    except EvaluationError as error:
        LOG.info("more probes are needed: %s", error)
        return None
    return outcome(held, level, refusing=block.on_violation in ("abort", "warn"))


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
