"""Linear CKA between experts' states on the same probes, as a predictor of collapse.

    python benchmarks/collapse/cka_scores.py --folder FOLDER --output predictors.csv

States after the final norm, pooled over the prompt or of its last token, on the probes of all the
group's tasks together, as FOLDER/states keeps them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from predictor_rows import Group, PredictorRow, arguments, pair_rows, run, tasks_of

from mergekit_collapse.shapes import Float64

POOLINGS = ("mean", "last")
PREDICTORS = tuple(
    f"cka_{pooling}{estimate}{end}"
    for pooling in POOLINGS
    for estimate in ("", "_debiased")
    for end in ("", "_max")
)


def linear_cka(
    states: Float64[np.ndarray, "expert probe hidden"], *, debiased: bool = False
) -> Float64[np.ndarray, "expert expert"]:
    """Linear centred kernel alignment of every pair of experts.

        CKA(X, Y) = ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),

    Frobenius norms, X and Y with every feature's mean over the probes taken off, K = XXᵀ and
    L = YYᵀ. It lies in [0, 1], is 1 for an expert with itself, and does not change if a model's
    states are shifted, rotated, reflected or scaled by one number: what it does not see, it
    cannot warn of. (Kornblith et al. 2019, arXiv 1905.00414, section 3.)

    With few probes and many features unrelated states come near to 1. ``debiased`` takes the
    unbiased estimate of HSIC in its place (Song et al. 2012, equation 5; Nguyen et al. 2021, arXiv
    2010.15327), with K̃ as K but 0 on the diagonal and n probes,

        HSIC₁(K, L) = [tr K̃L̃ + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1] / (n(n−3)).

    Its mean over draws of unrelated states is about 0, so it may be negative.

    Returns:
        Symmetric. NaN where an expert's states do not vary, or vary so little that the unbiased
        estimate of HSIC(K, K) is not positive.

    Raises:
        ValueError: fewer than 2 probes, or 4 for ``debiased``; a state is NaN or infinite.
    """
    experts, probes, _ = states.shape
    least = 4 if debiased else 2
    if probes < least:
        raise ValueError(f"CKA needs at least {least} probes, got {probes}; add some")
    if not (finite := np.isfinite(states).all(axis=(1, 2))).all():
        bad = np.flatnonzero(~finite).tolist()
        raise ValueError(f"experts {bad} have NaN or infinite states; check their weights")
    centred = states - states.mean(axis=1, keepdims=True)
    # Only the scale of float64 is at stake: CKA does not change.
    size = np.abs(centred).max(axis=(1, 2), keepdims=True)
    centred = np.divide(centred, size, out=np.zeros_like(centred), where=size > 0)
    kernels = centred @ centred.transpose(0, 2, 1)
    if debiased:
        kernels[:, np.arange(probes), np.arange(probes)] = 0
    flat = kernels.reshape(experts, -1)
    products = flat @ flat.T
    if debiased:
        sums = kernels.sum(axis=2)
        total = sums.sum(axis=1)
        products += np.outer(total, total) / ((probes - 1) * (probes - 2))
        products -= 2 / (probes - 2) * sums @ sums.T
    own = np.diag(products)
    norm = np.sqrt(np.where(own > 0, own, np.nan))
    return np.asarray(products / np.outer(norm, norm))


def cka_rows(
    group: Group, states: Mapping[str, Float64[np.ndarray, "expert probe hidden"]]
) -> Iterator[PredictorRow]:
    """1 − CKA of a group.

    Args:
        states: of the group's experts on its tasks' probes, by pooling.
    """
    for pooling, found in states.items():
        for estimate, debiased in (("", False), ("_debiased", True)):
            start = time.process_time()
            distance = 1 - linear_cka(found, debiased=debiased)
            seconds = time.process_time() - start
            yield from pair_rows(group, f"cka_{pooling}{estimate}", distance, seconds)


def scores(folder: Path, groups: Sequence[Group]) -> Iterator[PredictorRow]:
    """1 − CKA of each group; beyond it, its experts' states are needed on all of its tasks."""
    tasks = tasks_of(folder, groups)
    for group in groups:
        # Rotated tasks ask the prompts of the task that they contradict.
        prompts = sorted({tasks[name].removesuffix("-rotated") for name in group})
        states = {
            pooling: np.stack([_states(folder, name, prompts, pooling) for name in group])
            for pooling in POOLINGS
        }
        yield from cka_rows(group, states)


def _states(folder: Path, expert: str, prompts: Sequence[str], pooling: str) -> np.ndarray:
    """One expert's states after its last layer, probe by hidden."""
    found = []
    for task in prompts:
        with np.load(folder / "states" / expert / f"{task}.npz") as file:
            found.append(file[pooling][-1])
    return np.concatenate(found).astype(np.float64)


if __name__ == "__main__":
    run(arguments(__doc__).parse_args(), PREDICTORS, scores)
