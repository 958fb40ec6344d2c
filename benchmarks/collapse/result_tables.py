"""The committed tables: what was measured, one row an expert, a set, a member or an outcome."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from code_version import made_with
from expert_states import ExpertStates
from geometry_signals import readings_of, signals
from merged_sets import Merge, merges
from outcomes import append, displacement, merge_records, records
from zoo import EXPERTS, FIRST_LAYER

from mergekit_collapse.evaluation.merging_loss import loss_percent

DIGITS = 5


def write_tables(folder: Path, out: Path) -> None:
    """Write what the zoo's folder holds by now."""
    _write(out / "made_with.csv", made_with())
    own = {r["expert"]: r for r in records(folder, "own")}
    planned = {merge.key for merge in merges()}
    made = [record for record in merge_records(folder) if record["merge"] in planned]
    _write(out / "experts.csv", _experts(folder, own))
    _write(out / "outcomes.csv", _outcomes(made, own))
    _write(out / "nonlinearity.csv", _nonlinearity(folder, made))
    sets = {tuple(r["members"].split("+")) for r in made}
    known = _signals(folder, [m.members for m in merges() if m.members in sets])
    _write(out / "sets.csv", ({"members": r["members"], **_timeless(r["group"])} for r in known))
    _write(
        out / "members.csv",
        (
            {"members": r["members"], "expert": member, **values}
            for r in known
            for member, values in zip(r["members"].split("+"), r["each"], strict=True)
        ),
    )
    _write(out / "remedies.csv", _remedies(folder, made, own))
    foretold = _foretold(folder)
    _write(out / "rivals.csv", _rivals(foretold, sets))
    _write(out / "costs.csv", _costs(folder, made, known, foretold))


def _remedies(
    folder: Path, made: Iterable[Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> Iterable[dict[str, object]]:
    """Before and after each action: the worst loss of the members that it kept or brought in.

    ``kept_before`` is that of the same members before, for those that were there.
    """
    before_of: dict[str, dict[str, float]] = defaultdict(dict)
    for r in made:
        before_of[r["merge"]][r["expert"]] = loss_percent(own[r["expert"]]["own"], r["score"])
    for r in records(folder, "remedy"):
        before = before_of[r["merge"]]
        # What `protect` gives up is named, and not held against it.
        given_up = r["said"].partition("given up so that the others are inside the limit: ")[2]
        after = {
            name: loss_percent(own[name]["own"], score)
            for scores in r["scores"]
            for name, score in scores.items()
            if name not in given_up.split("; ")[0].split(", ")
        }
        yield {
            "merge": r["merge"],
            "action": r["action"],
            "experts": len(before),
            "kept": len(before.keys() & after.keys()),
            "worst_before": min(before.values()),
            "kept_before": min((before[n] for n in before.keys() & after.keys()), default=""),
            "worst_after": min(after.values()) if after else "",
            "said": r["said"][:120],
        }


def _rivals(
    foretold: Iterable[Mapping[str, str]], sets: Collection[tuple[str, ...]]
) -> Iterable[dict[str, object]]:
    """What the other predictors say of each set, as `predictor_rows` wrote it."""
    found: dict[str, dict[str, object]] = {}
    for row in foretold:
        if row["expert"] == "" and row["value"] and tuple(row["members"].split("+")) in sets:
            values = found.setdefault(row["members"], {"members": row["members"]})
            values[row["predictor"]] = float(row["value"])
    return found.values()


def _timeless(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if not key.endswith(".seconds")}


def _foretold(folder: Path) -> list[dict[str, str]]:
    found = []
    for path in sorted(folder.glob("predictors*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found += list(csv.DictReader(file))
    return found


def _costs(
    folder: Path,
    made: Iterable[Mapping[str, Any]],
    known: Iterable[Mapping[str, Any]],
    foretold: Iterable[Mapping[str, str]],
) -> Iterable[dict[str, object]]:
    """Seconds that a signal takes, the mean over sets, beyond what it shares with others."""
    taken: dict[str, list[float]] = defaultdict(list)
    for record in records(folder, "states"):
        taken["states of one model on one task's probes"].append(record["seconds"])
    for record in known:
        for key, value in record["group"].items():
            if key.endswith(".seconds"):
                taken[key.removesuffix(".seconds")].append(value)
    for row in foretold:
        if row["expert"] == "":
            taken[row["predictor"]].append(float(row["seconds"]))
    for record in {r["merge"]: r for r in made}.values():
        taken["merging"].append(record["merge_seconds"])
        taken["rehearsal: states of the merged model"].append(record["rehearse_seconds"])
    for name, values in taken.items():
        yield {"signal": name, "seconds": sum(values) / len(values), "times": len(values)}


def _experts(folder: Path, own: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, object]]:
    offered = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    for name, expert in EXPERTS.items():
        if name not in own:
            continue
        note = json.loads((folder / "experts" / name / "training.json").read_text())
        yield {
            "expert": name,
            "task": expert.task,
            "family": expert.family,
            "unseen": int(expert.unseen),
            "kind": expert.kind,
            "group": expert.group,
            "rate": expert.rate,
            "steps": expert.steps,
            "seed": expert.seed,
            "own": own[name]["own"],
            "base": own[name]["base"],
            "chance": 1 / len(choices) if (choices := offered[expert.task]["choices"]) else 0.0,
            "norm": own[name]["norm"],
            "seconds": note["seconds"],
        }


def _outcomes(
    made: Iterable[Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> Iterable[dict[str, object]]:
    for record in made:
        expert = own.get(record["expert"])
        if expert is None:
            continue
        kept = {k: v for k, v in record.items() if k not in ("merge", "nonlinearity", "few")}
        few, own_few = record.get("few", math.nan), expert.get("few", math.nan)
        # Of an expert that has none right, nothing can be lost.
        kept["few_percent"] = loss_percent(own_few, few) if own_few else math.nan
        loss = loss_percent(expert["own"], record["score"])
        unseen = Merge(tuple(record["members"].split("+")), record["method"]).unseen
        yield {**kept, "loss_percent": loss, "unseen": int(unseen)}


def _nonlinearity(folder: Path, made: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, object]]:
    """Distance from linearity as a share of how far mixing moves the states."""
    known = {r["merge"]: r["values"] for r in records(folder, "displacement")}
    states = ExpertStates(folder)
    for key, record in {r["merge"]: r for r in made if "nonlinearity" in r}.items():
        if key not in known:
            merge = Merge(tuple(record["members"].split("+")), record["method"])
            known[key] = displacement(merge, states)
            kept = {"merge": key, "values": known[key]}
            append(folder / "records" / "displacement-0.jsonl", [kept])
            states.forget()
        shares = (v / d for v, d in zip(record["nonlinearity"], known[key], strict=True))
        values = {f"layer{FIRST_LAYER + 1 + k}": share for k, share in enumerate(shares)}
        yield {"members": record["members"], "method": record["method"], **values}


def _signals(folder: Path, sets: Iterable[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Of every set once; readings that were computed before are kept."""
    known: dict[str, dict[str, Any]] = {}
    for record in records(folder, "signals"):
        _add(known, record)
    states = ExpertStates(folder)
    for members in dict.fromkeys(sets):
        name = "+".join(members)
        there = known.get(name, {"group": {}})["group"]
        read = readings_of(members, wide=states.has_wide(members))
        lacking = [r for r in read if f"{r.name}.seconds" not in there]
        if lacking:
            group, each = signals(members, states, lacking)
            record = {"members": name, "group": group, "each": each}
            append(folder / "records" / "signals-0.jsonl", [record])
            _add(known, record)
            states.forget()
    return [known["+".join(members)] for members in dict.fromkeys(sets)]


def _add(known: dict[str, dict[str, Any]], record: dict[str, Any]) -> None:
    there = known.setdefault(record["members"], record)
    if there is not record:
        there["group"] |= record["group"]
        for member, values in zip(there["each"], record["each"], strict=True):
            member.update(values)


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    rows = list(rows)
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    rough = path.with_name(f".{path.name}")
    with rough.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})
    rough.rename(path)


def _cell(value: object) -> object:
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return "inf" if math.isinf(value) else f"{value:.{DIGITS}g}"
    return value
