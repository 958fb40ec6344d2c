"""What the package MergeLens says of each group: the nearest tool, run as it is.

    python benchmarks/collapse/mergelens_scores.py --folder FOLDER --output predictors.csv
        [--mergelens-python PATH]

MergeLens 2.0.3 runs in an environment of its own, FOLDER/mergelens-env unless a PATH is given, by
`mergelens_runner.py`. It gives every result the status `heuristic_unvalidated`, and says that its
weights and thresholds "are hand-specified and have not been prospectively calibrated". Its score is

    100 · (.40 cosine + .20 overlap of leading left singular subspaces + .10 effective rank ratio)
        / (.40 + .20 + .10, each times the share of the parameters that it could be computed for)

of the weights of two models, averaged over tensors by their sizes; of several pairs, the lowest.
From 75 on its tier is `lower_static_conflict`, from 55 on `mixed_static_signals`, below that
`elevated_static_conflict`: here, where higher is worse, up to 25, up to 45 and above.

    mergelens                    100 − score of `compare EXPERTS --base BASE`: every pair is the
                                 base and an expert, none is two experts. Of an expert, its own
    mergelens_no_base            100 − score of `compare EXPERTS`: every pair is the first expert
                                 and another one
    ..._unrounded                the same two before they are rounded to one decimal, from the parts
                                 that come with them: of gentle fine-tunes the score is 100.0
    mergelens_sign_disagreement  how often task vectors differ in sign; 0 against not 0 differs
    mergelens_tsv_interference   overlap of right singular subspaces of task vectors
    mergelens_diagnose           "static proxy" of `diagnose` for equal weights: mean over tensors
                                 and pairs of (1 − cosine of the task vectors)/2

Sign disagreement and overlap are shown beside the score and are no part of it; here they are means
over tensors, as in MergeLens's own text on a strategy.
"""

import argparse
import json
import os
import subprocess
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from predictor_rows import Group, PredictorRow, arguments, row, run

VERSION = "2.0.3"
REQUIREMENTS = ("torch==2.13.0", f"mergelens=={VERSION}")
RUNNER = Path(__file__).with_name("mergelens_runner.py")
CALLS = {
    "based": ("mergelens", "mergelens_unrounded"),
    "bare": ("mergelens_no_base", "mergelens_no_base_unrounded"),
    "task_vectors": ("mergelens_sign_disagreement", "mergelens_tsv_interference"),
    "diagnose": ("mergelens_diagnose",),
}
"""The runner's calls, and what is taken from each."""
_UNTURNED = {
    "task_vectors": ("sign_disagreement_rate", "tsv_interference"),
    "diagnose": ("interference",),
}


def environment(folder: Path) -> Path:
    """The Python of an environment with MergeLens in it, made where there is none.

    Raises:
        SystemExit: it cannot be installed.
    """
    place = folder / "mergelens-env"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = place / "ready"
    if not ready.exists():
        print(f"installing {' and '.join(REQUIREMENTS)} into {place}", flush=True)
        venv.create(place, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(REQUIREMENTS)} cannot be installed into {place}: "
                f"{_end(done.stderr)}\ninstall them elsewhere, and name that environment's "
                "Python with --mergelens-python"
            )
        ready.touch()
    return python


def answers(
    python: Path, folder: Path, groups: Sequence[Group], calls: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """MergeLens's numbers for every group, in order, from one process.

    Raises:
        SystemExit: PATH is no Python with that MergeLens, or MergeLens fails.
    """
    command = [str(python), "-I", str(RUNNER), str(folder / "mergelens-svd")]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
        )
    except OSError as error:
        raise SystemExit(f"--mergelens-python {python} cannot be run: {error}") from error
    try:
        version = json.loads(_line(process, python))["version"]
        if version != VERSION:
            raise SystemExit(
                f"--mergelens-python {python} has mergelens {version}, and what is measured here "
                f"is {VERSION}; pip install mergelens=={VERSION}"
            )
        for group in groups:
            experts = [str((folder / "experts" / name).resolve()) for name in group]
            base = str((folder / "base").resolve())
            asked = {"base": base, "experts": experts, "calls": list(calls)}
            _tell(process, json.dumps(asked))
            found: dict[str, Any] = json.loads(_line(process, python))
            yield found
    finally:
        # It writes a decomposition beside its place, so nothing is left half done.
        process.kill()
        process.communicate()


def _tell(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # Of which reading the answer will tell.
        process.stdin.write(f"{text}\n")
        process.stdin.flush()


def _line(process: "subprocess.Popen[str]", python: Path) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise SystemExit(
            f"MergeLens ended with status {process.wait()}, see its message above; "
            f"{python} needs {' and '.join(REQUIREMENTS)}"
        )
    return line


def answer_rows(group: Group, found: Mapping[str, Any]) -> Iterator[PredictorRow]:
    """One group's rows, turned so that higher is worse; what MergeLens leaves out is empty."""
    members = "+".join(group)
    for call in ("based", "bare"):
        if call not in found:
            continue
        seconds = sum(pair["seconds"] for pair in found[call])
        for name, key in zip(CALLS[call], ("score", "unrounded"), strict=True):
            values = [pair[key] for pair in found[call]]
            # As MergeLens does it: the lowest, and none where a pair has none.
            yield row(members, "", name, None if None in values else 100 - min(values), seconds)
            if call == "based":
                for expert, value in zip(group, values, strict=True):
                    yield row(
                        members, expert, name, None if value is None else 100 - value, seconds
                    )
    for call, keys in _UNTURNED.items():
        for name, key in zip(CALLS[call], keys, strict=True):
            if call in found:
                yield row(members, "", name, found[call][key], found[call]["seconds"])


def _end(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "pip said nothing"


def scores(
    folder: Path,
    groups: Sequence[Group],
    python: Path | None = None,
    calls: Sequence[str] = tuple(CALLS),
) -> Iterator[PredictorRow]:
    """MergeLens's numbers for every group, from the calls that are asked for.

    Seconds are those of the call that gives the number, with the decompositions and pairs of
    earlier calls at hand; without them a pair takes minutes.
    """
    chosen = environment(folder) if python is None else python
    for group, found in zip(groups, answers(chosen, folder, groups, calls), strict=True):
        yield from answer_rows(group, found)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument(
        "--mergelens-python", type=Path, metavar="PATH", help="Python that can import mergelens"
    )
    parser.add_argument(
        "--calls", nargs="+", choices=CALLS, default=list(CALLS), help="what to ask it (all)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    given = _options()
    wanted = [name for call in given.calls for name in CALLS[call]]
    run(given, wanted, partial(scores, python=given.mergelens_python, calls=given.calls))
