"""The stages of the benchmark, each of which goes on where it stopped."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from expert_states import BUILTIN, MANY, PROBES, ExpertStates, read_states, read_wide
from merged_sets import merges
from outcomes import append, measure_merge, measure_own, merge_records, records
from reading import Reader
from sources import fetch
from tasks import write_tasks
from training import make_expert
from zoo import EXPERTS, FIRST_LAYER

from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.smollm2 import ensure_base

ON_MODELS = ("train", "states", "wide", "own", "merge")


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
    for step in list(_steps(folder, stage, worker, workers)):
        if time.time() > until:
            return
        step()


def _steps(folder: Path, stage: str, worker: int, workers: int) -> Iterator[Callable[[], object]]:
    """What is left to do of a worker's share."""
    names = sorted(EXPERTS, key=lambda name: EXPERTS[name].kind == "full")[worker::workers]
    into = folder / "records" / f"{stage}-{worker}.jsonl"
    if stage == "train":
        yield from (partial(make_expert, name, folder) for name in names)
        return
    reader = Reader(folder, shared=FIRST_LAYER, probes=MANY if stage == "wide" else PROBES)
    if stage == "states":
        for name in ["base", *names] if worker == 0 else names:
            yield partial(_kept, into, read_states, folder, reader, name)
    elif stage == "wide":
        yield from (partial(read_wide, folder, reader, name) for name in names)
    elif stage == "own":
        known = {r["expert"] for r in records(folder, "own")}
        there = [n for n in names if n not in known and (folder / "experts" / n).exists()]
        yield from (partial(_kept, into, measure_own, folder, reader, name) for name in there)
    else:
        made = {r["merge"] for r in merge_records(folder)}
        states = ExpertStates(folder)
        # Every worker takes its own share; what a folder holds already is skipped.
        for merge in merges()[worker::workers]:
            ready = all(states.path(m, BUILTIN).exists() for m in merge.members)
            if ready and merge.key not in made:
                yield partial(_kept, into, measure_merge, merge, folder, reader, states)


def _kept(into: Path, measure: Callable[..., Iterable[dict[str, Any]]], *what: object) -> None:
    """Measure, and write what came of it."""
    append(into, list(measure(*what)))
