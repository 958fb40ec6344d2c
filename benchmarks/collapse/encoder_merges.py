"""One merge of the encoder's experts: made by MergeKit, scored under every member's own head."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mergekit.merge
import torch
from encoder_experts import EXPERTS, PAIRS, SETS
from encoder_signals import Group, measured
from encoder_training import accuracy, load_encoder, load_head, read_rows
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from transformers import AutoTokenizer

METHODS: Mapping[str, Mapping[str, float]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.8},
    "slerp": {},
    "karcher": {},
    "dare_ties": {"weight": 0.8, "density": 0.5},
    "ties": {"weight": 1.0, "density": 0.5},
    "weighted_karcher": {"weight": 1.0},
}
"""Parameters of every model of a merge. ``linear`` and ``ties`` divide by the sum of weights;
``task_arithmetic`` and ``dare_ties`` do not, so that they are hotter the more models there are."""

TASK_VECTORS = ("task_arithmetic", "ties", "dare_ties")


def merges() -> list[tuple[str, tuple[str, ...]]]:
    """Every merge, method by method: a method and its members; slerp takes two."""
    return [
        (method, members)
        for method in METHODS
        for members in (*PAIRS, *SETS)
        if method != "slerp" or len(members) == 2
    ]


def recipe(folder: Path, method: str, members: Sequence[str]) -> dict[str, Any]:
    """What MergeKit is given: the same parameters for every member; slerp goes half the way."""
    place = folder / "encoder"
    models = [
        {"model": str(place / "experts" / name), "parameters": dict(METHODS[method])}
        for name in members
    ]
    found: dict[str, Any] = {"merge_method": method, "dtype": "float32", "models": models}
    if method in TASK_VECTORS:
        found["base_model"] = str(place / "base")
    if method == "slerp":
        found["base_model"] = str(place / "experts" / members[0])
        found["parameters"] = {"t": 0.5}
    return found


def merge(folder: Path, method: str, members: Sequence[str], out: Path) -> None:
    """Make a merge as ``mergekit-yaml`` would; DARE draws with seed 0."""
    config = MergeConfiguration.model_validate(recipe(folder, method, members))
    options = MergeOptions(random_seed=0, quiet=True, write_model_card=False)
    # By its module, where the plugin puts its own function: without a block that is MergeKit's.
    mergekit.merge.run_merge(config, str(out), options)


def make_merge(folder: Path, method: str, group: Group) -> None:
    """Leave ``folder``/encoder/merges/METHOD+MEMBER+….json: scores and measured distortions."""
    record = folder / "encoder" / "merges" / f"{'+'.join((method, *group.members))}.json"
    if record.exists():
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    out = folder / "encoder" / f".merged-{os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    start = time.process_time()
    merge(folder, method, group.members, out)
    seconds = {"merge": time.process_time() - start}
    model, tokenizer = load_encoder(out, torch.bfloat16), AutoTokenizer.from_pretrained(out)
    start = time.process_time()
    distortions = measured(group, out, model)
    seconds["measure"] = time.process_time() - start
    start = time.process_time()
    heads = folder / "encoder" / "heads"
    scores = {
        name: accuracy(
            model,
            tokenizer,
            load_head(heads / f"{name}.safetensors"),
            read_rows(folder, EXPERTS[name], "held_out"),
        )
        for name in group.members
    }
    seconds["score"] = time.process_time() - start
    found = {
        "method": method,
        "members": list(group.members),
        "scores": scores,
        "measured": distortions,
        "seconds": seconds,
    }
    rough = record.with_name(f".{record.name}")
    rough.write_text(json.dumps(found, indent=1), encoding="utf-8")
    rough.rename(record)
    shutil.rmtree(out)
    worst = min(scores[n] / own_score(folder, n) for n in scores) - 1
    shown = "+".join(group.members)
    print(f"{method} {shown}: worst {worst:+.0%}, {sum(seconds.values()):.1f} s", flush=True)


def own_score(folder: Path, name: str) -> float:
    """An expert's accuracy on its own held-out rows."""
    text = (folder / "encoder" / "heads" / f"{name}.json").read_text("utf-8")
    return float(json.loads(text)["own"])
