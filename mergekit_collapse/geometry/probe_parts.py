"""Which probes are kept together, where distances on every single one would be too many numbers."""

import numpy as np

from mergekit_collapse.shapes import Float64, Int64

# 1 GiB of float64.
VALUES = 2**27
# With fewer a bootstrap that draws parts says too little.
LEAST_PARTS = 8


def single_parts(probes: int) -> Int64[np.ndarray, " probe"]:
    """Every probe by itself."""
    return np.arange(probes, dtype=np.int64)


def probe_parts(
    task_of_probe: Int64[np.ndarray, " probe"], matrices: int, models: int, seed: int
) -> Int64[np.ndarray, " probe"]:
    """The part of each probe, numbered from 0; each task has its own.

    As long as N × N distances of every probe fit into 1 GiB each probe is a part. Beyond, the
    probes of a task are dealt at random into even parts, as many as fit, at least 8 a task as
    far as it has probes. What is kept of a part is its mean, so that means over all probes and
    over a task stay what they are; the bootstrap draws parts instead of probes.

    Args:
        task_of_probe: index of each probe's task.
        matrices: kept for each part.
        models: N, the base included.
        seed: of the dealing.
    """
    probes = len(task_of_probe)
    fitting = VALUES // (matrices * models**2)
    if probes <= fitting:
        return single_parts(probes)
    rng = np.random.default_rng([seed, 3])
    part = np.empty(probes, dtype=np.int64)
    used = 0
    for task in np.unique(task_of_probe):
        mine = rng.permutation(np.flatnonzero(task_of_probe == task))
        count = min(len(mine), max(LEAST_PARTS, fitting * len(mine) // probes))
        for group in np.array_split(mine, count):
            part[group] = used
            used += 1
    return part


def part_weights(
    weights: Float64[np.ndarray, "resample probe"], part_of_probe: Int64[np.ndarray, " probe"]
) -> Float64[np.ndarray, "resample part"]:
    """Sum of the weights of each part's probes."""
    order = np.argsort(part_of_probe, kind="stable")
    starts = np.searchsorted(part_of_probe[order], np.arange(part_of_probe.max() + 1))
    result: Float64[np.ndarray, "resample part"] = np.add.reduceat(weights[:, order], starts, 1)
    return result
