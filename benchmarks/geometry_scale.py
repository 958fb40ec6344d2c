"""Time and memory of the geometry for many experts, against the machine's own matrix rate.

Experts are one base and a direction of their own, every tenth of them a near twin of the one
before, one of them an exact twin; from a seed, one expert at a time, into a file where they are
over 1 GiB. The floor is that of one N × N Gram matrix a probe, 2 N² P d operations, at the rate
of numpy's float32 product of two squares on this machine just now. A symmetric product is half
of that, which is why a ratio can be below 1. The peak is that of the process while the step
runs, less what it was before: pages of the file of states that are in memory are not counted.

    python benchmarks/geometry_scale.py
    python benchmarks/geometry_scale.py --full
"""

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.geometry.grouping import group_curve
from mergekit_collapse.geometry.rows import StateRows, select_probes
from mergekit_collapse.geometry.scales import layer_scales
from mergekit_collapse.states import storage
from mergekit_collapse.states.states import SpaceStates

TASKS = 4
FULL = (1000, 512, 4096)


def made_states(experts: int, probes: int, width: int, seed: int) -> SpaceStates:
    values = storage.zeros((experts, probes, width), "the states of the benchmark")
    base = np.random.default_rng(seed).standard_normal((probes, width), dtype=np.float32)
    for expert in range(experts):
        rng = np.random.default_rng([seed, expert])
        values[expert] = rng.standard_normal((probes, width), dtype=np.float32)
        values[expert] *= 0.5
        values[expert] += base
        if expert % 10 == 9:
            noise = rng.standard_normal((probes, width), dtype=np.float32)
            values[expert] = values[expert - 1] + 1e-4 * noise
    values[1] = values[0]
    return SpaceStates("hidden", "mean", (1,), (values,), np.arange(probes, dtype=np.int64))


def matrix_rate(size: int = 4096) -> float:
    """Operations a second, the best of five."""
    first, second = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    return 2 * size**3 / min(timed(lambda: first @ second)[0] for _ in range(5))


def timed(task: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result


def own_memory() -> int:
    """Bytes of the process that no file backs (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def peaked(task: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, GiB beyond what was there before, and the result."""
    before, peak, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds, result = timed(task)
    finally:
        done.set()
        watcher.join()
    return seconds, max(0, peak[0] - before) / 2**30, result


def largest_error(rows: StateRows, squared: np.ndarray, scale: float, seed: int) -> float:
    """Relative, of D² of 200 pairs, twins among them, against float64 and subtraction."""
    rng = np.random.default_rng(seed)
    experts, worst = len(squared), 0.0
    near = [(i - 1, i) for i in range(9, experts, 10)][:100]
    far = [tuple(rng.choice(experts, 2, replace=False)) for _ in range(200 - len(near))]
    values = rows.states.values[0]
    for i, j in [*near, *far, (0, 1)]:
        difference = values[i].astype(np.float64) - values[j]
        exact = float(np.square(difference).sum()) / rows.probe_count / scale
        error = abs(float(squared[i, j]) - exact)
        worst = max(worst, error / exact if exact else (np.inf if error else 0.0))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--probes", type=int, default=128)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--full", action="store_true", help="1,000 experts, 512 probes, width 4,096"
    )
    parser.add_argument("--measure", action="store_true", help="the whole geometry after the steps")
    options = parser.parse_args()
    n, p, d = FULL if options.full else (options.experts, options.probes, options.width)

    states = made_states(n, p, d, options.seed)
    rows = select_probes(states, np.arange(p, dtype=np.int64))
    share = np.full((1, p), 1 / p)
    print(f"N = {n} experts, P = {p} probes, d = {d}: states of {4 * n * p * d / 2**30:.1f} GiB")
    reading = timed(lambda: [float(one.sum()) for one in states.values[0]])[0]
    rate = matrix_rate()
    floor = 2 * n**2 * p * d / rate
    print(
        f"float32 product of 4096 × 4096: {rate / 1e9:.0f} GFLOP/s; floor {floor:.1f} s;", end=" "
    )
    print(f"states read once: {reading:.1f} s\n")
    print("| step | seconds | over the floor | GiB at most |")
    print("| --- | ---: | ---: | ---: |")

    def step(name: str, task: Callable[[], object]) -> object:
        seconds, memory, result = peaked(task)
        print(f"| {name} | {seconds:.1f} | {seconds / floor:.2f} | {memory:.2f} |", flush=True)
        return result

    scales = step("scale", lambda: layer_scales(rows, range(n), "variance", share, "all probes"))
    scale = scales[0].squared
    whole = np.zeros(p, dtype=np.int64)
    found = step("pair distances", lambda: probe_distances(rows, [scale], whole))
    squared = found.mean_squared
    ball = step("enclosing ball", lambda: enclosing_ball(squared))
    few = squared[: min(n, 64), : min(n, 64)]
    step(f"partition curve of {len(few)}", lambda: group_curve(few))
    if options.measure:
        tasks = [(f"task {t}", t) for t in range(TASKS)]
        owned = np.arange(p) * TASKS // p
        weights = np.full(n, 1 / n)
        step(
            "all of it, with intervals",
            lambda: measure(
                states, n, owned, tasks, scale="variance", coefficients=weights, seed=0
            ),
        )
    error = largest_error(rows, squared, scale, options.seed)
    touching = int((ball.weights > 0).sum())
    print(f"\nLargest relative error of D² over 201 pairs, near twins among them: {error:.1e}.")
    print(f"r² = {ball.radius_squared:.4f}, {touching} experts with weight.")
    print(f"Exact twins at {squared[0, 1]:g}.")
    slope = squared @ ball.weights
    gap = float(slope.max() - ball.weights @ slope) / float(squared.max())
    print(f"Gap of the ball's proof: {gap:.1e} of the squared diameter.")


if __name__ == "__main__":
    main()
