"""What the gate measures of the encoder's experts before a merge, and of a merge itself.

Hidden space alone, since an encoder has no next token: the last layer, pooled by the mean, scaled
by the experts' variance. Probes are the first rows of each member's own task, or the shipped ones.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_experts import EXPERTS
from encoder_training import read_rows
from mergekit.common import ModelReference
from transformers import AutoTokenizer

from mergekit_collapse.geometry.geometry import Geometry, measure
from mergekit_collapse.geometry.measured import measured_distortion
from mergekit_collapse.probes.probes import Probe, ProbeSet, gather_probes
from mergekit_collapse.probes.tokens import TokenizedProbes, digest_of, tokenize
from mergekit_collapse.recipe.schema import ProbesBlock
from mergekit_collapse.shapes import Float32
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.states import SpaceStates

SAMPLES = 32
"""Probes a task, the gate's default."""
MOST_TOKENS = 128
BUILTIN = "builtin"
OPTIONS = LoadOptions("cpu", torch.bfloat16, progress=False)
REQUEST = StateRequest(predictive=False, layers="last", pooling="mean")


@dataclass(frozen=True)
class Read:
    """Every expert and the base on every task's probes and the shipped ones.

    Attributes:
        probes: as token ids, source by source.
        sources: of each probe, the task it is of, or ``builtin``.
        values: in the order of ``models``.
        layer: the number of the last layer, after which they were taken.
        seconds: what it took to run one model on one probe, on average.
    """

    models: tuple[str, ...]
    probes: TokenizedProbes
    sources: tuple[str, ...]
    values: Float32[np.ndarray, "model probe feature"]
    layer: int
    seconds: float


@dataclass(frozen=True)
class Group:
    """What one set of experts shows, whatever the method.

    Attributes:
        own, shipped: measured on the members' own probes, and on the shipped ones.
        states: behind each of them, with the base last.
        probes: the same two, as token ids.
        seconds: what measuring took, without running the models.
    """

    members: tuple[str, ...]
    own: Geometry
    shipped: Geometry
    states: tuple[SpaceStates, SpaceStates]
    probes: tuple[TokenizedProbes, TokenizedProbes]
    seconds: float


def read_all(folder: Path) -> Read:
    """Run every expert and the base once; kept in ``folder``/encoder/states.npz."""
    place, models = folder / "encoder", (*EXPERTS, "base")
    probes, sources = _probes(folder)
    kept = place / "states.npz"
    if not kept.exists():
        start = time.process_time()
        paths = [*(place / "experts" / name for name in EXPERTS), place / "base"]
        found = collect(
            [_reference(path) for path in paths], models, len(EXPERTS), probes, REQUEST, OPTIONS
        )
        seconds = (time.process_time() - start) / len(models) / len(sources)
        rough = kept.with_name(".states.npz")
        np.savez(
            rough,
            values=found.hidden.values[0],
            layer=found.hidden.layers[0],
            seconds=seconds,
            digest=probes.digest,
        )
        rough.rename(kept)
    with np.load(kept) as stored:
        if str(stored["digest"]) != probes.digest or len(stored["values"]) != len(models):
            raise SystemExit(f"{kept} is of other probes or experts: delete it")
        layer, seconds = int(stored["layer"]), float(stored["seconds"])
        return Read(models, probes, sources, stored["values"], layer, seconds)


def _probes(folder: Path) -> tuple[TokenizedProbes, tuple[str, ...]]:
    texts: list[tuple[str, str]] = []
    for task in dict.fromkeys(expert.task for expert in EXPERTS.values()):
        rows = read_rows(folder, EXPERTS[task], "probes")
        texts += [(task, text) for text in rows.texts[:SAMPLES]]
    shipped = gather_probes(ProbesBlock(samples=SAMPLES), (), folder)
    texts += [(BUILTIN, probe.prompt) for probe in shipped.probes]
    found = ProbeSet((), tuple(Probe(0, text, None) for _, text in texts), "")
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder" / "base")
    probes = tokenize(found, tokenizer, MOST_TOKENS, encoder_decoder=False)
    return probes, tuple(source for source, _ in texts)


def read_group(read: Read, members: Sequence[str]) -> Group:
    """Measure a set of experts as the gate would for a recipe that names a task for each.

    Two members of one task have a task each, with equal probes: in the mean over all probes
    those count twice.
    """
    start = time.process_time()
    own = _part(read, members, [EXPERTS[name].task for name in members])
    shipped = _part(read, members, [BUILTIN])
    tasks: list[tuple[str, int | None]] = [(name, owner) for owner, name in enumerate(members)]
    geometries = (
        _geometry(*own, tasks, len(members)),
        _geometry(*shipped, [(BUILTIN, None)], len(members)),
    )
    return Group(
        tuple(members),
        *geometries,
        (own[0], shipped[0]),
        (own[1], shipped[1]),
        time.process_time() - start,
    )


def _part(
    read: Read, members: Sequence[str], sources: Sequence[str]
) -> tuple[SpaceStates, TokenizedProbes]:
    """The states of the members and the base on some sources, one task for each."""
    rows = [[i for i, s in enumerate(read.sources) if s == source] for source in sources]
    every = [i for some in rows for i in some]
    models = [read.models.index(name) for name in (*members, "base")]
    task_of_probe = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
    probes = tuple(read.probes.probes[i] for i in every)
    states = SpaceStates(
        "hidden",
        "mean",
        (read.layer,),
        (read.values[np.ix_(models, every)],),
        np.arange(len(every), dtype=np.int64),
    )
    return states, TokenizedProbes(probes, task_of_probe, digest_of(probes))


def _geometry(
    states: SpaceStates, probes: TokenizedProbes, tasks: list[tuple[str, int | None]], count: int
) -> Geometry:
    return measure(
        states,
        count,
        probes.task_of_probe,
        tasks,
        scale="variance",
        coefficients=None,
        seed=0,
    )


def measured(group: Group, folder: Path, model: Any) -> Mapping[str, Mapping[str, float | None]]:
    """Distortion of a finished merge, by reading and expert.

    Args:
        folder: of the merge.
        model: as loaded from there.
    """
    found: dict[str, dict[str, float | None]] = {}
    parts = zip(
        ("", "builtin_"), (group.own, group.shipped), group.states, group.probes, strict=True
    )
    for name, geometry, experts, probes in parts:
        merged = collect(
            [_reference(folder)],
            ["merged"],
            1,
            probes,
            REQUEST,
            OPTIONS,
            each=lambda _references, _options, visit: visit(0, model),
        )
        read = measured_distortion(experts, merged.hidden, geometry, probes.task_of_probe)
        found[f"{name}hidden_pooled"] = dict(zip(group.members, read.distortion, strict=True))
        if not name:
            found["hidden_own"] = {task.name: task.distortion for task in read.own_task}
    return found


def _reference(path: Path) -> ModelReference:
    return ModelReference.model_validate({"model": {"path": str(path)}})
