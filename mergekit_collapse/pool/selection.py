"""From a pool to the candidates that merge best, judged as the gate will judge their recipe."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit.options import MergeOptions

from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.judging import judge
from mergekit_collapse.pool.candidates import Candidates, find_candidates
from mergekit_collapse.pool.chosen_recipe import chosen_recipe
from mergekit_collapse.pool.pool_file import PoolFile, read_pool
from mergekit_collapse.pool.pool_sets import PoolSets
from mergekit_collapse.pool.pool_states import PoolStates, geometry_of, measure_pool
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.remedy.candidate_scores import CandidateScore, candidate_scores
from mergekit_collapse.remedy.choosing import FEWEST, Choice
from mergekit_collapse.states.on_ray import require_ray
from mergekit_collapse.verdict import Verdict

SAME_SCALE = 1e-9


@dataclass(frozen=True)
class Selection:
    """What was chosen from a pool.

    Attributes:
        pool: what was asked for.
        candidates: what could be merged at all.
        states: of every candidate.
        choice: indices into ``candidates.recipe.experts``, by r² over all probes of the pool in
            the scale of all candidates.
        scores: one for each candidate.
        settings: the recipe of the chosen ones, as MergeKit's keys, without ``compat``.
        recipe: the same, resolved, with the tasks of the chosen ones only.
        geometry: of that recipe, by its own probes and scale: what ``check`` will find.
        verdict: on that geometry.
        tried: verdicts by number of members, in the order in which sizes were tried.
        seconds: all of it.
    """

    pool: PoolFile
    candidates: Candidates
    states: PoolStates
    choice: Choice
    scores: tuple[CandidateScore, ...]
    settings: dict[str, Any]
    recipe: Recipe
    geometry: Geometry
    verdict: Verdict
    tried: tuple[tuple[int, Verdict], ...]
    seconds: float


@dataclass(frozen=True)
class _Judged:
    choice: Choice
    settings: dict[str, Any]
    recipe: Recipe
    geometry: Geometry
    verdict: Verdict


def select(
    path: Path, options: MergeOptions, *, count: int | None = None, ray: str | None = None
) -> Selection:
    """Choose from a pool; nothing is merged or written.

    With a number, the set of that many with the smallest ball whose members are within the
    limit of the Merging Difficulty Score; without one, the largest set inside the budget. The
    pool's distances choose; the recipe of the chosen ones is then measured by itself, since its
    scale and its probes are its own, and its verdict is what counts: without a number, one more
    member is tried as long as that is allowed, or one less until it is.

    Args:
        path: the pool file.
        options: MergeKit's own.
        count: in the place of the file's ``choose.count``.
        ray: address of a Ray cluster that runs the candidates, "" for one on this machine; None
            for this process.

    Raises:
        InvalidRecipeError: the file is wrong, or names models that cannot be merged; there is no
            such cluster.
        EvaluationError: the models or probes cannot be measured.
    """
    start = time.perf_counter()
    if ray is not None:
        require_ray()
    pool = read_pool(path, count)
    candidates = find_candidates(pool, options)
    states = measure_pool(candidates, options, ray=ray)
    sets = PoolSets(pool, candidates, states)
    tried: list[tuple[int, Verdict]] = []

    def judged(choice: Choice) -> _Judged:
        found = _judge(pool, states, choice)
        tried.append((len(choice.members), found.verdict))
        return found

    wanted = pool.keys.choose.count
    if wanted is not None:
        best = judged(sets.of_size(wanted))
    else:
        best = _largest(pool, candidates, sets, judged)
    return Selection(
        pool=pool,
        candidates=candidates,
        states=states,
        choice=best.choice,
        scores=candidate_scores(states.squared, best.choice, candidates.required),
        settings=best.settings,
        recipe=best.recipe,
        geometry=best.geometry,
        verdict=best.verdict,
        tried=tuple(tried),
        seconds=time.perf_counter() - start,
    )


def _largest(
    pool: PoolFile,
    candidates: Candidates,
    sets: PoolSets,
    judged: Callable[[Choice], _Judged],
) -> _Judged:
    limit = pool.compat.budget.distortion
    assert limit is not None
    least = max(FEWEST, len(candidates.required))
    most = len(candidates.recipe.experts) - len(candidates.excluded)
    found = sets.within(limit)
    best = judged(sets.of_size(least) if found is None else found)
    own, pooled = best.geometry.ball.radius_squared, best.choice.radius_squared
    same_scale = abs(own - pooled) <= SAME_SCALE * pooled
    if not same_scale and own > 0:
        # All candidates' scale is not that of a few: the limit in the pool's, from these few.
        found = sets.within(limit * pooled / own)
        if found is not None and len(found.members) != len(best.choice.members):
            best = judged(found)
    if not _allowed(best):
        while not _allowed(best) and len(best.choice.members) > least:
            best = judged(sets.of_size(len(best.choice.members) - 1))
        return replace(best, choice=replace(best.choice, largest=False))
    count = len(best.choice.members)
    proven = bool(best.choice.largest) and same_scale
    for larger in range(count + 1, most + 1):
        more = judged(sets.of_size(larger))
        if not _allowed(more):
            break
        best, count, proven = more, larger, False
    return replace(best, choice=replace(best.choice, largest=proven or count == most))


def _allowed(judged: _Judged) -> bool:
    return judged.verdict.decision == "allow"


def _judge(pool: PoolFile, states: PoolStates, choice: Choice) -> _Judged:
    settings, recipe = chosen_recipe(pool, states.recipe, choice.members)
    geometry = geometry_of(states, recipe)
    warn_only = recipe.compat.on_violation == "warn"
    verdict = judge(geometry, recipe.compat.budget, recipe.names, warn_only=warn_only)
    return _Judged(choice, settings, recipe, geometry, verdict)
