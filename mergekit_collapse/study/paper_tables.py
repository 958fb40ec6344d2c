"""The tables that arXiv 2603.09463v1 prints, as records."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from mergekit_collapse.shapes import Float64

# The order of the columns of Table 2, with the rows of each task's validation split (MNLI:
# matched), from tensorflow.org/datasets/catalog/glue.
GLUE_ROWS = {
    **{"COLA": 1043, "MNLI": 9815, "MRPC": 408, "QNLI": 5463},
    **{"QQP": 40430, "RTE": 277, "SST-2": 872, "WNLI": 71},
}
THREE_WAY = "MNLI"
GROUP_METHODS = ("LA", "TA", "TIES")


@dataclass(frozen=True)
class GroupTable:
    """Eight experts merged together, one table of section 3.4.4.

    Attributes:
        tasks: as printed, or numbered where the paper prints no names.
        methods: linear averaging, task arithmetic and TIES.
        loss: merging loss in percent; negative is worse.
        mds: Merging Difficulty Score, printed to two decimals.
        p_value: as printed.
    """

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    loss: Float64[np.ndarray, "method task"]
    mds: Float64[np.ndarray, " task"]
    p_value: float

    @property
    def best(self) -> Float64[np.ndarray, " task"]:
        """Per task the loss under the method that loses least."""
        highest: Float64[np.ndarray, " task"] = self.loss.max(axis=0)
        return highest

    @property
    def hardest(self) -> int:
        """Index of the task of highest MDS."""
        return int(self.mds.argmax())


@dataclass(frozen=True)
class SizeTable:
    """Qwen2.5 of one size merged over GLUE: a block of Table 2.

    Attributes:
        finetuned: each expert's own score in percent.
        loss: merging loss in percent, as in ``GroupTable``, for five methods.
    """

    size: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    finetuned: Float64[np.ndarray, " task"]
    loss: Float64[np.ndarray, "method task"]

    def without(self, *methods: str) -> "SizeTable":
        """The same table with some methods left out."""
        kept = [i for i, name in enumerate(self.methods) if name not in methods]
        names = tuple(self.methods[i] for i in kept)
        return SizeTable(self.size, self.tasks, names, self.finetuned, self.loss[kept])


@dataclass(frozen=True)
class Selected:
    """One row of the selection guide: a group and its worst task."""

    name: str
    worst_loss: float
    worst_mds: float


@dataclass(frozen=True)
class PaperTables:
    """All that is shipped of the paper."""

    source: str
    groups: tuple[GroupTable, ...]
    sizes: tuple[SizeTable, ...]
    selection: tuple[Selected, ...]


def read_paper_tables() -> PaperTables:
    """The shipped tables, ``data/paper_tables.json``."""
    file = resources.files("mergekit_collapse.data") / "paper_tables.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    glue = found["qwen2.5_glue"]
    return PaperTables(
        found["source"],
        tuple(_group(name, table) for name, table in found["groups"].items()),
        tuple(_size(size, glue["finetuned"][size], rows) for size, rows in glue["loss"].items()),
        tuple(
            Selected(name, float(row["worst_loss"]), float(row["worst_MDS"]))
            for name, row in found["selection"].items()
        ),
    )


def _group(name: str, table: dict[str, Any]) -> GroupTable:
    numbered = [f"task {i + 1}" for i in range(len(table["MDS"]))]
    return GroupTable(
        name,
        tuple(table.get("tasks", numbered)),
        GROUP_METHODS,
        np.array([table[method] for method in GROUP_METHODS], dtype=np.float64),
        np.array(table["MDS"], dtype=np.float64),
        float(table["p_value"]),
    )


def _size(size: str, finetuned: list[float], rows: dict[str, list[float]]) -> SizeTable:
    return SizeTable(
        size,
        tuple(GLUE_ROWS),
        tuple(rows),
        np.array(finetuned, dtype=np.float64),
        np.array(list(rows.values()), dtype=np.float64),
    )
