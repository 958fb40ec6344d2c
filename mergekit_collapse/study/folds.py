"""Which rows are held out together, to be judged by what the others say."""

from collections.abc import Collection, Hashable, Iterable, Sequence

import numpy as np

from mergekit_collapse.shapes import Bool
from mergekit_collapse.study.cluster_resamples import cluster_numbers

Folds = Bool[np.ndarray, "fold row"]


def one_out(labels: Iterable[Hashable]) -> Folds:
    """A fold for each label, in the order in which they appear: the rows that have it."""
    clusters = cluster_numbers(labels)
    folds: Folds = np.arange(clusters.max(initial=-1) + 1)[:, None] == clusters
    return folds


def member_out(members: Sequence[Collection[Hashable]]) -> Folds:
    """A fold for each expert (or task): the rows that it is in. Rows are in several folds."""
    names = dict.fromkeys(name for row in members for name in row)
    return np.array([[name in row for row in members] for name in names], dtype=np.bool_)
