"""How well a score tells merges that collapsed from those that did not."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from mergekit_collapse.shapes import Float64


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
        ValueError: all tasks collapsed, or none did.
    """
    collapsed = loss < worse_than
    hits, misses = int(collapsed.sum()), int((~collapsed).sum())
    if not (hits and misses):
        raise ValueError(
            f"{hits} of {len(loss)} tasks lost more than {-worse_than} %; an AUROC needs both kinds"
        )
    # Mann and Whitney: the rank sum of the collapsed, less what it is at the least.
    above = float(rankdata(score)[collapsed].sum()) - hits * (hits + 1) / 2
    over = score > limit
    return Discrimination(
        worse_than,
        hits,
        above / (hits * misses),
        limit,
        int(over.sum()),
        int((over & collapsed).sum()),
    )
