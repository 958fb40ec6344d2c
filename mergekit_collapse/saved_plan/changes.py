"""What is not as it was when a plan was made."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mergekit_collapse.findings import printable
from mergekit_collapse.saved_plan.found_inputs import FoundInputs
from mergekit_collapse.saved_plan.record import Key, PlannedFile, PlannedInput, SavedPlan

_WORDS = {"probes": "probe file", "lm_eval": "lm-eval task"}


def version_changes(planned: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Libraries of another version; one that the plan says nothing of counts as well."""
    for name in sorted({*planned, *now}):
        if planned.get(name) != now.get(name):
            was, is_now = planned.get(name, "none"), now.get(name, "none")
            yield printable(f"{name}: the plan has version {was}, here is {is_now}")


def input_changes(plan: SavedPlan, found: FoundInputs) -> Iterator[str]:
    """Inputs and files that changed, are missing, or were added; one line for each."""
    planned = plan.by_key
    for key in dict.fromkeys((*planned, *found.inputs, *found.problems)):
        if key not in planned:
            yield f"{_named(key)}: the plan says nothing of it, though its recipe reads it"
        elif key in found.problems:
            yield f"{_named(key)}: {printable(found.problems[key])}"
        elif key not in found.inputs:
            yield f"{_named(key)}: the plan has it, but its recipe does not read it"
        else:
            yield from _differences(planned[key], found.inputs[key])
    if found.problems and os.path.realpath(plan.recipe.working_directory) != os.getcwd():
        yield (
            "working directory: paths of models are relative to it, and it was "
            f"{printable(plan.recipe.working_directory)}; here it is {os.getcwd()}"
        )


def _differences(planned: PlannedInput, now: PlannedInput) -> Iterator[str]:
    lines = list(_changed_files(planned, now))
    # The same files from another place are no change.
    if lines and planned.commit != now.commit:
        was, is_now = (_place(one.commit) for one in (planned, now))
        yield f"{_named(planned.key)}: the plan has {was}, here is {is_now}"
    yield from lines


def _changed_files(planned: PlannedInput, now: PlannedInput) -> Iterator[str]:
    name = _named(planned.key)
    # Of one commit the hub's client fetches more files as they are asked for.
    same_commit = now.commit is not None and planned.commit == now.commit
    for file in sorted({*planned.files, *now.files}):
        before, after = planned.files.get(file), now.files.get(file)
        if before is None and same_commit:
            continue
        if before != after:
            where = name if planned.role in ("recipe", "probes") else f"{name}: {printable(file)}"
            yield f"{where}: {_told(before, after)}"


def _told(before: PlannedFile | None, after: PlannedFile | None) -> str:
    if before is None:
        return "was added"
    if after is None:
        return "is missing"
    if before.bytes != after.bytes:
        return f"was changed: {before.bytes:,} bytes in the plan, {after.bytes:,} here"
    return f"was changed: sha256 {before.sha256[:12]} in the plan, {after.sha256[:12]} here"


def _place(commit: str | None) -> str:
    return f"the hub's commit {printable(commit)}" if commit is not None else "a folder"


def _named(key: Key) -> str:
    role, name = key
    shown = Path(name).name if role == "recipe" else name
    return printable(f"{_WORDS.get(role, role)} {shown}")
