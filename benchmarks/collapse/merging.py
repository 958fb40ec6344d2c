"""Merges in memory, by MergeKit's own planner and tasks, of the tensors that can change."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from merged_sets import Merge
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors import safe_open

OPTIONS = MergeOptions(quiet=True, random_seed=0)


def changed(expert: Path, base: Path) -> frozenset[str]:
    """Names of the tensors that an expert does not have in common with the base, by value."""
    note = expert / "changed.json"
    if not note.exists():
        theirs, ours = tensors_of(expert), tensors_of(base)
        names = [n for n, t in ours.items() if not torch.equal(t, theirs[n])]
        rough = note.with_name(f".{note.name}-{os.getpid()}")
        rough.write_text(json.dumps(sorted(names)), encoding="utf-8")
        rough.rename(note)
    return frozenset(json.loads(note.read_text(encoding="utf-8")))


def tensors_of(folder: Path, only: frozenset[str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a model folder, or some of them."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if only is None or name in only:
                    found[name] = opened.get_tensor(name)
    return found


def merged_tensors(merge: Merge, folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the merge that is not the base's, by MergeKit's method of that name."""
    return merged_by(merge.document(folder), merge.members, folder)


def merged_by(
    document: Mapping[str, Any], members: Sequence[str], folder: Path
) -> dict[str, torch.Tensor]:
    """The same of a recipe.

    What all members have in common with the base is left out: linear, arithmetic and
    spherical means of equal tensors are that tensor, and a task vector of 0 adds nothing.
    """
    base = folder / "base"
    wanted = frozenset[str]().union(*(changed(folder / "experts" / m, base) for m in members))
    config = MergeConfiguration.model_validate(document)
    transformers.trainer_utils.set_seed(0)
    LoaderCache().setup(options=OPTIONS)
    info = get_architecture_info(config, OPTIONS)
    kept = transformers.AutoConfig.from_pretrained(base)
    planner = MergePlanner(config, info, options=OPTIONS, out_model_config=kept)
    # What would be written: the file is never opened, since its task is not run.
    planned = planner.plan_to_disk(out_path=str(folder / "unwritten"))
    sources = {t.tensor_task: t for t in planned if isinstance(t, SaveTensor)}
    targets: list[Any] = [task for task, save in sources.items() if save.tensor_name in wanted]
    found = {}
    for task, tensor in Executor(targets, math_device="cpu", storage_device="cpu").run(quiet=True):
        found[sources[task].tensor_name] = tensor.to(torch.bfloat16)
    if missing := wanted - found.keys():
        raise AssertionError(f"{'+'.join(members)}: MergeKit planned no {sorted(missing)[:3]}")
    return found
