"""What each action of `on_violation` makes of merges that collapse, measured.

    python benchmarks/collapse/remedy_outcomes.py FOLDER [--results TABLES] [--minutes N]

The recipes are merges of the zoo whose worst task lost more than 20 %. Each is given to the gate
with each action in turn (`mergekit_collapse.check`, on 32 probes of every member's task and the
shipped ones), and what it would merge in its place is merged and measured as all merges are.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from merge_rows import RESULTS, MergeRow, merge_rows
from merged_sets import Merge, model_path
from merging import merged_by
from outcomes import append, records
from reading import Reader
from rules import COLLAPSE
from stages import quiet
from zoo import EXPERTS, FIRST_LAYER

import mergekit_collapse
from mergekit_collapse.errors import CompatError

ACTIONS = ("reweight", "protect", "drop", "substitute", "karcher", "split")
METHODS = ("linear", "ties", "task_arithmetic")
RECIPES = 16
WELL_INSIDE = 0.25
"""Of r²; most merges below it are good. Under the default limit some of these are allowed."""
REACHED = 1.1
"""Times r²: a limit that the best weights are inside of, and few others."""


def collapsed(rows: Sequence[MergeRow]) -> list[MergeRow]:
    """Merges of seen tasks that lost, of as many kinds and sizes and methods as there are."""
    found: dict[tuple[bool, str, str], list[MergeRow]] = {}
    for row in rows:
        if row.method in METHODS and row.worst < -COLLAPSE and not row.unseen:
            pair = len(row.members) == 2
            found.setdefault((pair, row.makes, row.method), []).append(row)
    parts = [found[key] for key in sorted(found)]
    turns = [part[i] for i in range(RECIPES) for part in parts if i < len(part)]
    return turns[:RECIPES]


def block(row: MergeRow, action: str, folder: Path) -> dict[str, Any]:
    """The `compat:` block; `protect` is `reweight` with its other goal."""
    members = row.members
    tasks = [_task(member, folder, scored=action == "substitute") for member in members]
    found: dict[str, Any] = {
        "probes": {"samples": 32, "tasks": tasks},
        "rehearse": "never",
        "on_violation": action,
        "budget": {"distortion": WELL_INSIDE},
    }
    if action in ("reweight", "karcher"):
        # No weights, and no method, get below r²: the limit is what the best of them reach.
        limit = REACHED * row.readings["gate.ball"]
        found |= {"budget": {"rule": "weights", "distortion": limit}, "reweight": {"floor": 0.0}}
    if action == "protect":
        found |= {"on_violation": "reweight", "budget": {"rule": "weights"}}
        found["reweight"] = {"goal": "protect", "floor": 0.0}
    if action == "substitute":
        found["substitute"] = {"pool": [model_path(folder, name) for name in others(members)]}
    return found


def _task(member: str, folder: Path, *, scored: bool) -> dict[str, Any]:
    """A member's task. Only who stands in for another must show that it does the task."""
    task = EXPERTS[member].task
    found = {
        "name": member,
        "model": model_path(folder, member),
        "data": str(folder / "tasks" / task / "probes.jsonl"),
        "text": "{prompt}",
    }
    if scored:
        found["target"] = "{answer}"
        offered = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))[task]["choices"]
        found |= {"choices": offered} if offered else {}
    return found


def others(members: Sequence[str]) -> list[str]:
    """Every other expert of the members' own tasks, which could take their places."""
    wanted = {EXPERTS[member].task for member in members}
    return [n for n, e in EXPERTS.items() if e.task in wanted and n not in members]


def documents(row: MergeRow, action: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The recipes that the gate would merge in the place of this one, and what it says."""
    document = Merge(row.members, row.method).document(folder)
    recipe = folder / "remedied.yml"
    document["compat"] = block(row, action, folder)
    recipe.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    try:
        report = mergekit_collapse.check(recipe)
    except CompatError as error:
        return [], str(error)
    assert report is not None
    if report.remedy is None:
        return [], report.remedy_reason or "nothing was changed"
    said = "; ".join(report.remedy.notes)
    if report.remedy.split is not None:
        return list(yaml.safe_load_all(report.remedy.split)), said
    return [yaml.safe_load(report.remedy.effective or "")], said


def measured(
    document: Mapping[str, Any], folder: Path, reader: Reader
) -> Iterator[tuple[str, float]]:
    """Members of a recipe and what they score after its merge."""
    kept = {k: v for k, v in document.items() if k not in ("compat", "name")}
    members = [Path(model["model"]).name for model in kept["models"]]
    model, _ = reader.model(merged_by(kept, members, folder))
    for member in members:
        yield member, reader.score(model, EXPERTS[member].task)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="tables to choose from")
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    until = time.time() + 60 * arguments.minutes
    quiet()
    torch.set_grad_enabled(False)
    folder = arguments.folder.resolve()
    reader = Reader(folder, shared=FIRST_LAYER, probes=1)
    done = {(r["merge"], r["action"]) for r in records(folder, "remedy")}
    for row in collapsed(merge_rows(arguments.results)):
        merge = Merge(row.members, row.method)
        for action in ACTIONS:
            if (merge.key, action) in done or time.time() > until:
                continue
            changed, said = documents(row, action, folder)
            scores = [dict(measured(document, folder, reader)) for document in changed]
            record = {
                "merge": merge.key,
                "action": action,
                "said": said,
                "recipes": [{k: v for k, v in d.items() if k != "compat"} for d in changed],
                "scores": scores,
            }
            append(folder / "records" / "remedy-0.jsonl", [record])
            print(merge.key, action, said, scores, flush=True)


if __name__ == "__main__":
    main()
