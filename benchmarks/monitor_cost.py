"""What the watch adds to a merge, against one plain forward pass of one expert.

Real weights (the demo's base and its three gently trained adapters), the demo's own recipe and
probes, without its choices: what is scored besides is no part of the comparison. The plain pass
is transformers' own over the same batches with one expert in memory already, its final states and
answers taken and nothing pooled. The floor is the matrix work of that pass alone: twice the
parameters in the layers and the tokens, at the rate of one large matrix product measured here.

    python benchmarks/monitor_cost.py [--rounds 3]
"""

import argparse
import inspect
import statistics
import tempfile
import time
from dataclasses import replace
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    base = ensure_base(cache_folder())
    with tempfile.TemporaryDirectory() as folder:
        options = MergeOptions(quiet=True, lora_merge_cache=str(Path(folder, "adapters")))
        recipe = read_recipe(write_recipe(DEMO, Path(folder), base, "good"))
        material = assess(recipe, options, profile=True).material
        assert material is not None
        plain, watched = [], []
        for _ in range(rounds):
            plain.append(plain_pass(material))
            watched.append(watch(material, options))
        tokens = batch_tokens(material)
        parameters = sum(p.numel() for p in whole(material).parameters())
        floor = 2 * parameters * tokens / matrix_rate(material.options.dtype)
    names = f"{material.options.dtype}, {torch.get_num_threads()} threads"
    print(f"{tokens} tokens with padding, {parameters / 1e6:.0f} M parameters, {names}")
    best, cost = statistics.median(plain), statistics.median(watched)
    print(f"matrix work alone  {floor:6.2f} s  {floor / best:5.2f} of a plain pass")
    print(f"plain pass         {best:6.2f} s   1.00")
    print(f"watch              {cost:6.2f} s  {cost / best:5.2f}")


def whole(material: Material) -> torch.nn.Module:
    models: list[torch.nn.Module] = []
    bare = [material.recipe.experts[0].model_copy(update={"lora": None})]
    each_model(bare, material.options, lambda _, model: models.append(model))
    return models[0]


def batches(material: Material) -> list:
    tokens = default_batch_tokens(material.options.device)
    probes = material.probes.probes
    return make_batches(probes, answers=True, decoder_start=None, max_tokens=tokens)


def batch_tokens(material: Material) -> int:
    return sum(batch.inputs.ids.numel() for batch in batches(material))


def plain_pass(material: Material) -> float:
    model = whole(material)
    last = depth(model.config)
    start = time.perf_counter()
    for batch in batches(material):
        forward(model, batch, (last,), last, True)
    return time.perf_counter() - start


def watch(material: Material, options: MergeOptions) -> float:
    own = Watch(material, "monitor", stop_at=None, blocking=True, exit_code=3)
    recipe = replace(material.recipe, config=material.recipe.config.model_copy(deep=True))
    found = rehearse(recipe, options, own, inspect.unwrap(run_merge))
    assert found is not None
    return found.seconds


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
