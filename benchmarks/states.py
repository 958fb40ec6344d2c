"""What it takes to measure experts, against floors, the obvious script and the merge itself.

Models of random weights, of the shape of a 0.5 B model with 152,000 tokens in its vocabulary (or
of another --shape, or smaller ones for --depths), stored in bfloat16. 32 probes of 128 tokens, or
others by --probes and --length. Every row but the floors is a process of its own, timed after its
imports; memory is its peak beyond what the imports took (Linux), on a GPU that of the device. The
largest floor counts; "of peak" is the matrix work as a share of the rate measured here.

    matrix work  2 × parameters in the layers and in the head × tokens, at the rate of one large
                 matrix product measured here in that precision
    bytes read   every weight byte once, by as many threads as there are processors
    bus          every weight byte to the GPU, at the rate of one large copy measured here
    obvious      for each expert AutoModelForCausalLM.from_pretrained, a forward pass with
                 output_hidden_states=True, the mean over each prompt's tokens
    whole        this package with every model loaded whole, hidden and predictive space
    ours         the same layer by layer, the trial of that included
    check        the same with the states and the spread of every layer, as `check` asks for

    python benchmarks/states.py              three experts, and the merges that they are for
    python benchmarks/states.py --depths     peak memory of 12, 24 and 48 layers
    python benchmarks/states.py --adapters   eight adapters of one base, and eight merged copies
    python benchmarks/states.py --heap       three experts, freed memory kept and given back

`--device cuda` runs the same there, `--rounds` repeats and takes the fastest, `--models` keeps the
three experts in a folder, where the next run finds them.
"""

import argparse
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import peft
import torch
import transformers
from mergekit.common import ModelReference

from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states.hidden_states import StateRequest, collect, default_batch_tokens
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, choose_dtype
from mergekit_collapse.states.tensor_files import TensorFiles

BIG = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SHAPES = {
    "0.5b": BIG,
    "7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}
SMALL = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
MODES = ("obvious", "whole", "ours", "check")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--merges", nargs="*", default=["linear", "ties"])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--depths", action="store_true")
    parser.add_argument("--adapters", action="store_true")
    parser.add_argument("--heap", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], given.child[1:], given)))
        return
    with tempfile.TemporaryDirectory(prefix="states-") as folder:
        work = Path(folder)
        if given.depths:
            depths(work, given)
        elif given.adapters:
            adapters(work, given)
        elif given.heap:
            heap(work, given)
        else:
            experts(work, given)


def experts(work: Path, given: argparse.Namespace) -> None:
    """Three full models, and what merging them takes."""
    shape, device = SHAPES[given.shape], given.device
    models = [(given.models or work) / f"{given.shape}-{i}" for i in range(3)]
    with ThreadPoolExecutor(len(models) if device != "cpu" else 1) as pool:
        # Its configuration is written first, its weights last.
        missing = [model for model in models if not list(model.glob("*.safetensors"))]
        list(pool.map(lambda model: run("make", [model], given), missing))
    work_flops, rate = flops(models, shape, given), matrix_rate(device)
    floors = {"matrix work": work_flops / rate, "bytes read": read(models)}
    if device != "cpu":
        floors["bus"] = sum(map(stored, models)) / bus_rate(device)
    print(f"3 experts of {given.shape}, {tokens(given)} tokens, {describe(device)}")
    print(
        f"{rate / 1e12:.3g} TFLOP/s in one large product, {sum(map(stored, models)) / 1e9:.1f} GB"
    )
    print(f"{'':22}{'seconds':>8}{'× floor':>9}{'of peak':>9}{'MB':>7}")
    for name, seconds in floors.items():
        print(f"{'floor: ' + name:22}{seconds:8.2f}")
    floor, found = max(floors.values()), {}
    for mode in given.rows:
        one = found[mode] = fastest(mode, models, given)
        share = work_flops / rate / one["seconds"]
        told = f"{one['seconds']:8.2f}{one['seconds'] / floor:9.2f}{share:9.1%}{one['mb']:7.0f}"
        print(f"{mode:22}{told}", flush=True)
    if not {"ours", "obvious"} <= found.keys():
        return
    ours = found["ours"]["seconds"]
    print(f"ours / obvious        {ours / found['obvious']['seconds']:8.2f}")
    allowed = memory_allowed(models[0], shape, given)
    print(f"embeddings + 2 layers + activations + 300 MB: {allowed:.0f} MB")
    for method in given.merges:
        seconds = merge(work, models, method, device)
        print(f"merge, {method:15}{seconds:8.2f}   gate and merge / merge {1 + ours / seconds:.2f}")


def depths(work: Path, given: argparse.Namespace) -> None:
    """Peak memory by the number of layers."""
    print(f"one expert of width 512, {tokens(given)} tokens, {describe(given.device)}")
    print(f"{'layers':>8}{'MB stored':>11}{'MB whole':>10}{'MB ours':>9}{'MB allowed':>12}")
    for count in (12, 24, 48):
        shape = {**SMALL, "num_hidden_layers": count}
        model = make_model(work / f"deep{count}", shape, 0, given.device)
        whole, ours = (run(mode, [model], given)["mb"] for mode in ("whole", "ours"))
        allowed = memory_allowed(model, shape, given)
        print(f"{count:8}{stored(model) / 1e6:11.0f}{whole:10.0f}{ours:9.0f}{allowed:12.0f}")


def adapters(work: Path, given: argparse.Namespace) -> None:
    """Eight LoRA experts on one base, and the same merged into eight copies."""
    base = make_model(work / "base", SHAPES[given.shape], 0, given.device)
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
    print(f"8 LoRA of rank 16 on {given.shape}, {tokens(given)} tokens, {describe(given.device)}")
    print(f"{'':34}{'seconds':>8}{'MB':>7}")
    rows = [
        ("eight merged copies, obvious", "obvious", copies),
        ("eight merged copies, ours", "ours", copies),
        ("eight adapters, ours", "ours", names),
    ]
    found = [(name, fastest(mode, models, given)) for name, mode, models in rows]
    for name, one in found:
        print(f"{name:34}{one['seconds']:8.2f}{one['mb']:7.0f}")
    ours = found[-1][1]["seconds"]
    for name, one in found[:-1]:
        print(f"adapters, ours / {name:32}{ours / one['seconds']:6.2f}")


def heap(work: Path, given: argparse.Namespace) -> None:
    """The same run where the C library keeps what is freed, and where it is left as it is."""
    given.device = "cpu"
    models = [make_model(work / f"expert{i}", BIG, i) for i in range(3)]
    # A setting of the user's own, here the default one, has the package leave all of them alone.
    settings = {"kept": {}, "given back": {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}}
    print(f"{'freed memory':14}{'seconds':>8}{'in the system':>15}{'page faults':>13}{'MB':>6}")
    for _ in range(given.rounds):
        for name, setting in settings.items():
            one = run("ours", models, given, setting)
            told = f"{one['seconds']:8.1f}{one['system']:15.1f}{one['faults'] / 1e6:11.2f} M"
            print(f"{name:14}{told}{one['mb']:6.0f}", flush=True)


def make_model(folder: Path, shape: dict[str, Any], seed: int, device: str = "cpu") -> Path:
    """A Llama of random weights."""
    generator = torch.Generator(device).manual_seed(seed)
    config = transformers.LlamaConfig(**shape, max_position_embeddings=2048, dtype="bfloat16")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
        else:
            torch.nn.init.ones_(parameter)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def stored(model: Path) -> int:
    """Bytes of the weights."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def tokens(given: argparse.Namespace) -> int:
    return int(given.probes * given.length)


def fastest(mode: str, models: list[Any], given: argparse.Namespace) -> dict[str, float]:
    return min((run(mode, models, given) for _ in range(given.rounds)), key=lambda r: r["seconds"])


def run(
    mode: str,
    models: list[Any],
    given: argparse.Namespace,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, float]:
    options = ("device", "shape", "probes", "length")
    told = [f"--{name}={getattr(given, name)}" for name in options]
    command = [sys.executable, __file__, *told, "--child", mode, *map(str, models)]
    own = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        raise SystemExit(f"{mode}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(mode: str, models: list[str], given: argparse.Namespace) -> dict[str, float]:
    """Run one row in this process; seconds, and MB beyond the imports."""
    device, size = given.device, (given.probes, given.length)
    ids = torch.randint(3, 30_000, size, generator=torch.Generator().manual_seed(0))
    if device != "cpu":
        # The device is made ready once, like an import.
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    forget_peak()
    before, start = peak_mb(device), time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    if mode == "make":
        for model in models:
            make_model(Path(model), SHAPES[given.shape], int(model[-1]), device)
    elif mode == "obvious":
        for model in models:
            obvious(model, ids, device)
    else:
        measure(models, ids, device, mode)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "mb": peak_mb(device) - before,
        "faults": now.ru_minflt - used.ru_minflt,
        "system": now.ru_stime - used.ru_stime,
    }


def read(models: list[Path]) -> float:
    """Seconds of reading every byte into memory that is used again."""
    threads, piece = len(os.sched_getaffinity(0)), 2**24
    buffers = queue.SimpleQueue[bytearray]()
    for _ in range(threads):
        buffers.put(bytearray(piece))

    def part(place: tuple[Path, int]) -> None:
        buffer, done = buffers.get(), 0
        try:
            with place[0].open("rb", buffering=0) as file:
                file.seek(place[1])
                while done < piece and (got := file.readinto(memoryview(buffer)[done:])):
                    done += got
        finally:
            buffers.put(buffer)

    files = [file for model in models for file in model.glob("*.safetensors")]
    places = [(file, at) for file in files for at in range(0, file.stat().st_size, piece)]
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, places))
    return time.perf_counter() - start


@torch.no_grad()
def obvious(folder: str, ids: torch.Tensor, device: str) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).to(device)
    # All at once, unless that is more than a GPU is given at a time.
    step = len(ids) if device == "cpu" else max(1, default_batch_tokens(device) // ids.shape[1])
    pooled = []
    for part in ids.split(step):
        states = model(part.to(device), output_hidden_states=True).hidden_states[-1]
        pooled.append(states.float().mean(dim=1).cpu().numpy())
    return np.concatenate(pooled)


def measure(models: list[str], ids: torch.Tensor, device: str, mode: str) -> None:
    references = [ModelReference.parse(model) for model in models]
    rows = tuple(TokenizedProbe(tuple(row), ()) for row in ids.tolist())
    probes = TokenizedProbes(rows, np.zeros(len(rows), dtype=np.int64), "")
    options = LoadOptions(device=device, dtype=choose_dtype(device), progress=False)
    trial = None if mode == "whole" else LayeredTrial(references, probes, options)
    request = StateRequest(True, "last", "mean", profile=mode == "check")
    states = collect(references, models, len(models), probes, request, options, trial=trial)
    assert states.engine == ("layer by layer" if trial else "whole-model"), states.engine


def forget_peak() -> None:
    """A process begins with the peak of the one that started it."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def memory_allowed(model: Path, shape: dict[str, Any], given: argparse.Namespace) -> float:
    """Embeddings, two layers, the activations of one layer, and 300 MB."""
    files = TensorFiles(model)
    width = choose_dtype(given.device).itemsize / torch.bfloat16.itemsize
    layer = sum(files.nbytes(n) for n in files.names if ".layers.0." in n)
    embeddings = sum(files.nbytes(n) for n in files.names if "embed" in n)
    # The widest of a layer: gate, up and their product, of one batch of all probes, or of as many
    # as a GPU is given at a time; and the states of all.
    at_once = tokens(given)
    if given.device != "cpu":
        at_once = min(at_once, default_batch_tokens(given.device))
    activations = at_once * (3 * shape["intermediate_size"] + 4 * shape["hidden_size"]) * 2
    activations += (tokens(given) - at_once) * shape["hidden_size"] * 2
    return float(width * (embeddings + 2 * layer + activations)) / 1e6 + 300


def flops(models: list[Path], shape: dict[str, Any], given: argparse.Namespace) -> float:
    files = TensorFiles(models[0])
    layers = sum(files.nbytes(n) for n in files.names if ".layers." in n) / 2
    head = shape["vocab_size"] * shape["hidden_size"]
    # The head is read at one position of each probe.
    return float(2 * len(models) * (layers * tokens(given) + head * given.probes))


def matrix_rate(device: str) -> float:
    """FLOP/s of one large matrix product in the precision that is measured in."""
    size = 4096 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(choose_dtype(device))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def bus_rate(device: str) -> float:
    """Bytes per second of one large copy to the device."""
    here = torch.zeros(2**28, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(here, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        there.copy_(here)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return here.nbytes / best


def merge(work: Path, models: list[Path], method: str, device: str) -> float:
    """Seconds of the stock command."""
    rows = "".join(f"  - model: {m}\n    parameters: {{weight: 1, density: 0.5}}\n" for m in models)
    base = f"base_model: {models[0]}\n" if method == "ties" else ""
    recipe = work / f"{method}.yml"
    if method == "ties":
        rows = rows[rows.index("  - model", 5) :]
    recipe.write_text(f"merge_method: {method}\nmodels:\n{rows}{base}dtype: bfloat16\n")
    program = str(Path(sys.executable).with_name("mergekit-yaml"))
    command = [program, str(recipe), str(work / method), "--quiet"]
    command += [] if device == "cpu" else ["--cuda"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def describe(device: str) -> str:
    name = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} threads"
    return f"{name}, {str(choose_dtype(device)).removeprefix('torch.')}"


if __name__ == "__main__":
    main()
