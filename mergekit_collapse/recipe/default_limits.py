"""The limits of a block whose author wrote none, from merges whose loss was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DefaultLimits:
    """What holds on one kind of probes.

    Attributes:
        distortion: of ``budget``, for r² in hidden space.
        max_distortion: of ``evaluate``, for the worst expert over all probes. 1 is no better than
            answering every probe with the mean state; in the median a merge is at 1.7 times r².
        refuses: what r² over ``distortion`` gets right and wrong, on tasks that nothing was
            chosen on.
        grey: from here up to ``distortion`` r² does not tell a good merge from a collapse.
        grey_share: of the merges in between, how many collapsed.

    Source: ``docs/evidence.md`` (``python benchmarks/collapse/evidence.py``). A merge collapsed if
    a task lost more than 20 % of its expert's score.
    """

    distortion: float
    max_distortion: float
    refuses: str
    grey: float
    grey_share: str


WITH_TASKS = DefaultLimits(
    distortion=0.45,
    max_distortion=1.0,
    refuses="2 of 5 collapses and 1 of 4 good merges",
    grey=0.2,
    grey_share="4 or 5 of 10",
)
"""Where the block has ``probes.tasks``, with the shipped probes or without."""

SHIPPED_ALONE = DefaultLimits(
    distortion=0.25,
    max_distortion=0.7,
    refuses="2 of 5 collapses and 1 of 6 good merges",
    grey=0.1,
    grey_share="half",
)
"""Where there are no tasks: experts are nearer to each other on general prompts."""

MAX_MERGING_LOSS = 20.0
"""Percent. Where it is known, it decides: read on 32 probes a task, with the limit below for tasks
without a score, it finds 95 % of the collapses and refuses 10 % of the good merges; of tasks that
nothing was chosen on, 85 % and 15 %.

Source: as above.
"""

MAX_OWN_DISTORTION = 0.25
"""Twice the squared Hellinger distance of the merged model's answers from the expert's, on the
expert's own task: by itself it finds 93 % of the collapses and refuses 22 % of the good merges; of
tasks that nothing was chosen on, 84 % and 16 %. It is for tasks without a score.

Source: as above.
"""
