"""How many tokens are computed for each token of a probe, batches cut two ways.

The shipped probes (the first 32, 64 and 128 of a seeded order) and the demo's own, by the tokenizer
of the demo's base. *Full* batches are filled in order of length up to their limit; *planned* ones
are those that the package runs.

    python benchmarks/padding.py
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

import mergekit_collapse
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.smollm2 import ensure_base
from mergekit_collapse.states.batching import CPU_TOKENS, MAX_ANSWERS, plan_batches

PACKAGE = Path(mergekit_collapse.__file__).parent


def main() -> None:
    tokenizer = Tokenizer.from_file(str(ensure_base(cache_folder()) / "tokenizer.json"))
    rows = texts(PACKAGE / "data" / "builtin_probes.jsonl", "text")
    random.Random(0).shuffle(rows)
    sets = {f"{count} shipped probes": rows[:count] for count in (32, 64, 128)}
    for file in sorted((PACKAGE / "demo" / "probes").glob("*.jsonl")):
        sets[f"demo, {file.stem}"] = texts(file, "prompt")
    print(f"{'':20}{'tokens':>8}{'full':>7}{'planned':>9}")
    for name, members in sets.items():
        lengths = [len(tokenizer.encode(text).ids) for text in members]
        planned = plan_batches(lengths, [1] * len(lengths), CPU_TOKENS, MAX_ANSWERS)
        ratios = [padded(lengths, plan) / sum(lengths) for plan in (full(lengths), planned)]
        print(f"{name:20}{sum(lengths):8}{ratios[0]:7.2f}{ratios[1]:9.2f}")


def texts(file: Path, key: str) -> list[str]:
    return [json.loads(line)[key] for line in file.read_text(encoding="utf-8").splitlines()]


def full(lengths: Sequence[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        last = batches[-1] if batches else []
        if last and (len(last) + 1) * lengths[last[0]] <= CPU_TOKENS:
            last.append(index)
        else:
            batches.append([index])
    return batches


def padded(lengths: Sequence[int], plan: Sequence[Sequence[int]]) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)


if __name__ == "__main__":
    main()
