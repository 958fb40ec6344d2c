"""Rows of predictors.csv: what was foretold of a merge, and of each expert in it.

Higher means predicted worse, whatever the predictor. A value that is undefined is empty.
"""

import argparse
import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Group = tuple[str, ...]


class PredictorRow(NamedTuple):
    """One predictor's value for a merge, or for one expert in it.

    Attributes:
        members: the experts' names, joined by +.
        method: of the merge; empty where every method has the same value.
        expert: whose task it is about; empty where it is about the whole group.
        value: None where undefined.
        seconds: of a processor, all threads together, that this value costs, beyond loading what
            it shares with others. Not of a clock: other programs run beside a benchmark.
    """

    members: str
    method: str
    expert: str
    predictor: str
    value: float | None
    seconds: float


Key = tuple[str, str, str, str]
Scores = Callable[[Path, Sequence[Group]], Iterable[PredictorRow]]


def pair_rows(
    group: Group, predictor: str, pairs: np.ndarray, seconds: float
) -> Iterator[PredictorRow]:
    """What a symmetric matrix over a group's pairs says of the group and of each expert.

    ``predictor`` is the mean over pairs for the group, and an expert's mean over the others for
    the expert; ``predictor``_max is the largest over pairs, for the group alone.
    """
    members = "+".join(group)
    upper = pairs[np.triu_indices(len(group), 1)]
    yield row(members, "", predictor, float(upper.mean()), seconds)
    yield row(members, "", f"{predictor}_max", float(upper.max()), seconds)
    for i, expert in enumerate(group):
        others = np.delete(pairs[i], i)
        yield row(members, expert, predictor, float(others.mean()), seconds)


def row(
    members: str, expert: str, predictor: str, value: float | None, seconds: float
) -> PredictorRow:
    """A row for every method; NaN and infinity are undefined."""
    defined = value is not None and math.isfinite(value)
    return PredictorRow(members, "", expert, predictor, value if defined else None, seconds)


def standing(output: Path) -> set[Key]:
    """The keys of the rows that a file has; none where there is no file."""
    if not output.exists():
        return set()
    with output.open(encoding="utf-8", newline="") as file:
        return {
            (r["members"], r["method"], r["expert"], r["predictor"]) for r in csv.DictReader(file)
        }


def left_to_do(groups: Iterable[Group], predictors: Iterable[str], output: Path) -> list[Group]:
    """The groups that lack a row about the group for one of the predictors."""
    keys, names = standing(output), list(predictors)
    return [g for g in groups if not all(("+".join(g), "", "", name) in keys for name in names)]


def append(output: Path, rows: Iterable[PredictorRow]) -> int:
    """Add the rows that do not stand there yet, each written before the next is asked for."""
    keys = standing(output)
    new, added = not output.exists(), 0
    with output.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(PredictorRow._fields)
        for found in rows:
            key = (found.members, found.method, found.expert, found.predictor)
            if key not in keys:
                value = "" if found.value is None else f"{found.value:.9g}"
                writer.writerow([*key, value, f"{found.seconds:.3g}"])
                file.flush()
                keys.add(key)
                added += 1
    return added


def tasks_of(folder: Path, groups: Iterable[Group]) -> dict[str, str]:
    """The task of every expert of the groups, by its training.json."""
    names = dict.fromkeys(name for group in groups for name in group)
    files = {name: folder / "experts" / name / "training.json" for name in names}
    return {name: json.loads(f.read_text(encoding="utf-8"))["task"] for name, f in files.items()}


def read_groups(file: Path | None, folder: Path) -> list[Group]:
    """The groups of a file, each once; all pairs of the experts in FOLDER without one.

    The file has names joined by + on every line, or is a CSV with a column ``members``.
    """
    if file is None:
        names = sorted(path.parent.name for path in folder.glob("experts/*/training.json"))
        return list(itertools.combinations(names, 2))
    lines = file.read_text(encoding="utf-8").splitlines()
    if lines and "members" in (columns := lines[0].split(",")):
        place = columns.index("members")
        lines = [cells[place] for cells in csv.reader(lines[1:])]
    return list(dict.fromkeys(tuple(line.strip().split("+")) for line in lines if line.strip()))


def arguments(doc: str) -> argparse.ArgumentParser:
    """What every predictor is asked by."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the zoo")
    parser.add_argument(
        "--groups", type=Path, help="names joined by +, one group a line, or a CSV with members"
    )
    parser.add_argument("--output", type=Path, required=True, help="CSV that rows are added to")
    return parser


def run(options: argparse.Namespace, predictors: Sequence[str], scores: Scores) -> None:
    """Add what is missing in the output, and say how much that was."""
    groups = read_groups(options.groups, options.folder)
    todo = left_to_do(groups, predictors, options.output)
    print(f"{len(todo)} of {len(groups)} groups to do", flush=True)
    if todo:
        print(f"{append(options.output, scores(options.folder, todo))} rows added", flush=True)
