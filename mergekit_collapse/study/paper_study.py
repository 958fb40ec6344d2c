"""All that can be recomputed from the paper's printed tables."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.study.correlation import (
    Correlations,
    LeaveOneOut,
    correlations,
    leave_one_out,
)
from mergekit_collapse.study.discrimination import Discrimination, discrimination
from mergekit_collapse.study.mds_consistency import Consistency, consistency
from mergekit_collapse.study.method_against_task import (
    Distance,
    MethodAgainstTask,
    analyse,
    distances,
)
from mergekit_collapse.study.misprint import Misprint, find_misprint
from mergekit_collapse.study.paper_tables import GroupTable, PaperTables
from mergekit_collapse.study.printed_p import TriedTest, try_tests
from mergekit_collapse.study.score_counts import (
    BelowHalf,
    CountedTask,
    below_half,
    count_answers,
)

# Losses that count as collapse, and a limit that the tables are held against.
WORSE_THAN = (-20.0, -30.0)
LIMIT = 3.0


@dataclass(frozen=True)
class Robustness:
    """The correlation of MDS with the best loss in one group, and without each task."""

    group: GroupTable
    whole: Correlations
    without: tuple[LeaveOneOut, ...]


@dataclass(frozen=True)
class SelectionCheck:
    """The guide's first row against the table of its group.

    Attributes:
        worst_mds: highest MDS of the group.
        worst_loss: lowest of its tasks' best losses.
    """

    group: str
    worst_mds: float
    worst_loss: float


@dataclass(frozen=True)
class PaperStudy:
    """What follows from the tables; one field for each section of the text.

    Attributes:
        robustness: the groups as printed, then GLUE with the row of Table 2.
        levels: over the tasks of all groups as printed, with their best losses.
        consistency: per group.
    """

    tables: PaperTables
    tests: tuple[TriedTest, ...]
    misprint: Misprint
    robustness: tuple[Robustness, ...]
    levels: tuple[Discrimination, ...]
    counts: tuple[CountedTask, ...]
    below_half: tuple[BelowHalf, ...]
    analyses: tuple[MethodAgainstTask, ...]
    distances: tuple[Distance, ...]
    consistency: tuple[Consistency, ...]
    selection: SelectionCheck


def study_paper(tables: PaperTables) -> PaperStudy:
    """Recompute everything; a few seconds at most."""
    groups, sizes = tables.groups, tables.sizes
    # Group GLUE is the 3B block of Table 2 once more, so it is not analysed a second time below.
    misprint = find_misprint(groups[0], sizes[0])
    scores = np.concatenate([group.mds for group in groups])
    losses = np.concatenate([group.best for group in groups])
    return PaperStudy(
        tables=tables,
        tests=try_tests(groups),
        misprint=misprint,
        robustness=tuple(map(_robustness, (*groups, misprint.corrected))),
        levels=tuple(
            discrimination(scores, losses, worse_than=worse, limit=LIMIT) for worse in WORSE_THAN
        ),
        counts=count_answers(sizes),
        below_half=below_half(sizes),
        analyses=analyse(sizes, groups[1:]),
        distances=distances(sizes),
        consistency=tuple(consistency(group.mds) for group in groups),
        selection=_check_selection(tables),
    )


def _robustness(group: GroupTable) -> Robustness:
    return Robustness(
        group, correlations(group.mds, group.best), leave_one_out(group.mds, group.best)
    )


def _check_selection(tables: PaperTables) -> SelectionCheck:
    name = tables.selection[0].name
    group = next(group for group in tables.groups if group.name == name)
    return SelectionCheck(name, float(group.mds.max()), float(group.best.min()))
