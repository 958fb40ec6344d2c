"""The TIES row of group GLUE, which is also printed in Table 2, with other numbers."""

from dataclasses import dataclass, replace

import numpy as np

from mergekit_collapse.study.correlation import pearson_p
from mergekit_collapse.study.paper_tables import GroupTable, SizeTable


@dataclass(frozen=True)
class Disagreement:
    """One cell that the two tables print differently.

    Attributes:
        in_group: loss in percent in the group's own table.
        in_sizes: loss of the same method and task in Table 2.
        same_as: the methods of Table 2 that do lose ``in_group`` on this task.
    """

    method: str
    task: str
    in_group: float
    in_sizes: float
    same_as: tuple[str, ...]


@dataclass(frozen=True)
class Misprint:
    """Group GLUE against the block of Table 2 that it repeats.

    Attributes:
        cells: how many cells both print.
        disagreements: those that differ.
        corrected: the group with the losses of Table 2.
        p_printed_row, p_corrected: Pearson of MDS with the best loss, before and after.
    """

    cells: int
    disagreements: tuple[Disagreement, ...]
    corrected: GroupTable
    p_printed_row: float
    p_corrected: float


def find_misprint(group: GroupTable, size: SizeTable) -> Misprint:
    """Compare cell by cell.

    Args:
        group: has the tasks of ``size`` in its order, and a part of its methods.
    """
    rows = [size.methods.index(method) for method in group.methods]
    other = size.loss[rows]
    corrected = replace(group, name=f"{group.name} corrected", loss=other)
    return Misprint(
        group.loss.size,
        tuple(
            Disagreement(
                group.methods[i],
                group.tasks[j],
                float(group.loss[i, j]),
                float(other[i, j]),
                tuple(
                    method
                    for method, loss in zip(size.methods, size.loss[:, j], strict=True)
                    if loss == group.loss[i, j]
                ),
            )
            for i, j in np.argwhere(group.loss != other).tolist()
        ),
        corrected,
        pearson_p(group.mds, group.best),
        pearson_p(corrected.mds, corrected.best),
    )
