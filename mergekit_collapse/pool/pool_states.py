"""Every candidate run once over the probes, and how far apart they all are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mergekit.options import MergeOptions

from mergekit_collapse.caches import open_caches
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.chance_distances import chance_distances
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.geometry import Geometry, measure
from mergekit_collapse.geometry.pair_squares import MANY
from mergekit_collapse.geometry.rows import StateRows, select_probes
from mergekit_collapse.geometry.scales import layer_scales
from mergekit_collapse.merge_options import hub_options, load_options
from mergekit_collapse.pool.candidates import Candidates
from mergekit_collapse.preflight.tokenizers_agree import load_tokenizer
from mergekit_collapse.probes.probes import ProbeSet, gather_probes
from mergekit_collapse.probes.tokens import TokenizedProbes, tokenize
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.shapes import Float64
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.on_ray import OnRay
from mergekit_collapse.states.states import SpaceStates

# Distances at chance are kept pair of probes by pair of probes: a few models at a time.
_BLOCK = 32


@dataclass(frozen=True)
class PoolStates:
    """The states of all candidates in the space that decides, and their distances.

    Attributes:
        recipe: of all candidates, whose models they are in that order.
        probe_set, probes: what they were run on.
        space: states of the experts of ``recipe``, then of its base if any.
        squared: D² between candidates over all probes, scaled by all candidates' s².
        distance: D̄, likewise.
        chance: D̄°, likewise; None below two probes, or where no Merging Difficulty Score decides.
        device, dtype: of the forward passes.
    """

    recipe: Recipe
    probe_set: ProbeSet
    probes: TokenizedProbes
    space: SpaceStates
    squared: Float64[np.ndarray, "candidate candidate"]
    distance: Float64[np.ndarray, "candidate candidate"]
    chance: Float64[np.ndarray, "candidate candidate"] | None
    device: str
    dtype: str


def measure_pool(
    candidates: Candidates, options: MergeOptions, *, ray: str | None = None
) -> PoolStates:
    """Run every candidate, and the base, once over the probes of the block.

    Args:
        ray: address of a Ray cluster that is to run them; see ``states.on_ray``.

    Raises:
        EvaluationError: as ``states.hidden_states.collect``; probes that cannot be read.
        InvalidRecipeError: a device that torch does not have.
    """
    recipe = candidates.recipe
    block = recipe.compat
    probe_set = gather_probes(block.probes, recipe.owners, recipe.folder)
    settings = candidates.preflight.facts[recipe.models[0]].settings
    two_sided = bool(settings.get("is_encoder_decoder"))
    tokenizer = load_tokenizer(candidates.preflight.tokenizer_model, **hub_options(options))
    probes = tokenize(probe_set, tokenizer, block.probes.max_tokens, encoder_decoder=two_sided)
    predictive = block.budget.space == "predictive"
    caches, load = open_caches(block.cache), load_options(options)
    states = collect(
        recipe.models,
        recipe.model_names,
        len(recipe.experts),
        probes,
        StateRequest(predictive, block.layers, block.pooling),
        load,
        trial=LayeredTrial(recipe.models, probes, load, caches.layered, full=block.cache.full),
        run=None if ray is None else OnRay(ray, caches.states),
        store=caches.states,
    )
    space = states.predictive if predictive else states.hidden
    if space is None:
        raise EvaluationError(
            f"compat.budget.space is predictive, but {states.predictive_reason}; use space: hidden"
        )
    count = len(recipe.experts)
    scale = block.scale if space.space == "hidden" else "none"
    every = np.arange(len(probes.probes), dtype=np.int64)
    rows = select_probes(space, every, unit=scale == "unit", models=recipe.model_names)
    share = np.full((1, len(every)), 1 / len(every))
    scales = layer_scales(rows, range(count), scale, share, "all probes")
    found = probe_distances(rows, [s.squared for s in scales], np.zeros_like(every))
    chance = None
    if block.budget.mds is not None:
        chance = _chance(rows, count, [s.squared for s in scales], block.probes.seed)
    return PoolStates(
        recipe=recipe,
        probe_set=probe_set,
        probes=probes,
        space=space,
        squared=found.mean_squared[:count, :count],
        distance=found.mean_distance[:count, :count],
        chance=chance,
        device=states.device,
        dtype=states.dtype,
    )


def geometry_of(pool: PoolStates, recipe: Recipe) -> Geometry:
    """The geometry of some of the candidates as the gate measures it before it merges them.

    On the probes that the recipe has, in the scale of its own experts.

    Args:
        pool: states of all.
        recipe: merges candidates of the pool, with the same settings of the probes; its tasks
            are some of the pool's.

    Raises:
        EvaluationError: as ``geometry.measure``.
    """
    models = [pool.recipe.models.index(model) for model in recipe.models]
    block = recipe.compat.probes
    names = [task.name for task in block.tasks]
    owners: dict[str, int | None] = dict(zip(names, recipe.owners, strict=True))
    tasks = [t for t in pool.probe_set.tasks if t.name in owners or _is_builtin(pool, t.name)]
    kept = [i for i, task in enumerate(pool.probe_set.tasks) if task in tasks]
    probes = np.flatnonzero(np.isin(pool.probes.task_of_probe, kept)).astype(np.int64)
    rows = np.flatnonzero(np.isin(pool.space.probe_of_row, probes))
    space = SpaceStates(
        space=pool.space.space,
        pooling=pool.space.pooling,
        layers=pool.space.layers,
        values=tuple(_part(values, models, rows) for values in pool.space.values),
        probe_of_row=np.searchsorted(probes, pool.space.probe_of_row[rows]).astype(np.int64),
    )
    coefficients = recipe_coefficients(recipe)
    return measure(
        space,
        len(recipe.experts),
        np.searchsorted(kept, pool.probes.task_of_probe[probes]).astype(np.int64),
        [(task.name, owners.get(task.name)) for task in tasks],
        scale=recipe.compat.scale,
        coefficients=coefficients.alpha,
        coefficients_reason=coefficients.note or "",
        seed=block.seed,
        models=recipe.model_names,
    )


def _part(values: np.ndarray, models: Sequence[int], rows: np.ndarray) -> np.ndarray:
    """One model after the other, since all the states may lie in a file."""
    return np.stack([values[model][rows] for model in models])


def _is_builtin(pool: PoolStates, name: str) -> bool:
    return all(task.name != name for task in pool.recipe.compat.probes.tasks)


def _chance(
    rows: StateRows, count: int, scales_squared: Sequence[float], seed: int
) -> Float64[np.ndarray, "candidate candidate"] | None:
    """D̄° of every two candidates, two blocks of them at a time where they are few.

    Many are measured on fewer pairs of probes instead, which takes no longer than D̄.
    """
    if count >= MANY:
        found = chance_distances(rows, count, scales_squared, seed)
        return None if found is None else found.distance.mean(axis=0)
    result = np.zeros((count, count))
    blocks = [range(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]
    for i, first in enumerate(blocks):
        for second in blocks[i:]:
            models = [*first] if first == second else [*first, *second]
            found = chance_distances(_of(rows, models), len(models), scales_squared, seed)
            if found is None:
                return None
            result[np.ix_(models, models)] = found.distance.mean(axis=0)
    return result


def _of(rows: StateRows, models: Sequence[int]) -> StateRows:
    states = rows.states
    values = tuple(np.stack([v[m] for m in models]) for v in states.values)
    part = SpaceStates(states.space, states.pooling, states.layers, values, states.probe_of_row)
    names = tuple(rows.models[m] for m in models)
    return StateRows(part, rows.rows, rows.probe_of_row, rows.probe_count, rows.unit, names)
