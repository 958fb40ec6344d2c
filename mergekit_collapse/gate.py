"""The straight line: from a recipe to a verdict, and from an allowed recipe to a merged model."""

import errno
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from mergekit_collapse import __version__, terminal
from mergekit_collapse.card import add_to_card
from mergekit_collapse.coefficients import recipe_coefficients
from mergekit_collapse.document import write_report
from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    InvalidRecipeError,
    MergeRefusedError,
)
from mergekit_collapse.geometry import Geometry, measure
from mergekit_collapse.hidden_states import StateRequest, collect
from mergekit_collapse.loader import LoadOptions, choose_dtype
from mergekit_collapse.merge_rules import SourceGroup
from mergekit_collapse.preflight import PreflightRequest, check_models
from mergekit_collapse.probes import gather_probes
from mergekit_collapse.recipe import Recipe, build_recipe, read_recipe
from mergekit_collapse.recipe_context import recipe_context
from mergekit_collapse.report import Measurement, Report
from mergekit_collapse.staging import publish, staged
from mergekit_collapse.states import SpaceStates
from mergekit_collapse.switch import SWITCH, gate_mode
from mergekit_collapse.tokenizers_agree import load_tokenizer
from mergekit_collapse.tokens import tokenize
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
        tokenizer = load_tokenizer(recipe.models[0], **_hub(options))
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
    measurement = Measurement(probe_set, probes.digest, states, hidden, predictive)
    return Report(recipe, coefficients, preflight, measurement, verdict, versions, clock.seconds)


def check(
    recipe: Path, options: MergeOptions | None = None, report: Path | None = None
) -> tuple[Report, Path]:
    """Measure and judge the recipe in a file, and write its report.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        options: MergeKit's own, of which device, caches and trust matter here.
        report: folder for ``report.json``; by default the block's, else ``RECIPE-STEM.compat``.

    Returns:
        The report, and the path of ``report.json``.

    Raises:
        CompatError: the recipe is invalid, or could not be measured. A refusal raises nothing:
            it is the report's verdict.
    """
    read = read_recipe(recipe)
    found = assess(read, options or MergeOptions())
    default = recipe.resolve().parent / f"{recipe.stem}.compat"
    return found, write_report(found, report or _report_folder(read, default))


def run(recipe: Path, out: Path, options: MergeOptions | None = None) -> Report | None:
    """Merge the recipe in a file if the gate allows it; MergeKit need not be hooked.

    Args:
        recipe: the YAML file; without a ``compat:`` block the default block is used.
        out: the merged model's folder.
        options: MergeKit's own.

    Returns and raises as ``gated_merge``.
    """
    read = read_recipe(recipe)
    merge = _Merge(
        inspect.unwrap(run_merge), read.config, out, options or MergeOptions(), read.source
    )
    return _gate(lambda: read, merge)


def gated_merge(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    config_source: str | None = None,
    *,
    merge: Callable[..., Any],
) -> Report | None:
    """Merge only what the gate allows: what stands in the place of ``run_merge``.

    Args:
        config: MergeKit's record, its ``compat`` field holding the block.
        out_path: the merged model's folder, which is touched only when the merge is whole.
        options: MergeKit's own.
        config_source: the YAML text, where the caller has it.
        merge: MergeKit's own ``run_merge``.

    Returns:
        The report; None where ``MERGEKIT_COLLAPSE`` let a merge pass that was not measured.

    Raises:
        MergeRefusedError: a limit is passed; nothing is at ``out_path`` that was not before.
        InvalidRecipeError: the recipe or its block is wrong.
        EvaluationError: the models or probes cannot be measured.
    """

    def recipe() -> Recipe:
        context = recipe_context()
        return build_recipe(
            config,
            config.compat.value,
            source=config_source,
            path=context.config_file,
            merges=context.intermediate_dir,
        )

    call = _Merge(merge, config, Path(out_path), options, config_source)
    return _gate(recipe, call)


@dataclass(frozen=True)
class _Merge:
    """A call of MergeKit's ``run_merge``, held back until the gate has decided."""

    merge: Callable[..., Any]
    config: MergeConfiguration
    out: Path
    options: MergeOptions
    source: str | None

    def into(self, folder: Path) -> None:
        try:
            self.merge(self.config, str(folder), self.options, self.source)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise EvaluationError(
                f"{self.out}: the disk is full; free some, or merge to another disk. "
                "Nothing was left behind"
            ) from error


def _gate(read: Callable[[], Recipe], merge: _Merge) -> Report | None:
    mode = gate_mode()
    if mode == "0":
        # Not through logging: a program that silences it would merge ungated without a word.
        _say(f"mergekit-collapse: {SWITCH}=0: the compat: block is IGNORED, merging ungated")
        merge.into(merge.out)
        return None
    try:
        recipe = read()
        count, name = len(recipe.models), merge.out.name
        _say(f"mergekit-collapse {__version__}: measuring {count} models before merging {name}")
        report = assess(recipe, merge.options, merging=True)
    except CompatError as error:
        if mode != "warn":
            raise
        _say(f"mergekit-collapse: NOT MEASURED, merging all the same: {error}")
        merge.into(merge.out)
        return None
    if mode == "warn":
        report = report.as_warning()
    default = merge.out.parent / f"{merge.out.name}.compat"
    written = write_report(report, _report_folder(recipe, default))
    if not merge.options.quiet:
        _say(terminal.readings(report))
    ending = f"{terminal.verdict(report)}\nReport: {written}"
    if report.verdict.decision == "refuse":
        raise MergeRefusedError(ending)
    _say(ending)
    with staged(merge.out) as folder:
        merge.into(folder)
        add_to_card(report, folder)
        publish(folder, merge.out)
    return report


def _report_folder(recipe: Recipe, default: Path) -> Path:
    return recipe.folder / recipe.compat.report if recipe.compat.report else default


def _say(text: str) -> None:
    """To standard error, since standard output is MergeKit's; quiet runs hear it too."""
    click.echo(text, err=True)


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
    groups = tuple(
        SourceGroup(g.label, tuple(s.model for s in g.sources), g.base, g.layer_ranges)
        for g in recipe.groups
    )
    return PreflightRequest(
        method=config.merge_method,
        groups=groups,
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
