"""Rows that belong together, drawn anew together."""

from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np

from mergekit_collapse.shapes import Float64, Int64

RESAMPLES = 2000
# Numbers at a time: 8 MB in each of a statistic's arrays.
_BLOCK = 10**6

Statistic = Callable[[Float64[np.ndarray, "resample row"]], Float64[np.ndarray, " resample"]]


def cluster_numbers(labels: Iterable[Hashable]) -> Int64[np.ndarray, " row"]:
    """0, 1, .. in the order in which the labels appear."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def resampled_weights(
    clusters: Int64[np.ndarray, " row"], resamples: int, seed: int
) -> Iterator[Float64[np.ndarray, "resample row"]]:
    """How often each row is drawn when as many clusters as there are get drawn with replacement.

    Args:
        clusters: of ``cluster_numbers``.

    Yields:
        All resamples, some at a time. The draws do not depend on how many those are.
    """
    count = int(clusters.max()) + 1
    random = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // len(clusters))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield times[:, clusters].astype(np.float64)
