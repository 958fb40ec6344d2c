"""What a second check of the same experts costs, against the first, which fills the cache.

Real weights: the demo's base and its three gently trained adapters, on the demo's own probes. Each
check is a process of its own, with a cache that is empty for the first of a round. The target is
below 5 % of the first for the stage that runs the models.

    python benchmarks/cached_check.py [--rounds 1]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mergekit_collapse.demo
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.run import write_recipe
from mergekit_collapse.demo.smollm2 import ensure_base

DEMO = Path(mergekit_collapse.demo.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    base = ensure_base(cache_folder())
    ratios = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            recipe = write_recipe(DEMO, Path(folder), base, "good")
            first, second = (check(recipe, Path(folder), name) for name in ("first", "second"))
            kept = sum(p.stat().st_size for p in Path(folder, "cache").rglob("*.safetensors"))
        ratios.append(second["states"] / first["states"])
        print(f"{'':8}{'states':>10}{'process':>10}   models not run")
        for name, found in (("first", first), ("second", second)):
            print(f"{name:8}{found['states']:8.2f} s{found['process']:8.2f} s   {found['cached']}")
        print(f"states kept: {kept / 1e6:.1f} MB")
    print(f"second / first, states stage: {100 * statistics.median(ratios):.2f} %")


def check(recipe: Path, folder: Path, name: str) -> dict:
    report = folder / f"{name}.json"
    command = [sys.executable, "-m", "mergekit_collapse", "check", str(recipe), "--quiet"]
    command += ["--json", str(report), "--lora-merge-cache", str(folder / "adapters")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    document = json.loads(report.read_text(encoding="utf-8"))
    cached = ", ".join(document["forward"]["cached"]) or "none"
    return {"states": document["timing"]["states"], "process": seconds, "cached": cached}


if __name__ == "__main__":
    main()
