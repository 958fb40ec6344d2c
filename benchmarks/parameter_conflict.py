"""Time and memory of the parameter conflict, against reading the files and against whole models.

`read` reads every byte of every weight file once; `streamed` is `parameter_conflict`; `whole` is
the obvious script: `from_pretrained` for all models, one long float32 task vector each, and the
same four formulas pair by pair. All get the same random Llamas, an untied base and experts a
hundredth of its spread away, in a fresh process for every run, in turns, with the files in the
page cache. A time is the median over rounds of its ratio to `read` in the same round, without
imports; memory is the largest peak of a process, less that of one that has only imported the
same, mapped files included; it is read from Linux's /proc.

    python benchmarks/parameter_conflict.py --rounds 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mergekit.common import ModelReference
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mergekit_collapse.parameters.parameter_conflict import parameter_conflict

EXPERTS = 3
CONFIG = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "tie_word_embeddings": False,
}


def make_models(folder: Path) -> list[Path]:
    """The base and the experts, in bfloat16."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**CONFIG))
    paths = []
    for name in ("base", *(f"expert{i}" for i in range(EXPERTS))):
        model = LlamaForCausalLM(base.config)
        with torch.no_grad():
            for mine, origin in zip(model.parameters(), base.parameters(), strict=True):
                moved = 0.0 if name == "base" else 0.0002
                mine.copy_(origin + moved * torch.randn(origin.shape))
        model.bfloat16().save_pretrained(folder / name)
        paths.append(folder / name)
    return paths


def read(paths: list[Path]) -> float:
    for path in paths:
        with open(path / "model.safetensors", "rb", buffering=0) as file:
            while file.read(2**20):
                pass
    return 0.0


def streamed(paths: list[Path]) -> float:
    base, *experts = (ModelReference.parse(str(path)) for path in paths)
    found = parameter_conflict(experts, [str(e) for e in experts], base, progress=False)
    return found.mean_cosine or 0.0


def whole(paths: list[Path]) -> float:
    models = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16) for p in paths]
    flat = [torch.cat([p.detach().float().flatten() for p in m.parameters()]) for m in models]
    vectors, cosines = [each - flat[0] for each in flat[1:]], []
    for i, one in enumerate(vectors):
        for two in vectors[i + 1 :]:
            a, b, clash = one.abs(), two.abs(), one * two < 0
            _ = 1 - torch.minimum(a, b).sum() / torch.maximum(a, b).sum()
            _ = clash.sum() / ((one != 0) | (two != 0)).sum()
            _ = (a + b)[clash].sum() / (a + b).sum()
            cosines.append(float(torch.dot(one, two) / (one.norm() * two.norm())))
    return sum(cosines) / len(cosines)


WAYS = {"import": lambda paths: 0.0, "read": read, "streamed": streamed, "whole": whole}


def child(way: str, paths: list[Path]) -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    cosine = WAYS[way](paths)
    seconds = time.perf_counter() - begin
    # Not ru_maxrss, which begins with what the parent held. Linux alone has this file.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "mebibytes": peak, "cosine": cosine}))


def run(way: str, paths: list[Path]) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turn (default 3)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options.way, options.paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = make_models(Path(folder))
        size = sum((p / "model.safetensors").stat().st_size for p in paths)
        run("read", paths)
        rounds = [{way: run(way, paths) for way in WAYS} for _ in range(options.rounds)]
    print(f"{len(paths)} models of {size / len(paths) / 2**20:.0f} MiB, one thread")
    for way in list(WAYS)[1:]:
        ratio = statistics.median(r[way]["seconds"] / r["read"]["seconds"] for r in rounds)
        seconds = statistics.median(r[way]["seconds"] for r in rounds)
        extra = max(r[way]["mebibytes"] - r["import"]["mebibytes"] for r in rounds)
        cosine = rounds[0][way]["cosine"]
        text = f"{way:<10}{seconds:8.2f} s {ratio:8.1f} × read {extra:8.0f} MiB"
        print(text + (f"   mean cosine {cosine:.6f}" if way != "read" else ""))


if __name__ == "__main__":
    main()
