"""The stages of the benchmark, each of which goes on where it stopped."""

import time
import warnings
from pathlib import Path

import torch
import transformers
from expert_states import PROBES, ExpertStates, read_states
from merged_sets import merges
from outcomes import append, measure_merge, measure_own, merge_records, records
from reading import Reader
from sources import fetch
from tasks import write_tasks
from training import make_expert
from zoo import EXPERTS, FIRST_LAYER

from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.smollm2 import ensure_base

STAGES = ("sources", "train", "states", "own", "merge", "table")


def quiet() -> None:
    """One thread, and no bars."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def prepare(folder: Path) -> None:
    """Archives, tasks and the base."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        (folder / "base").symlink_to(ensure_base(cache_folder()))
    if not (folder / "tasks.json").exists():
        fetch(folder / "sources")
        write_tasks(folder / "sources", folder)


def work(folder: Path, stage: str, worker: int, workers: int, until: float) -> None:
    """One worker's share of one stage."""
    quiet()
    torch.set_grad_enabled(stage == "train")
    cheap_first = sorted(EXPERTS, key=lambda name: EXPERTS[name].kind == "full")
    if stage == "train":
        for name in cheap_first[worker::workers]:
            if time.time() < until:
                make_expert(name, folder)
        return
    reader = Reader(folder, shared=FIRST_LAYER, probes=PROBES)
    if stage == "states":
        for record in read_states(folder, reader, ["base", *cheap_first][worker::workers]):
            append(_path(folder, "states", worker), [record])
    elif stage == "own":
        known = {r["expert"] for r in records(folder, "own")}
        for name in cheap_first[worker::workers]:
            if name not in known and (folder / "experts" / name).exists():
                append(_path(folder, "own", worker), [measure_own(folder, reader, name)])
    elif stage == "merge":
        made = {r["merge"] for r in merge_records(folder)}
        states = ExpertStates(folder)
        # Every worker takes its own share; what a folder holds already is skipped.
        for merge in merges()[worker::workers]:
            ready = all((folder / "states" / m / "builtin.npz").exists() for m in merge.members)
            if merge.key in made or not ready or time.time() > until:
                continue
            found = list(measure_merge(merge, folder, reader, states))
            append(_path(folder, "merge", worker), found)
            states.forget()


def _path(folder: Path, stem: str, worker: int) -> Path:
    return folder / "records" / f"{stem}-{worker}.jsonl"
