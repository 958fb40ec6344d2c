"""Time, error and memory of the Karcher means against MergeKit's `karcher` and `linear`.

Every method runs once a round, in turns, so that a busy machine slows all alike; a time is the
median over rounds of its ratio to `linear` in the same round. The error is relative, against the
iteration in float64 and full dimension, over all tensors of a case. Extra memory is what the peak
of the process grows by while the method runs on the largest tensor of the case, result included, in
units of that tensor; every method has a fresh process for it.

A second table has errors alone, for unequal weights and norms, by how far the experts are from
their base; MergeKit's `karcher` has no weights, so it is not in it.

torch gets one thread, unless told otherwise: where cores are shared, threads that wait for one
another are most of the time of the methods that wake them.

    python benchmarks/karcher.py --rounds 5
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mergekit.merge_methods import merge_tensors

from mergekit_collapse.merge_methods import register_methods

METHODS = ("linear", "rescaled_mean", "weighted_karcher", "karcher")
EXPERTS = 3
# Experts of one base are this far from it, in units of its spread.
DIFFERENCE = 0.1

# Of a llama of 0.1 billion parameters: (times, shape).
SMALL_MODEL = [
    (1, (32000, 768)),
    *[(10, shape) for shape in 2 * [(768,)] + 4 * [(768, 768)] + 2 * [(2048, 768)] + [(768, 2048)]],
    (1, (768,)),
]
CASES = {"one tensor of 4096 × 4096": [(1, (4096, 4096))], "a 0.1 B llama": SMALL_MODEL}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Tensors = list[torch.Tensor]


def experts(
    shape: tuple[int, ...], seed: int, dtype: torch.dtype, difference: float = DIFFERENCE
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    base = 0.02 * torch.randn(shape, generator=generator)
    moved = [
        base + 0.02 * difference * torch.randn(shape, generator=generator) for _ in range(EXPERTS)
    ]
    return [each.to(dtype) for each in moved]


def groups(case: str, dtype: torch.dtype) -> list[Tensors]:
    shapes = [shape for times, shape in CASES[case] for _ in range(times)]
    return [experts(shape, seed, dtype) for seed, shape in enumerate(shapes)]


def merge(method: str, tensors: Tensors, weight: float | tuple[float, ...] = 1.0) -> torch.Tensor:
    parameters = {} if method == "karcher" else {"weight": weight}
    return merge_tensors(tensors, method, parameters=parameters)


def reference(
    tensors: Tensors, weights: tuple[float, ...] = (1.0,) * EXPERTS, steps: int = 5
) -> torch.Tensor:
    """The Karcher mean from its formula, element by element in float64."""
    shares = [weight / sum(weights) for weight in weights]
    norms = [t.double().norm() for t in tensors]
    units = [t.double() / norm for t, norm in zip(tensors, norms, strict=True)]
    mean = units[0].clone()
    for _ in range(steps):
        step = torch.zeros_like(mean)
        for share, unit in zip(shares, units, strict=True):
            angle = torch.arccos((mean * unit).sum().clamp(-1, 1))
            step += share / torch.sinc(angle / torch.pi) * (unit - torch.cos(angle) * mean)
        mean = torch.cos(step.norm()) * mean + torch.sinc(step.norm() / torch.pi) * step
        mean /= mean.norm()
    return mean * sum(share * norm for share, norm in zip(shares, norms, strict=True))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def error(method: str, data: list[Tensors], exact: list[torch.Tensor]) -> float:
    squared = sum(
        float((merge(method, t).double() - e).square().sum())
        for t, e in zip(data, exact, strict=True)
    )
    return (squared / sum(float(e.square().sum()) for e in exact)) ** 0.5


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def extra_memory(case: str, dtype: str, method: str) -> float:
    """In this process, so run it in a fresh one."""
    # Fills caches and thread pools, of a size that does not matter.
    merge(method, experts((64, 64), 0, DTYPES[dtype]))
    shape = max((shape for _, shape in CASES[case]), key=lambda s: torch.Size(s).numel())
    tensors = experts(shape, 0, DTYPES[dtype])
    before, peak, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.0005):
            peak[0] = max(peak[0], resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = merge(method, tensors)
    done.set()
    watcher.join()
    return (max(peak[0], resident_bytes()) - before) / result.nbytes


def in_fresh_process(case: str, dtype: str, method: str) -> float:
    arguments = [sys.executable, __file__, "--memory", json.dumps([case, dtype, method])]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return float(done.stdout)


def rows(case: str, dtype: str, rounds: int) -> list[str]:
    data = groups(case, DTYPES[dtype])
    exact = [reference(tensors) for tensors in data]
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            times[method].append(seconds(lambda m=method: [merge(m, t) for t in data]))
    lines = []
    for method in METHODS:
        to_linear, to_karcher = (
            statistics.median(t / o for t, o in zip(times[method], times[other], strict=True))
            for other in ("linear", "karcher")
        )
        cells = [
            f"{to_linear:.2f}",
            f"{1 / to_karcher:.1f}",
            f"{error(method, data, exact):.1e}",
            f"{in_fresh_process(case, dtype, method):.1f}",
        ]
        lines.append(f"| {case}, {dtype} | `{method}` | {' | '.join(cells)} |")
    return lines


def unequal() -> list[str]:
    weights, scales = (0.6, 0.3, 0.1), (1.0, 1.2, 0.8)
    lines = []
    for difference in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        drawn = experts((1024, 1024), 0, torch.float32, difference)
        tensors = [scale * t for scale, t in zip(scales, drawn, strict=True)]
        exact = reference(tensors, weights, steps=30)
        errors = [
            f"{float((merge(method, tensors, weights) - exact).norm() / exact.norm()):.1e}"
            for method in METHODS[:-1]
        ]
        lines.append(f"| {difference:g} | {' | '.join(errors)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    register_methods()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(extra_memory(*json.loads(arguments.memory)))
        return
    print(
        f"{EXPERTS} experts, torch {torch.__version__}, threads: {torch.get_num_threads()}, "
        f"{platform.machine()}; medians of {arguments.rounds} rounds\n"
    )
    print(
        "| tensors | method | time, linear = 1 | times faster than karcher | error | extra memory |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        for dtype in DTYPES:
            print("\n".join(rows(case, dtype, arguments.rounds)), flush=True)
    print(f"\n| distance from the base | {' | '.join(f'`{m}`' for m in METHODS[:-1])} |")
    print("| --- | ---: | ---: | ---: |")
    print("\n".join(unequal()))


if __name__ == "__main__":
    main()
