"""What the watch adds to a merge, against one plain forward pass of one expert.

Real weights (the demo's base and its three gently trained adapters) and the demo's own probes.
The method is `linear`, which leaves most of the time to the watch, whose own cost does not depend
on it. The plain pass is transformers' own over the same batches with one expert in memory already,
its final states and answers taken and nothing pooled. The floor is the matrix work of that pass
alone: twice the parameters and the tokens, at the rate of one large matrix product measured here.
A round times both, one after the other; the ratio is the median of the rounds' own.

    python benchmarks/monitor_cost.py [--rounds 7]
"""

import argparse
import inspect
import re
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

import mergekit_collapse.demo
from mergekit_collapse.assessment import assess
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.run import write_recipe
from mergekit_collapse.demo.smollm2 import ensure_base
from mergekit_collapse.material import Material
from mergekit_collapse.recipe.recipe import read_recipe
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.forward import depth, forward
from mergekit_collapse.states.hidden_states import default_batch_tokens
from mergekit_collapse.states.loader import each_model
from mergekit_collapse.watch.rehearsal import rehearse
from mergekit_collapse.watch.watch import Watch

DEMO = Path(mergekit_collapse.demo.__file__).parent


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds on the clock, and of all processors together."""

    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    base = ensure_base(cache_folder())
    with tempfile.TemporaryDirectory() as folder:
        options = MergeOptions(quiet=True, lora_merge_cache=str(Path(folder, "adapters")))
        path = write_recipe(DEMO, Path(folder), base, "good")
        text = path.read_text(encoding="utf-8").replace(": ties", ": linear")
        path.write_text(re.sub(r"base_model: .*|, density: [0-9.]+", "", text), encoding="utf-8")
        material = assess(read_recipe(path), options, profile=True).material
        assert material is not None
        model = whole(material)
        tokens = sum(batch.inputs.ids.numel() for batch in batches(material))
        costs = [(plain_pass(model, material), watch(material, options)) for _ in range(rounds)]
        parameters = sum(p.numel() for p in model.parameters())
        floor = 2 * parameters * tokens / matrix_rate(material.options.dtype)
    names = f"{material.options.dtype}, {torch.get_num_threads()} threads, {rounds} rounds"
    print(f"{tokens} tokens with padding, {parameters / 1e6:.0f} M parameters, {names}")
    plain = statistics.median(one.wall for one, _ in costs)
    watched = statistics.median(one.wall for _, one in costs)
    print(f"matrix work alone  {floor:6.2f} s")
    print(f"plain pass         {plain:6.2f} s")
    print(f"watch              {watched:6.2f} s")
    for name in ("wall", "processor"):
        ratios = sorted(getattr(b, name) / getattr(a, name) for a, b in costs)
        middle = statistics.median(ratios)
        print(f"watch / plain, {name:9}  {middle:.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def whole(material: Material) -> torch.nn.Module:
    models: list[torch.nn.Module] = []
    bare = [material.recipe.experts[0].model_copy(update={"lora": None})]
    each_model(bare, material.options, lambda _, model: models.append(model))
    return models[0]


def batches(material: Material) -> list:
    tokens = default_batch_tokens(material.options.device)
    probes = material.probes.probes
    return make_batches(probes, answers=True, decoder_start=None, max_tokens=tokens)


def plain_pass(model: torch.nn.Module, material: Material) -> Cost:
    last = depth(model.config)
    start, used = time.perf_counter(), time.process_time()
    for batch in batches(material):
        forward(model, batch, (last,), last, True)
    return Cost(time.perf_counter() - start, time.process_time() - used)


def watch(material: Material, options: MergeOptions) -> Cost:
    own = TimedWatch(material, "monitor", stop_at=None, blocking=True, exit_code=3)
    recipe = replace(material.recipe, config=material.recipe.config.model_copy(deep=True))
    found = rehearse(recipe, options, own, inspect.unwrap(run_merge))
    assert found is not None
    return Cost(found.seconds, own.processor)


class TimedWatch(Watch):
    """Counts processor time as well."""

    processor = 0.0

    def step(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        used = time.process_time()
        super().step(stage, tensors)
        self.processor += time.process_time() - used


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    left = torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        left @ left
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
