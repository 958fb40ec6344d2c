"""What earlier runs have measured, opened as a recipe's ``cache:`` says."""

from dataclasses import dataclass

from mergekit_collapse.cached_files import (
    LAYERED,
    OWN_SCORES,
    STATES,
    open_cached_files,
    size_limit,
)
from mergekit_collapse.evaluation.own_scores import OwnScores
from mergekit_collapse.kept_values import KeptValues
from mergekit_collapse.recipe.schema import CacheBlock
from mergekit_collapse.states.state_store import StateStore


@dataclass(frozen=True)
class Caches:
    """One for each kind of result; switched off, they hold nothing and keep nothing.

    Attributes:
        states: of each model on the probes.
        own_scores: of each expert on its own task.
        layered: whether models can be run layer by layer.
    """

    states: StateStore
    own_scores: OwnScores
    layered: KeptValues


def open_caches(block: CacheBlock) -> Caches:
    """Those in the user's cache folder.

    Raises:
        InvalidRecipeError: the environment holds no valid size.
    """
    on, limit = block.enabled, size_limit()
    return Caches(
        StateStore(open_cached_files(STATES, enabled=on), full=block.full, limit=limit),
        OwnScores(KeptValues(open_cached_files(OWN_SCORES, enabled=on)), block.full),
        KeptValues(open_cached_files(LAYERED, enabled=on)),
    )
