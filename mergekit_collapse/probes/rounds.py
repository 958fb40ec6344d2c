"""The rounds in which probes are measured where a recipe says ``samples: auto``."""

import random
from collections.abc import Sequence
from typing import TypeVar

# Probes of each task after every round. Each round reads all weights anew, so they are few.
SIZES = (8, 16, 32, 64, 128)
MOST = SIZES[-1]
# Merging loss is that of the rows of these rounds, whenever measuring stops: the number of rows
# that a task has where samples is left alone.
SCORED = 3

Row = TypeVar("Row")


def in_rounds(tasks: Sequence[tuple[str, Sequence[Row]]], seed: int) -> list[list[tuple[int, Row]]]:
    """For each round the rows that it adds, each with the index of its task.

    A round has a task's next rows in a seeded order of its own, and so begins with all earlier
    rounds whatever other tasks there are. A task with fewer rows has given all of them then.

    Args:
        tasks: name and drawn rows of each.
        seed: of the order.
    """
    orders = []
    for name, rows in tasks:
        order = list(rows)
        random.Random(f"{seed}:{name}:rounds").shuffle(order)
        orders.append(order)
    longest = max((len(order) for order in orders), default=0)
    rounds, before = [], 0
    for size in SIZES:
        rounds.append([(i, row) for i, order in enumerate(orders) for row in order[before:size]])
        before = size
        if size >= longest:
            break
    return rounds
