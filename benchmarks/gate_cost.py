"""What a `compat:` block adds to `mergekit-yaml`, as a user has it: the whole commands.

Three full experts of the shape of a 0.5 B model, each a base of random weights with a little noise
on every tensor, so that nothing is shared and the merge is allowed. The tokenizer is that of the
demo's base, the probes are those that come with the package, every setting is left alone, and the
cache is empty. A round runs the stock recipe and the same with each block, one after the other.

    python benchmarks/gate_cost.py [--rounds 1] [--methods linear ties]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from states import BIG, make_model
from transformers import AutoModelForCausalLM

from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.smollm2 import ensure_base

NOISE = 0.002
METHODS = ["linear", "ties"]
BLOCKS = {
    "no block": "",
    "compat: {}": "compat: {}\n",
    "samples: auto": "compat: {probes: {samples: auto}}\n",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gate-cost-") as folder:
        work = Path(folder)
        models = make_models(work)
        for method in given.methods:
            rounds = [
                {name: merge(work, method, models, block) for name, block in BLOCKS.items()}
                for _ in range(given.rounds)
            ]
            for name in BLOCKS:
                seconds = statistics.median(one[name][0] for one in rounds)
                ratio = statistics.median(one[name][0] / one["no block"][0] for one in rounds)
                told = rounds[-1][name][1]
                print(f"{method:8}{name:15}{seconds:7.1f} s{ratio:7.2f}   {told}", flush=True)


def make_models(work: Path) -> list[Path]:
    """The base, and three experts beside it."""
    base = make_model(work / "base", BIG, 0)
    tokenizer = ensure_base(cache_folder())
    models = [base, *(work / f"expert{i}" for i in range(3))]
    for seed, folder in enumerate(models):
        if seed:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_pretrained(base)
            for parameter in model.parameters():
                parameter.data += NOISE * torch.randn_like(parameter)
            model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, folder / name)
    return models


def merge(work: Path, method: str, models: list[Path], block: str) -> tuple[float, str]:
    """Seconds of the command, and what the gate did."""
    base, *experts = models
    rows = "".join(
        f"  - {{model: {m}, parameters: {{weight: 1, density: 0.5}}}}\n" for m in experts
    )
    recipe = work / f"{method}.yml"
    start = f"base_model: {base}\n" if method == "ties" else ""
    recipe.write_text(f"merge_method: {method}\ndtype: bfloat16\nmodels:\n{rows}{start}{block}")
    for made in ("merged", "merged.compat", "cache"):
        shutil.rmtree(work / made, ignore_errors=True)
    program = str(Path(sys.executable).with_name("mergekit-yaml"))
    command = [program, str(recipe), "merged", "--quiet"]
    own = {k: v for k, v in os.environ.items() if not k.startswith("MERGEKIT_COLLAPSE")}
    environment = {**own, "XDG_CACHE_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=work, env=environment, check=False, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{method}: {done.stderr[-2000:]}")
    if not block:
        return seconds, ""
    report = json.loads((work / "merged.compat" / "report.json").read_text(encoding="utf-8"))
    states, probes = report["timing"]["states"], sum(t["rows"] for t in report["probes"]["tasks"])
    looks = (report["probes"]["rounds"] or {}).get("looks")
    used = f"{looks[-1]['probes']} of {probes}" if looks else probes
    radius = report["geometry"]["hidden"]["ball_radius_squared"]
    engine = report["forward"]["engine"]
    return seconds, f"{engine}, {used} probes, states {states:.1f} s, r² {radius:.3g}"


if __name__ == "__main__":
    main()
