"""Merging, and what became of every member's task."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from expert_states import BUILTIN, REHEARSED, ExpertStates, TaskStates, prompts_of
from merged_sets import METHODS, Merge
from merging import changed, merged_tensors, tensors_of
from reading import Answered, Reader, part_of
from zoo import EXPERTS

from mergekit_collapse.states.layer_statistics import effective_rank

MIXED = ("linear", "task_arithmetic")
"""Methods whose merges would have a known mixture of the members' states, were they linear."""


def measure_merge(
    merge: Merge, folder: Path, reader: Reader, states: ExpertStates
) -> Iterator[dict[str, Any]]:
    """A record for each member: its score, and how far its states were moved.

    What ``states`` has read is let go in the end.
    """
    start = time.perf_counter()
    tensors = merged_tensors(merge, folder)
    merged_at = time.perf_counter()
    model, left_out = reader.model(tensors)
    scores = {task: reader.score(model, task) for task in {EXPERTS[m].task for m in merge.members}}
    scored_at = time.perf_counter()
    tasks = list(dict.fromkeys(prompts_of(m) for m in merge.members))
    prompts = [p for task in (*tasks, BUILTIN) for p in reader.prompts(task)[:REHEARSED]]
    answered = reader.answered(model, left_out, prompts, every_layer=True)
    merged = part_of(answered, slice(0, -REHEARSED))
    read_at = time.perf_counter()
    common = {
        "merge": merge.key,
        "method": merge.method,
        "members": "+".join(merge.members),
        "merge_seconds": merged_at - start,
        "score_seconds": scored_at - merged_at,
        "rehearse_seconds": read_at - scored_at,
        **_nonlinearity(merge, merged, tasks, states),
    }
    moved = distortions(merge.members, merged, tasks, states)
    # As the gate has it, a task for each member: prompts of two of one task count twice.
    for name, asked in (
        ("builtin", [BUILTIN]),
        ("gate", [*map(prompts_of, merge.members), BUILTIN]),
    ):
        places = [REHEARSED * [*tasks, BUILTIN].index(task) for task in asked]
        rows = np.concatenate([np.arange(place, place + REHEARSED) for place in places])
        pooled = pooled_hidden(merge.members, answered.mean[-1, rows], asked, states)
        for into, distortion in zip(moved, pooled, strict=True):
            into[f"{name}_pooled"] = distortion
    for member, distortion in zip(merge.members, moved, strict=True):
        place = REHEARSED * tasks.index(prompts_of(member))
        yield {
            **common,
            "expert": member,
            "score": scores[EXPERTS[member].task],
            **distortion,
            "few": first_token_score(reader, member, merged.answer[place : place + REHEARSED]),
        }
    states.forget()


def first_token_score(reader: Reader, expert: str, answer: np.ndarray) -> float:
    """What a rehearsal of few probes with targets would say, by the answers' first tokens.

    Accuracy among the choices, ties counting as wrong, or the geometric mean of the right token's
    probability. NaN where choices begin alike.

    Args:
        answer: square roots of next-token probabilities, of the first probes.
    """
    try:
        right, choices = reader.first_tokens(EXPERTS[expert].task, len(answer))
    except ValueError:
        return float("nan")
    chosen = answer[np.arange(len(right)), right].astype(np.float64)
    if choices is None:
        return float(np.exp(2 * np.log(np.maximum(chosen, 1e-9)).mean()))
    rivals = np.array([[c for c in choices if c != r] for r in right])
    best = answer[np.arange(len(right))[:, None], rivals].max(axis=1)
    return float((chosen > best).mean())


def _cut(found: TaskStates, layer: int | slice, name: str) -> np.ndarray:
    if name == "answer":
        return found.answer[None].astype(np.float64)
    values: np.ndarray = getattr(found, name)[layer]
    values = values[None] if values.ndim == 2 else values
    return values[:, :REHEARSED].astype(np.float64)


def _stacked(
    model: str, tasks: Sequence[str], states: ExpertStates, name: str, layers: slice
) -> np.ndarray:
    return np.concatenate([_cut(states(model, t), layers, name) for t in tasks], axis=1)


def distortions(
    members: Sequence[str], merged: Answered, tasks: Sequence[str], states: ExpertStates
) -> list[dict[str, float]]:
    """Mean squared distance of the merged model from each member, in the design's units.

    pooled: over the probes of all members' tasks, divided by the mean over members of the
            trace of the covariance of their states
    own:    over the member's own task, divided by its own covariance there
    """
    found: list[dict[str, float]] = [{} for _ in members]
    starts = [REHEARSED * tasks.index(prompts_of(member)) for member in members]
    own = [slice(start, start + REHEARSED) for start in starts]
    last = slice(-1, None)
    readings = {
        "hidden": ("mean", last, merged.mean[-1:]),
        "last_token": ("last", last, merged.last[-1:]),
        "every_layer": ("mean", slice(None), merged.mean),
        "predictive": ("answer", last, merged.answer[None]),
    }
    for reading, (name, layers, ours) in readings.items():
        every = [_stacked(m, tasks, states, name, layers) for m in members]
        natural = name == "answer"
        pooled_scale = 1.0 if natural else np.mean([_spread(e) for e in every], axis=0)
        for into, theirs, mine in zip(found, every, own, strict=True):
            squares = np.square(theirs - ours).sum(axis=2)
            own_scale = 1.0 if natural else _spread(theirs[:, mine])
            into[f"{reading}_pooled"] = float((squares.mean(axis=1) / pooled_scale).mean())
            into[f"{reading}_own"] = float((squares[:, mine].mean(axis=1) / own_scale).mean())
    ours = merged.mean[-1].astype(np.float64)
    rank = effective_rank(ours)
    for into, member, mine in zip(found, members, own, strict=True):
        theirs = _stacked(member, tasks, states, "mean", last)[0]
        into["variance_ratio"] = float(_spread(ours[mine]) / _spread(theirs[mine]))
        into["rank_ratio"] = rank / effective_rank(theirs)
    return found


def pooled_hidden(
    members: Sequence[str], merged: np.ndarray, tasks: Sequence[str], states: ExpertStates
) -> list[float]:
    """Mean squared distance from each member in hidden space, over all probes of some tasks.

    Args:
        merged: states of the merged model on these, [probe, feature].
    """
    every = [_stacked(m, tasks, states, "mean", slice(-1, None))[0] for m in members]
    scale = float(np.mean([_spread(e) for e in every]))
    apart = (np.square(e - merged).sum(axis=1).mean() for e in every)
    return [float(distance) / scale for distance in apart]


def _spread(states: np.ndarray) -> np.ndarray:
    """Trace of the population covariance over probes (the second axis from the end)."""
    result: np.ndarray = states.var(axis=-2).sum(axis=-1)
    return result


def _nonlinearity(
    merge: Merge, merged: Answered, tasks: Sequence[str], states: ExpertStates
) -> dict[str, list[float]]:
    """Per layer, E‖h − Σ α_i h_i‖² / s² where the method's α are known exactly."""
    if merge.method not in MIXED:
        return {}
    mixed, scale, _ = _mixture(merge, tasks, states)
    apart = np.square(merged.mean - mixed).sum(axis=2).mean(axis=1) / scale
    return {"nonlinearity": apart.tolist()}


def displacement(merge: Merge, states: ExpertStates) -> list[float]:
    """Per layer, the mean over members of E‖h_i − Σ α_j h_j‖² / s²: how far mixing moves them.

    What a distance from linearity is to be held against: s² holds the attention sink's
    state, hundreds of times as long as the others in most layers.
    """
    tasks = list(dict.fromkeys(map(prompts_of, merge.members)))
    mixed, scale, experts = _mixture(merge, tasks, states)
    moved = np.mean([np.square(e - mixed).sum(axis=2).mean(axis=1) for e in experts], axis=0)
    found: list[float] = (moved / scale).tolist()
    return found


def _mixture(
    merge: Merge, tasks: Sequence[str], states: ExpertStates
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Σ α_i h_i and s² of each layer, and the members' states."""
    count = len(merge.members)
    alpha = 1 / count if merge.method == "linear" else METHODS["task_arithmetic"]["weight"]
    experts = [_stacked(m, tasks, states, "mean", slice(None)) for m in merge.members]
    mixed = alpha * np.sum(experts, axis=0)
    if merge.method == "task_arithmetic":
        mixed += (1 - alpha * count) * _stacked("base", tasks, states, "mean", slice(None))
    return mixed, np.mean([_spread(e) for e in experts], axis=0), experts


def measure_own(folder: Path, reader: Reader, expert: str) -> Iterator[dict[str, Any]]:
    """What an expert, and what the base scores on the expert's task."""
    place, task = folder / "experts" / expert, EXPERTS[expert].task
    tensors = tensors_of(place, changed(place, folder / "base"))
    base = tensors_of(folder / "base", frozenset(tensors))
    norm = sum(float((t.double() - base[n].double()).square().sum()) for n, t in tensors.items())
    own = reader.score(reader.model(tensors)[0], task)
    few = ExpertStates(folder)(expert, prompts_of(expert)).answer
    yield {
        "expert": expert,
        "own": own,
        "few": first_token_score(reader, expert, few),
        "base": reader.score(reader.model({})[0], task),
        "norm": norm**0.5,
    }


def append(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Add records as lines of JSON, all of them at once.

    A line that an earlier run was stopped in the middle of stays by itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in found)
    with path.open("a+b") as file:
        # What is written goes to the end all the same.
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        cut = file.read() not in (b"", b"\n")
        file.write(("\n" + text if cut else text).encode())


def records(folder: Path, stem: str) -> list[dict[str, Any]]:
    """What all workers wrote; a line that was cut short is left out, and made again."""
    found = []
    for path in sorted((folder / "records").glob(f"{stem}-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def merge_records(folder: Path) -> list[dict[str, Any]]:
    """One record for each member of each merge that all members have one of."""
    by_merge: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records(folder, "merge"):
        # A merge that was made twice counts once.
        by_merge.setdefault(record["merge"], {})[record["expert"]] = record
    whole = (
        r for r in by_merge.values() if len(r) == len(next(iter(r.values()))["members"].split("+"))
    )
    return [record for made in whole for record in made.values()]
