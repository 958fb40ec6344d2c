"""What each action makes of a refused recipe of real weights: predicted, and measured.

The demo's base and adapters, its three tasks of 48 held-out rows and the shipped probes. Every
recipe is merged twice: as it is written, with `on_violation: warn`, and as its action changes it.
Nothing is stopped or rejected on the way (`evaluate.on_collapse: warn`), so that the numbers of
what should not have been merged are there as well.

    python benchmarks/remedies.py [--only reweight ...]
"""

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from mergekit.options import MergeOptions

import mergekit_collapse
import mergekit_collapse.demo
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.scores import CHOICES
from mergekit_collapse.demo.smollm2 import ensure_base
from mergekit_collapse.errors import MergeRefusedError
from mergekit_collapse.judging import deciding_distortion
from mergekit_collapse.report.report import Report

DEMO = Path(mergekit_collapse.demo.__file__).parent
# Nothing that is measured of the merged model keeps it from being compared.
OPEN = {"max_distortion": None, "max_merging_loss": None, "on_collapse": "warn"}
GENTLE = {"sentiment": 1.0, "spam": 1.0, "era": 1.0}
HOT = {"sentiment-hot": 1.0, "spam-hot": 1.0, "era-hot": 1.0}
ONE_HOT = {"sentiment": 1.0, "spam": 1.0, "era-hot": 1.0}
# Tight enough for one hot adapter among gentle ones to be clearly over.
BALL = {"distortion": 0.3, "mds": 3.0}
WEIGHTS = {"rule": "weights", "distortion": 0.2, "mds": None}


@dataclass(frozen=True)
class Case:
    """A recipe that is refused, and the action that its block names."""

    name: str
    action: str
    weights: dict[str, float]
    method: str = "linear"
    budget: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(
        "reweight for minimax",
        "reweight",
        {"sentiment": 0.9, "spam": 0.05, "era": 0.05},
        budget=WEIGHTS,
        keys={"reweight": {"floor": 0.0}},
    ),
    Case(
        "reweight to protect",
        "reweight",
        ONE_HOT,
        budget=WEIGHTS,
        keys={"reweight": {"goal": "protect", "floor": 0.0}},
    ),
    Case("drop", "drop", ONE_HOT, "ties", BALL),
    Case(
        "substitute",
        "substitute",
        ONE_HOT,
        "ties",
        BALL,
        {"substitute": {"pool": ["spam-hot", "era"]}},
    ),
    Case("karcher for too much", "karcher", GENTLE, "task_arithmetic", WEIGHTS),
    Case(
        "karcher for too little",
        "karcher",
        dict.fromkeys(GENTLE, 0.1),
        "task_arithmetic",
        WEIGHTS,
    ),
    Case("split", "split", {**GENTLE, "era-hot": 1.0}, "ties", BALL),
)
IN_VAIN = (
    Case("reweight in vain", "reweight", HOT, budget={**BALL, "mds": None}),
    Case("karcher in vain", "karcher", HOT, budget={**BALL, "mds": None}),
    Case("drop in vain", "drop", HOT, budget=BALL),
    Case(
        "substitute in vain", "substitute", HOT, "linear", BALL, {"substitute": {"pool": ["era"]}}
    ),
    Case("split in vain", "split", HOT, budget=BALL),
)


class Bench:
    """A folder for recipes and merges, and what they are made of."""

    def __init__(self, folder: Path, samples: int) -> None:
        self.folder, self.samples = folder, samples
        self.base = ensure_base(cache_folder())
        self.options = MergeOptions(quiet=True, lora_merge_cache=str(folder / "adapters"))

    def model(self, name: str) -> str:
        return f"{self.base}+{DEMO / 'adapters' / name}"

    def write(self, case: Case, action: str) -> Path:
        """The recipe with every expert's task, or with another action than its own."""
        tasks = []
        for expert in case.weights:
            task = expert.partition("-")[0]
            tasks.append(
                {
                    "name": expert,
                    "model": self.model(expert),
                    "data": str(DEMO / "probes" / f"{task}.jsonl"),
                    "text": "{prompt}",
                    "target": "{answer}",
                    "choices": list(CHOICES[task]),
                }
            )
        keys = dict(case.keys)
        if "substitute" in keys:
            keys["substitute"] = {"pool": [self.model(n) for n in keys["substitute"]["pool"]]}
        more = {"density": 0.5} if case.method == "ties" else {}
        document = {
            "merge_method": case.method,
            **({} if case.method == "linear" else {"base_model": str(self.base)}),
            "models": [
                {"model": self.model(name), "parameters": {"weight": weight, **more}}
                for name, weight in case.weights.items()
            ],
            "dtype": "bfloat16",
            "compat": {
                "probes": {"samples": self.samples, "tasks": tasks},
                "budget": case.budget,
                "rehearse": "never",
                "on_violation": action,
                "evaluate": OPEN,
                **keys,
            },
        }
        path = self.folder / f"{case.name.replace(' ', '-')}-{action}.yml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    def merged(self, recipe: Path) -> Report:
        """What the gate and the evaluation of the real merge found."""
        out = self.folder / "merged"
        try:
            found = mergekit_collapse.run(recipe, out, self.options)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        assert found is not None
        return found

    def parts(self, report: Report) -> Iterator[Report]:
        """Every document of a split, merged as a recipe of its own."""
        assert report.remedy is not None
        assert report.remedy.split is not None
        for document in yaml.safe_load_all(report.remedy.split):
            path = self.folder / f"{document.pop('name')}.yml"
            path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
            yield self.merged(path)


def reading(report: Report) -> str:
    """The distortion that the budget decides on."""
    assert report.deciding is not None
    budget = report.recipe.compat.budget
    return f"{deciding_distortion(report.deciding, budget, report.recipe.names):.2f}"


@dataclass(frozen=True)
class Row:
    """One expert of one merge."""

    weight: str
    predicted: str
    measured: str
    own: str
    merged: str
    loss: str


def rows(report: Report) -> dict[str, Row]:
    """What was predicted for every expert, and what the real merge did to it."""
    geometry, found, coefficients = report.deciding, report.evaluation, report.coefficients
    assert geometry is not None
    assert coefficients is not None
    assert found is not None
    assert found.hidden is not None
    scores = {task.owner: task for task in found.tasks}
    result = {}
    for i, name in enumerate(report.recipe.names):
        weight, score = coefficients.weights[i], scores[i]
        assert weight is not None
        assert score.loss_percent is not None
        assert geometry.predicted is not None
        result[name] = Row(
            f"{weight:.2g}",
            f"{geometry.predicted[i]:.2f}",
            f"{found.hidden.distortion[i]:.2f}",
            f"{score.expert:.2f}",
            f"{score.merged:.2f}",
            f"{score.loss_percent:+.0f} %",
        )
    losses = [task.loss_percent for task in found.tasks if task.loss_percent is not None]
    worst = f"{max(geometry.predicted):.2f}", f"{found.hidden.worst:.2f}"
    result["*worst*"] = Row("", *worst, "", "", f"{min(losses):+.0f} %")
    return result


def table(before: dict[str, Row], after: dict[str, Row]) -> Iterator[str]:
    yield "| expert | weight | predicted | measured | own score | merged score | merging loss |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    absent = Row(*"------")
    # The worst of both come last.
    for name in sorted({**before, **after}, key=lambda name: name == "*worst*"):
        was, now = before.get(name, absent), after.get(name, absent)
        own = was.own if name in before else now.own
        cells = [
            f"{getattr(was, key)} → {getattr(now, key)}".strip(" →")
            for key in ("weight", "predicted", "measured", "merged", "loss")
        ]
        yield f"| {name} | {' | '.join([*cells[:3], own, *cells[3:]])} |"


def show(bench: Bench, case: Case) -> Iterator[str]:
    """Merge a case as it is written and as its action changes it."""
    before = bench.merged(bench.write(case, "warn"))
    budget = before.recipe.compat.budget
    limit = f"limit {budget.distortion:g} on `rule: {budget.rule}`"
    first = f"**{case.name}**: `{case.method}`"
    if case.action == "split":
        refused = mergekit_collapse.check(bench.write(case, case.action), bench.options)
        parts = list(bench.parts(refused))
        readings = ", ".join(reading(part) for part in parts)
        last = f"{len(parts)} merge{'s' if len(parts) > 1 else ''}"
        after = {name: row for part in parts for name, row in rows(part).items()}
    else:
        changed = bench.merged(bench.write(case, case.action))
        readings, after = reading(changed), rows(changed)
        last = f"`{changed.recipe.config.merge_method}`"
    yield f"{first} → {last}, {limit}: {reading(before)} → {readings}"
    yield ""
    yield from table(rows(before), after)
    yield ""


def in_vain(bench: Bench, case: Case) -> str:
    report = mergekit_collapse.check(bench.write(case, case.action), bench.options)
    assert report.verdict.exit_code == MergeRefusedError.exit_code
    assert report.remedy_reason is not None
    why = report.remedy_reason.removeprefix(f"{case.action}: ")
    return f"- `{case.action}` of {' + '.join(case.weights)}: {why}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of cases, or beginnings of them")
    parser.add_argument("--samples", type=int, default=48, help="probes a task (default 48)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = tuple(arguments.only or [""])
    warnings.simplefilter("ignore", FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.samples)
        for case in CASES:
            if case.name.startswith(wanted):
                print("\n".join(show(bench, case)), flush=True)
        for case in IN_VAIN:
            if case.name.startswith(wanted):
                print(in_vain(bench, case), flush=True)


if __name__ == "__main__":
    main()
