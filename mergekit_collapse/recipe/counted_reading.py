"""The reading of r² that the default limits were chosen for."""

from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.recipe.schema import CompatBlock

_OF_BUDGET = ("rule", "over", "space")
_OF_STATES = ("layer", "pooling", "scale")


def is_counted(block: CompatBlock) -> bool:
    """Whether a block reads r² as the merges were read that the default limits come from.

    That is with the default rule, space, layer, pooling and scale, over all probes. Of other
    readings ``docs/evidence.md`` says no more than how well they tell.
    """
    budget, whole = BudgetBlock(), CompatBlock()
    return all(getattr(block.budget, key) == getattr(budget, key) for key in _OF_BUDGET) and all(
        getattr(block, key) == getattr(whole, key) for key in _OF_STATES
    )
