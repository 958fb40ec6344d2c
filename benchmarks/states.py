"""What it takes to measure experts, against floors, the obvious script and the merge itself.

Models of random weights, of the shape of a 0.5 B model with 152,000 tokens in its vocabulary (or
smaller ones for --depths), stored in bfloat16. 32 probes of 128 tokens. Every row is a process of
its own, timed after its imports; memory is its peak beyond what the imports took (Linux).

    floors      every weight byte read once; and 2 × parameters in the layers and in the head ×
                tokens, at the rate of one large matrix product measured here in that precision
    obvious     for each expert AutoModelForCausalLM.from_pretrained, a forward pass with
                output_hidden_states=True, the mean over each prompt's tokens
    whole       this package with every model loaded whole, hidden and predictive space
    ours        the same as `check` does it: layer by layer, the trial of that included

    python benchmarks/states.py              three experts, and the merges that they are for
    python benchmarks/states.py --depths     peak memory of 12, 24 and 48 layers
    python benchmarks/states.py --adapters   eight adapters of one base, and eight merged copies
    python benchmarks/states.py --heap       three experts, freed memory kept and given back

`--device cuda` runs the same there, `--rounds` repeats and takes the fastest.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import peft
import torch
import transformers
from mergekit.common import ModelReference

from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, choose_dtype
from mergekit_collapse.states.tensor_files import TensorFiles

PROBES, LENGTH = 32, 128
BIG = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SMALL = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depths", action="store_true")
    parser.add_argument("--adapters", action="store_true")
    parser.add_argument("--heap", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], given.child[1:], given.device)))
        return
    with tempfile.TemporaryDirectory(prefix="states-") as folder:
        work = Path(folder)
        if given.depths:
            depths(work, given.device)
        elif given.adapters:
            adapters(work, given.device, given.rounds)
        elif given.heap:
            heap(work, given.rounds)
        else:
            experts(work, given.device, given.rounds)


def experts(work: Path, device: str, rounds: int) -> None:
    """Three full models, and what merging them takes."""
    models = [make_model(work / f"expert{i}", BIG, i) for i in range(3)]
    floor = matrix_floor(models, device)
    found = {
        mode: fastest(mode, models, device, rounds) for mode in ("read", "obvious", "whole", "ours")
    }
    print(f"3 experts of 0.5 B, {PROBES * LENGTH} tokens, {describe(device)}")
    print(f"{'':22}{'seconds':>8}{'× floor':>9}{'MB':>7}")
    print(f"{'floor: matrix work':22}{floor:8.2f}")
    for mode, one in found.items():
        name = "floor: bytes read" if mode == "read" else mode
        print(f"{name:22}{one['seconds']:8.2f}{one['seconds'] / floor:9.2f}{one['mb']:7.0f}")
    ours = found["ours"]["seconds"]
    print(f"ours / obvious        {ours / found['obvious']['seconds']:8.2f}")
    allowed = memory_allowed(models[0], BIG, device)
    print(f"embeddings + 2 layers + activations + 300 MB: {allowed:.0f} MB")
    for method in ("linear", "ties"):
        seconds = merge(work, models, method)
        print(f"merge, {method:15}{seconds:8.2f}   gate and merge / merge {1 + ours / seconds:.2f}")


def depths(work: Path, device: str) -> None:
    """Peak memory by the number of layers."""
    print(f"one expert of width 512, {PROBES * LENGTH} tokens, {describe(device)}")
    print(f"{'layers':>8}{'MB stored':>11}{'MB whole':>10}{'MB ours':>9}{'MB allowed':>12}")
    for count in (12, 24, 48):
        shape = {**SMALL, "num_hidden_layers": count}
        model = make_model(work / f"deep{count}", shape, 0)
        stored = sum(f.stat().st_size for f in model.glob("*.safetensors")) / 1e6
        whole, ours = (run(mode, [model], device)["mb"] for mode in ("whole", "ours"))
        allowed = memory_allowed(model, shape, device)
        print(f"{count:8}{stored:11.0f}{whole:10.0f}{ours:9.0f}{allowed:12.0f}")


def adapters(work: Path, device: str, rounds: int) -> None:
    """Eight LoRA experts on one base, and the same merged into eight copies."""
    base = make_model(work / "base", BIG, 0)
    names, copies = [], []
    for i in range(8):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        torch.manual_seed(i)
        tuned: Any = peft.get_peft_model(model, config)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        tuned.save_pretrained(work / f"adapter{i}")
        names.append(f"{base}+{work / f'adapter{i}'}")
        tuned.merge_and_unload().save_pretrained(work / f"copy{i}")
        copies.append(work / f"copy{i}")
    print(f"8 LoRA of rank 16 on 0.5 B, {PROBES * LENGTH} tokens, {describe(device)}")
    print(f"{'':34}{'seconds':>8}{'MB':>7}")
    rows = [
        ("eight merged copies, obvious", "obvious", copies),
        ("eight merged copies, ours", "ours", copies),
        ("eight adapters, ours", "ours", names),
    ]
    found = [(name, fastest(mode, models, device, rounds)) for name, mode, models in rows]
    for name, one in found:
        print(f"{name:34}{one['seconds']:8.2f}{one['mb']:7.0f}")
    ours = found[-1][1]["seconds"]
    for name, one in found[:-1]:
        print(f"adapters, ours / {name:32}{ours / one['seconds']:6.2f}")


def heap(work: Path, rounds: int) -> None:
    """The same run where the C library keeps what is freed, and where it is left as it is."""
    models = [make_model(work / f"expert{i}", BIG, i) for i in range(3)]
    # A setting of the user's own, here the default one, has the package leave all of them alone.
    settings = {"kept": {}, "given back": {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}}
    print(f"{'freed memory':14}{'seconds':>8}{'in the system':>15}{'page faults':>13}{'MB':>6}")
    for _ in range(rounds):
        for name, setting in settings.items():
            one = run("ours", models, "cpu", setting)
            told = f"{one['seconds']:8.1f}{one['system']:15.1f}{one['faults'] / 1e6:11.2f} M"
            print(f"{name:14}{told}{one['mb']:6.0f}", flush=True)


def make_model(folder: Path, shape: dict[str, Any], seed: int) -> Path:
    """A Llama of random weights."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**shape, max_position_embeddings=2048, dtype="bfloat16")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else parameter.data.fill_(
            1
        )
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def fastest(mode: str, models: list[Any], device: str, rounds: int) -> dict[str, float]:
    return min((run(mode, models, device) for _ in range(rounds)), key=lambda one: one["seconds"])


def run(
    mode: str, models: list[Any], device: str, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, float]:
    command = [sys.executable, __file__, "--device", device, "--child", mode, *map(str, models)]
    own = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        raise SystemExit(f"{mode}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(mode: str, models: list[str], device: str) -> dict[str, float]:
    """Run one row in this process; seconds, and MB beyond the imports."""
    ids = torch.randint(3, 30_000, (PROBES, LENGTH), generator=torch.Generator().manual_seed(0))
    if device != "cpu":
        # The device is made ready once, like an import.
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    forget_peak()
    before, start = peak_mb(device), time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    if mode == "read":
        for model in models:
            files = TensorFiles(Path(model))
            for name in files.names:
                files.read(name)
    elif mode == "obvious":
        for model in models:
            obvious(model, ids, device)
    else:
        measure(models, ids, device, layered=mode == "ours")
    if device != "cpu":
        torch.cuda.synchronize()
    seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "mb": peak_mb(device) - before,
        "faults": now.ru_minflt - used.ru_minflt,
        "system": now.ru_stime - used.ru_stime,
    }


@torch.no_grad()
def obvious(folder: str, ids: torch.Tensor, device: str) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).to(device)
    states = model(ids.to(device), output_hidden_states=True).hidden_states[-1]
    pooled: np.ndarray = states.float().mean(dim=1).cpu().numpy()
    return pooled


def measure(models: list[str], ids: torch.Tensor, device: str, *, layered: bool) -> None:
    references = [ModelReference.parse(model) for model in models]
    rows = tuple(TokenizedProbe(tuple(row), ()) for row in ids.tolist())
    probes = TokenizedProbes(rows, np.zeros(len(rows), dtype=np.int64), "")
    options = LoadOptions(device=device, dtype=choose_dtype(device), progress=False)
    trial = LayeredTrial(references, probes, options) if layered else None
    request = StateRequest(True, "last", "mean")
    states = collect(references, models, len(models), probes, request, options, trial=trial)
    assert states.engine == ("layer by layer" if layered else "whole-model"), states.engine


def forget_peak() -> None:
    """A process begins with the peak of the one that started it."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def memory_allowed(model: Path, shape: dict[str, Any], device: str) -> float:
    """Embeddings, two layers, the activations of one layer, and 300 MB."""
    files = TensorFiles(model)
    width = choose_dtype(device).itemsize / torch.bfloat16.itemsize
    layer = sum(files.nbytes(n) for n in files.names if ".layers.0." in n)
    embeddings = sum(files.nbytes(n) for n in files.names if "embed" in n)
    # The widest of a layer: gate, up and their product, of one batch of all probes.
    tokens = PROBES * LENGTH
    activations = tokens * (3 * shape["intermediate_size"] + 4 * shape["hidden_size"]) * 2
    return float(width * (embeddings + 2 * layer + activations)) / 1e6 + 300


def matrix_floor(models: list[Path], device: str) -> float:
    files = TensorFiles(models[0])
    layers = sum(files.nbytes(n) for n in files.names if ".layers." in n) / 2
    head = BIG["vocab_size"] * BIG["hidden_size"]
    # The head is read at one position of each probe.
    flops = 2 * len(models) * (layers * PROBES * LENGTH + head * PROBES)
    return float(flops / matrix_rate(device))


def matrix_rate(device: str) -> float:
    """FLOP/s of one large matrix product in the precision that is measured in."""
    a = torch.randn(4096, 4096, device=device).to(choose_dtype(device))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * 4096**3 / best


def merge(work: Path, models: list[Path], method: str) -> float:
    """Seconds of the stock command."""
    rows = "".join(f"  - model: {m}\n    parameters: {{weight: 1, density: 0.5}}\n" for m in models)
    base = f"base_model: {models[0]}\n" if method == "ties" else ""
    recipe = work / f"{method}.yml"
    if method == "ties":
        rows = rows[rows.index("  - model", 5) :]
    recipe.write_text(f"merge_method: {method}\nmodels:\n{rows}{base}dtype: bfloat16\n")
    command = [
        str(Path(sys.executable).with_name("mergekit-yaml")),
        str(recipe),
        str(work / method),
    ]
    start = time.perf_counter()
    subprocess.run([*command, "--quiet"], check=True, capture_output=True)
    return time.perf_counter() - start


def describe(device: str) -> str:
    name = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} threads"
    return f"{name}, {str(choose_dtype(device)).removeprefix('torch.')}"


if __name__ == "__main__":
    main()
