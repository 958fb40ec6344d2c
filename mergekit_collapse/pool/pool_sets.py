"""The sets of a pool's candidates that may be chosen, by its own wishes and limits."""

from typing import Any

import numpy as np

from mergekit_collapse.geometry.merging_difficulty import merging_difficulty
from mergekit_collapse.pool.candidates import Candidates
from mergekit_collapse.pool.pool_file import PoolFile
from mergekit_collapse.pool.pool_states import PoolStates
from mergekit_collapse.remedy.choosing import Choice, choose_count, choose_within


class PoolSets:
    """Sets with every member of ``must_have`` and none of ``must_not_have``."""

    def __init__(self, pool: PoolFile, candidates: Candidates, states: PoolStates) -> None:
        self.budget = pool.compat.budget
        self.states = states
        self._wishes: dict[str, Any] = {
            "required": candidates.required,
            "excluded": candidates.excluded,
            "seed": pool.compat.probes.seed,
        }
        self._accept = None if self.budget.mds is None else self._within_mds

    def of_size(self, count: int) -> Choice:
        """The best set within the limit of MDS; where there is none, the best without it."""
        squared = self.states.squared
        found = choose_count(squared, count, accept=self._accept, **self._wishes)
        if found is None:
            found = choose_count(squared, count, **self._wishes)
        assert found is not None  # nothing but the size is asked of it
        return found

    def within(self, limit: float) -> Choice | None:
        """The largest set with r² within ``limit``, in the pool's scale, and within that of MDS."""
        return choose_within(self.states.squared, limit, accept=self._accept, **self._wishes)

    def _within_mds(self, members: tuple[int, ...]) -> bool:
        """By the reading that decides, among these alone."""
        limit, states, part = self.budget.mds, self.states, np.ix_(members, members)
        chance = None if states.chance is None else states.chance[part]
        scores = merging_difficulty(self.budget.similarity, states.distance[part], chance).mds
        # Written so that a NaN, and an undefined score, is outside.
        return limit is None or all(s is not None and s <= limit for s in scores)
