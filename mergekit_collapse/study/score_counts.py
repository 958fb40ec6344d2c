"""Eq. 1 held against Table 2: a score is a count of right answers, and so is a merged one."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64
from mergekit_collapse.study.paper_tables import GLUE_ROWS, THREE_WAY, SizeTable

# Half of the last printed digit, and a little for numbers that end in 5.
HALF = 0.05 + 1e-9


@dataclass(frozen=True)
class CountedTask:
    """All printed losses of one task.

    Attributes:
        rows: rows of its validation split.
        losses: how many losses are printed.
        as_ratio: of those, how many some whole number of right answers gives under Eq. 1.
        as_points: how many under the difference of scores in points, which Eq. 1 is not.
        by_chance: how many would fit Eq. 1 if losses were drawn from 0.0, -0.1, .., -100.0.
    """

    task: str
    rows: int
    losses: int
    as_ratio: int
    as_points: int
    by_chance: float


@dataclass(frozen=True)
class BelowHalf:
    """A merged score under 50 % where there are two answers to choose from."""

    size: str
    method: str
    task: str
    score: float


def merged_scores(table: SizeTable) -> Float64[np.ndarray, "method task"]:
    """What Eq. 1 says the merged models scored, in percent.

    P(merged) = P(expert) · (1 + L / 100)
    """
    scores: Float64[np.ndarray, "method task"] = table.finetuned * (1 + table.loss / 100)
    return scores


def below_half(tables: tuple[SizeTable, ...]) -> tuple[BelowHalf, ...]:
    """Every merged score that is worse than a coin, MNLI with its three answers left out."""
    return tuple(
        BelowHalf(table.size, method, task, float(score))
        for table in tables
        for method, row in zip(table.methods, merged_scores(table), strict=True)
        for task, score in zip(table.tasks, row, strict=True)
        if task != THREE_WAY and score < 50
    )


def count_answers(tables: tuple[SizeTable, ...]) -> tuple[CountedTask, ...]:
    """Per task: are its printed losses ratios of whole numbers of right answers?

        L = (k_merged / k_expert - 1) · 100,  100 k_expert / n = P(expert)

    both to one decimal, for some whole k. Large splits fit anything; small ones do not.
    """
    return tuple(_counted(index, task, tables) for index, task in enumerate(GLUE_ROWS))


def _counted(index: int, task: str, tables: tuple[SizeTable, ...]) -> CountedTask:
    rows = GLUE_ROWS[task]
    every_loss = np.arange(1001) / -10
    ratio = points = losses = 0
    chance = 0.0
    for table in tables:
        printed = table.loss[:, index]
        by_ratio, by_points = _attainable(float(table.finetuned[index]), rows)
        ratio += int(_among(printed, by_ratio).sum())
        points += int(_among(printed, by_points).sum())
        chance += len(printed) * float(_among(every_loss, by_ratio).mean())
        losses += len(printed)
    return CountedTask(task, rows, losses, ratio, points, chance)


def _attainable(
    score: float, rows: int
) -> tuple[Float64[np.ndarray, " loss"], Float64[np.ndarray, " loss"]]:
    """Every loss that whole numbers of right answers give, as ratio and in points, sorted."""
    right = np.arange(rows + 1)
    expert = right[np.abs(100 * right / rows - score) <= HALF]
    ratio = 100 * (right / expert[:, None] - 1)
    points = 100 * (right - expert[:, None]) / rows
    return np.sort(ratio, axis=None), np.sort(points, axis=None)


def _among(
    values: Float64[np.ndarray, " value"], attainable: Float64[np.ndarray, " loss"]
) -> np.ndarray:
    """Which values have an attainable one that prints the same; none where none is attainable."""
    framed = np.concatenate([[-np.inf], attainable, [np.inf]])
    after = np.searchsorted(framed, values)
    nearest = np.minimum(values - framed[after - 1], framed[after] - values)
    near: np.ndarray = nearest <= HALF
    return near
