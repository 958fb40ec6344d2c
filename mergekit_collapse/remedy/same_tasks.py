"""Whether a model does the tasks of the expert in whose place it would stand."""

from dataclasses import dataclass

# Of the score that is asked for, so that rounding of the product refuses nobody.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class OwnTask:
    """A task that an expert owns and is scored on.

    Attributes:
        index: the task's, by which scores are known.
        name: the task's.
        owner: index of the expert.
        owner_name: what to call it.
        score: the expert's own, 0 to 1.
    """

    index: int
    name: str
    owner: int
    owner_name: str
    score: float

    @property
    def asks(self) -> bool:
        """Whether a share of the score asks anything; at 0, Eq. 1 is undefined."""
        return self.score > 0


def falls_short(task: OwnTask, score: float | None, max_loss: float) -> str | None:
    """Why a candidate does not do an expert's task; None if it does.

        score ≥ (1 − max_loss / 100) · P(expert)

    which is the limit that Eq. 1 of arXiv 2603.09463 is held against, for the candidate in the
    place of the merged model. A candidate without a score, or with NaN, does not.

    Args:
        task: one that `asks` something.
        score: the candidate's on the same rows.
        max_loss: percent, below 100.
    """
    least = (1 - max_loss / 100) * task.score
    if score is not None and score >= least * (1 - _ROUNDING):
        return None
    found = "it has no score" if score is None else f"it scores {score:.3g}"
    return (
        f"{found} on {task.name}, where {task.owner_name} scores {task.score:.3g} "
        f"(at least {least:.3g} is needed)"
    )
