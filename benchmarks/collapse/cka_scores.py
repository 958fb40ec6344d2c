"""Linear CKA between experts' states on the same probes, as a predictor of collapse.

    python benchmarks/collapse/cka_scores.py --folder FOLDER --output predictors.csv

Mean-pooled states after the final norm, over the probes of all the group's tasks together.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from predictor_rows import Group, PredictorRow, arguments, pair_rows, run

from mergekit_collapse.shapes import Float64

PREDICTORS = ("cka", "cka_max", "cka_debiased", "cka_debiased_max")
PROBES_PER_TASK = 32
MAX_TOKENS = 128


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
    groups: Sequence[Group],
    states: Float64[np.ndarray, "expert probe hidden"],
    experts: Sequence[str],
    tasks: Mapping[str, str],
    task_of_probe: Sequence[str],
) -> Iterator[PredictorRow]:
    """1 − CKA of each group, on the probes of its members' tasks.

    Args:
        states: pooled, of every expert on every probe.
        experts: the names, in the order of ``states``.
        tasks: each expert's task.
        task_of_probe: each probe's task, in the order of ``states``.
    """
    place = {name: i for i, name in enumerate(experts)}
    for group in groups:
        start = time.process_time()
        wanted = {tasks[name] for name in group}
        probes = [i for i, task in enumerate(task_of_probe) if task in wanted]
        own = states[[place[name] for name in group]][:, probes]
        for name, debiased in (("cka", False), ("cka_debiased", True)):
            distance = 1 - linear_cka(own, debiased=debiased)
            yield from pair_rows(group, name, distance, time.process_time() - start)
            start = time.process_time()


def scores(folder: Path, groups: Sequence[Group]) -> Iterator[PredictorRow]:
    """1 − CKA of each group; states that were never read are read, and kept in FOLDER/cka."""
    table = json.loads((folder / "experts.json").read_text(encoding="utf-8"))
    tasks = {name: table[name]["task"] for group in groups for name in group}
    wanted: dict[str, set[str]] = {name: set() for name in tasks}
    for group in groups:
        for name in group:
            wanted[name] |= {tasks[other] for other in group}
    (folder / "cka").mkdir(exist_ok=True)
    read = {name: _states(folder, name, sorted(needed)) for name, needed in wanted.items()}
    for group in groups:
        order = sorted({tasks[name] for name in group})
        # The experts that are in this group alone: the others may not have seen its tasks.
        own = np.stack([np.concatenate([read[n][task] for task in order]) for n in group])
        of_probe = [task for task in order for _ in read[group[0]][task]]
        yield from cka_rows([group], own.astype(np.float64), group, tasks, of_probe)


def _states(folder: Path, expert: str, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """One expert's pooled states on each task's first probes."""
    file = folder / "cka" / f"{expert}.npz"
    kept: dict[str, np.ndarray] = dict(np.load(file)) if file.exists() else {}
    missing = [task for task in tasks if task not in kept]
    if missing:
        kept |= _read(folder, expert, missing)
        np.savez(file, **kept)
    return kept


def _read(folder: Path, expert: str, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    # Here, so that the mathematics above is had without loading transformers.
    import torch
    from mergekit.common import ModelReference
    from transformers import AutoTokenizer

    from mergekit_collapse.probes.tokens import ProbeEncoder, TokenizedProbes
    from mergekit_collapse.states.hidden_states import StateRequest, collect
    from mergekit_collapse.states.loader import LoadOptions

    encode = ProbeEncoder(AutoTokenizer.from_pretrained(folder / "base"), MAX_TOKENS, False)
    probes, task_of_probe = [], []
    for number, task in enumerate(tasks):
        lines = (folder / "tasks" / task / "probes.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[:PROBES_PER_TASK]:
            one = json.loads(line)
            probes += encode.with_each(one["prompt"], [one["answer"]])
            task_of_probe.append(number)
    numbers = np.array(task_of_probe, dtype=np.int64)
    reference = ModelReference.parse(str(folder / "experts" / expert))
    options = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
    request = StateRequest(predictive=False, layers="last", pooling="mean")
    states = collect(
        [reference], [expert], 1, TokenizedProbes(tuple(probes), numbers, ""), request, options
    )
    pooled = states.hidden.values[0][0]
    return {task: pooled[numbers == number] for number, task in enumerate(tasks)}


if __name__ == "__main__":
    run(arguments(__doc__).parse_args(), PREDICTORS, scores)
