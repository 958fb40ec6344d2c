"""How well a score tells merges that collapsed from those that did not."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64
from mergekit_collapse.study.auroc import aurocs
from mergekit_collapse.study.error_rates import over
from mergekit_collapse.study.tied_groups import tied_groups


@dataclass(frozen=True)
class Discrimination:
    """A score against one definition of collapse.

    Attributes:
        worse_than: loss in percent beyond which a task counts as collapsed, such as -20.
        collapsed: how many did.
        auroc: chance that one that did has the higher score, ties counting half.
        limit: a limit on the score.
        over: how many are over it.
        right: how many of those collapsed.
    """

    worse_than: float
    collapsed: int
    auroc: float
    limit: float
    over: int
    right: int


def discrimination(
    score: Float64[np.ndarray, " task"],
    loss: Float64[np.ndarray, " task"],
    *,
    worse_than: float,
    limit: float,
) -> Discrimination:
    """AUROC, and what a limit would have refused.

    Raises:
        ValueError: a score is NaN, or all tasks collapsed, or none did.
    """
    collapsed = loss < worse_than
    hits, misses = int(collapsed.sum()), int((~collapsed).sum())
    if not (hits and misses):
        raise ValueError(
            f"{hits} of {len(loss)} tasks lost more than {-worse_than} %; an AUROC needs both kinds"
        )
    refused = over(score, limit)
    return Discrimination(
        worse_than,
        hits,
        float(aurocs(tied_groups(score), collapsed, np.ones((1, len(score))))[0]),
        limit,
        int(refused.sum()),
        int((refused & collapsed).sum()),
    )
