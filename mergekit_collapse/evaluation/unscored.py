"""Which tasks no merging loss is known of: the same for a merged model and for its report."""

from collections.abc import Iterable


def unscored(
    owners: Iterable[tuple[str, int | None]], losses: Iterable[tuple[str, float | None]]
) -> frozenset[str]:
    """Names of the tasks that have an expert and no loss saying what the merge is worth there.

    Args:
        owners: each task by name, with the index of its expert.
        losses: each task that was scored by name, with its merging loss; None where the expert is
            worth nothing itself.
    """
    scored = {name for name, loss in losses if loss is not None}
    return frozenset(name for name, owner in owners if owner is not None and name not in scored)
