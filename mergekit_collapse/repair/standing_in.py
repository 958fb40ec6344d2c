"""Which models of a pool may stand in whose place: as the recipe says, and by what they score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit_collapse.material import Material
from mergekit_collapse.recipe.default_limits import MAX_MERGING_LOSS
from mergekit_collapse.recipe.limits import EvaluateBlock
from mergekit_collapse.remedy.same_tasks import OwnTask, falls_short
from mergekit_collapse.repair.replacement_limits import Lineup
from mergekit_collapse.repair.substitute_pool import SubstitutePool


@dataclass(frozen=True)
class StandingIn:
    """The rows of a lineup that may take each place.

    Attributes:
        rows: for each place, those of the candidates that are offered for it.
        unfit: by place and row, why a candidate does not do the work of the expert there.
    """

    rows: Mapping[int, Sequence[int]]
    unfit: Mapping[tuple[int, int], str]


def open_places(material: Material, pool: SubstitutePool) -> tuple[int, ...]:
    """The experts whose work can be told, by a task with a target or by the recipe's own word."""
    scored = {task.owner for task in material.scoring.tasks}
    experts = range(len(material.recipe.experts))
    return tuple(i for i in experts if pool.may_take[i] and (pool.named or i in scored))


def standing_in(
    pool: SubstitutePool,
    places: Sequence[int],
    lineup: Lineup,
    *,
    tasks: Sequence[OwnTask],
    scores: Mapping[tuple[int, int], float],
    max_loss: float,
) -> StandingIn:
    """Hold every candidate against the scores of the experts in whose places it may stand.

    Args:
        pool: the candidates, and who may take which place.
        places: as `open_places`; one whose expert turns out to have no score above 0 is closed,
            unless the recipe names its candidates.
        lineup: rows for the experts and the candidates.
        tasks: of the experts that were scored.
        scores: of the candidates, by their index after the experts and the task's.
        max_loss: what a candidate may lose against the expert, percent.

    Returns:
        Rows of the lineup for every expert; none for a place that is closed.
    """
    rows: dict[int, tuple[int, ...]] = dict.fromkeys(range(lineup.experts), ())
    unfit: dict[tuple[int, int], str] = {}
    for place in places:
        owned = [task for task in tasks if task.owner == place and task.asks]
        if not (owned or pool.named):
            continue
        offered = {lineup.experts + index for index in pool.may_take[place]}
        rows[place] = tuple(r for r in lineup.candidates[place] if lineup.model[r] in offered)
        for row in rows[place]:
            model = int(lineup.model[row])
            short = (falls_short(t, scores.get((model, t.index)), max_loss) for t in owned)
            if reasons := [reason for reason in short if reason is not None]:
                unfit[place, row] = "; ".join(reasons)
    return StandingIn(rows, unfit)


def own_tasks(material: Material) -> tuple[OwnTask, ...]:
    """Tasks whose owner was scored."""
    names, scores = material.recipe.names, material.own_scores.scores
    return tuple(
        OwnTask(task.task, task.name, task.owner, names[task.owner], scores[task.task])
        for task in material.scoring.tasks
        if task.task in scores
    )


def loss_limit(evaluate: EvaluateBlock) -> float:
    """What a candidate may lose, percent: what a merge may, but at most what it may by default.

    A merge may be let lose everything on purpose; a candidate that does is no substitute.
    """
    limit = evaluate.max_merging_loss
    return MAX_MERGING_LOSS if limit is None else min(limit, MAX_MERGING_LOSS)
