"""The sections about p-values and correlations, as lines."""

import math
from collections.abc import Iterator

from mergekit_collapse.study.columns import columns, p_text
from mergekit_collapse.study.correlation import Correlations
from mergekit_collapse.study.misprint import Misprint
from mergekit_collapse.study.paper_study import PaperStudy, Robustness
from mergekit_collapse.study.paper_tables import GroupTable
from mergekit_collapse.study.printed_p import BEST


def printed_p_lines(study: PaperStudy) -> Iterator[str]:
    """Every candidate test beside what is printed."""
    groups = study.tables.groups
    yield "1. The printed p-values: two-sided Pearson of MDS with which loss of a task?"
    rows = [["printed", *(f"{group.p_value:.4f} " for group in groups)]]
    for test in study.tests:
        marks = ("*" if reached else " " for reached in test.reaches)
        values = (p_text(p.value) for p in test.p)
        rows.append([test.name, *(v + m for v, m in zip(values, marks, strict=True))])
        if test.name == BEST:
            rows.append(["  at the least", *(f"{p_text(p.low)} " for p in test.p)])
            rows.append(["  at the most", *(f"{p_text(p.high)} " for p in test.p)])
    yield from columns(["loss", *(f"{group.name} " for group in groups)], rows)
    fits = [test.name for test in study.tests if all(test.reaches)]
    yield "  best, mean, median, worst: over LA, TA and TIES; all 24: as if they were independent"
    yield "  * MDS and losses that print the same give the p-value that is printed"
    yield f"  In all {len(groups)} groups: {', '.join(fits) or 'none'}"


def misprint_lines(found: Misprint) -> Iterator[str]:
    """Cells that Table 2 prints otherwise, and what they do to the p-value."""
    yield (
        f"2. Group GLUE against Table 2, 3B: {len(found.disagreements)} of {found.cells} "
        "cells disagree"
    )
    yield from columns(
        ["cell", "in the group", "in Table 2", "is there the loss of"],
        (
            [
                f"{cell.method}, {cell.task}",
                f"{cell.in_group:.1f}",
                f"{cell.in_sizes:.1f}",
                ", ".join(cell.same_as) or "none",
            ]
            for cell in found.disagreements
        ),
    )
    yield (
        f"  p with the row as printed {p_text(found.p_printed_row)}, "
        f"with that of Table 2 {p_text(found.p_corrected)}"
    )


def robustness_lines(study: PaperStudy) -> Iterator[str]:
    """Pearson and Spearman, whole and without each task."""
    yield "3. MDS with the best loss, whole and without one task"
    yield "  exact: the share of all orders of the tasks with a coefficient as far from 0"
    for found in study.robustness:
        yield from columns(
            [f"group {found.group.name}", *("MDS", "loss"), *_HEADER],
            [["all tasks", "", "", *_cells(found.whole)], *_without(found)],
        )


_HEADER = ("Pearson", "p", "exact", "Spearman", "p", "exact")


def _without(found: Robustness) -> Iterator[list[str]]:
    group = found.group
    for one in found.without:
        mark = " (highest MDS)" if one.left_out == group.hardest else ""
        yield [
            f"without {group.tasks[one.left_out]}{mark}",
            f"{group.mds[one.left_out]:.2f}",
            f"{group.best[one.left_out]:.1f}",
            *_cells(one.rest),
        ]


def _cells(found: Correlations) -> Iterator[str]:
    for one in (found.pearson, found.spearman):
        yield from (f"{one.value:.3f}", p_text(one.p_value), p_text(one.exact_p))


def level_lines(study: PaperStudy) -> Iterator[str]:
    """MDS as a limit, over the tasks of all groups."""
    tasks = sum(len(group.mds) for group in study.tables.groups)
    yield f"4. MDS as a limit, over the {tasks} tasks of all groups (best loss)"
    yield from columns(
        ["collapsed", "tasks", "AUROC", "limit", "over it", "of those collapsed"],
        (
            [
                f"loss below {one.worse_than:.0f}",
                f"{one.collapsed}",
                f"{one.auroc:.2f}",
                f"{one.limit:.1f}",
                f"{one.over}",
                f"{one.right}",
            ]
            for one in study.levels
        ),
    )
    found = [group for group in study.tables.groups if group.hardest == group.best.argmin()]
    chance = math.prod(1 / len(group.mds) for group in study.tables.groups)
    yield (
        f"  The task of highest MDS loses most in {len(found)} of {len(study.tables.groups)} "
        f"groups; in all by chance: {p_text(chance)}"
    )
    loosest = study.levels[0]
    for group in study.tables.groups:
        yield from _missed(group, loosest.worse_than, loosest.limit)


def _missed(group: GroupTable, worse_than: float, limit: float) -> Iterator[str]:
    for task, score, loss in zip(group.tasks, group.mds, group.best, strict=True):
        if loss < worse_than and not score > limit:
            yield f"  missed: {group.name}, {task}: MDS {score:.2f}, loss {loss:.1f}"
