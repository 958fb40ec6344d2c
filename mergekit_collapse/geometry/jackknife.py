"""How far numbers would move with other probes, told from few of them: each left out in turn."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64, Int64


@dataclass(frozen=True)
class Jackknifed:
    """Some quantities on the probes, and their jackknife.

    Attributes:
        value: on all probes.
        corrected: less the bias that leaving out probes shows.
        error: standard error of either.
        freedom: degrees of freedom of ``error``; 0 where nothing can be left out.
        skewness: of the distribution of ``value``, dimensionless; 0 where ``error`` is.
    """

    value: Float64[np.ndarray, " quantity"]
    corrected: Float64[np.ndarray, " quantity"]
    error: Float64[np.ndarray, " quantity"]
    freedom: Float64[np.ndarray, " quantity"]
    skewness: Float64[np.ndarray, " quantity"]


def tasks_of_parts(
    task_of_probe: Int64[np.ndarray, " probe"], part_of_probe: Int64[np.ndarray, " probe"]
) -> Int64[np.ndarray, " part"]:
    """The task of each part of the probes (``probe_parts``); none has parts of two tasks."""
    _, first = np.unique(part_of_probe, return_index=True)
    return task_of_probe[first]


def leave_one_out_weights(
    task_of_probe: Int64[np.ndarray, " probe"], part_of_probe: Int64[np.ndarray, " probe"]
) -> Float64[np.ndarray, "row probe"]:
    """Share of each probe with each part gone that can go, then with none gone; rows sum to 1.

    A part can go if its task has others. These take over its share, so that each task keeps
    its own.
    """
    gone = _leavable(tasks_of_parts(task_of_probe, part_of_probe))
    weights = np.ones((len(gone) + 1, len(task_of_probe)))
    for row, part in enumerate(gone):
        out = part_of_probe == part
        task = task_of_probe == task_of_probe[out.argmax()]
        weights[row, task] = task.sum() / (task.sum() - out.sum())
        weights[row, out] = 0.0
    return weights / len(task_of_probe)


def _leavable(task_of_part: Int64[np.ndarray, " part"]) -> Int64[np.ndarray, " gone"]:
    result: Int64[np.ndarray, " gone"] = np.flatnonzero(np.bincount(task_of_part)[task_of_part] > 1)
    return result


def jackknife(
    values: Float64[np.ndarray, "row quantity"], task_of_part: Int64[np.ndarray, " part"]
) -> Jackknifed:
    """Bias, standard error and its degrees of freedom, probes being drawn task by task.

        corrected = θ − Σ_h (n_h − 1)(mean_b θ_(b) − θ)
        error²    = Σ_h v_h,  v_h = (n_h − 1)/n_h Σ_b (θ_(b) − mean_b θ_(b))²
        freedom   = (Σ_h v_h)² / Σ_h v_h²/(n_h − 1)
        skewness  = −Σ_h ((n_h − 1)/n_h)³ Σ_b (θ_(b) − mean_b θ_(b))³ / error³

    with θ_(b) the quantity without part b of task h, which has n_h parts, as a rule one probe each.
    A task with one part adds nothing, since it cannot be told how others would be. Where no part
    makes a difference the error is 0.

    Args:
        values: the quantities under each row of ``leave_one_out_weights``. A NaN makes all of a
            quantity NaN.

    Source: Jones 1974, Ann. Inst. Stat. Math. 26:465 (stratified jackknife); Satterthwaite 1946,
        Biometrics Bulletin 2:110 (degrees of freedom).
    """
    gone, value = _leavable(task_of_part), values[-1]
    corrected = value.copy()
    variance, squares, cubes = (np.zeros_like(value) for _ in range(3))
    least = np.inf
    for task in np.unique(task_of_part[gone]):
        mine = values[:-1][task_of_part[gone] == task]
        count, mean = len(mine), mine.mean(axis=0)
        own = (count - 1) / count * np.square(mine - mean).sum(axis=0)
        corrected -= (count - 1) * (mean - value)
        variance += own
        squares += own**2 / (count - 1)
        cubes -= ((count - 1) / count) ** 3 * ((mine - mean) ** 3).sum(axis=0)
        least = min(least, count - 1)
    freedom = np.full_like(value, least if len(gone) else 0.0)
    np.divide(variance**2, squares, out=freedom, where=squares > 0)
    error, skewness = np.sqrt(variance), np.zeros_like(value)
    np.divide(cubes, error**3, out=skewness, where=error > 0)
    return Jackknifed(value, corrected, error, freedom, skewness)
