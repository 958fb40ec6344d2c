"""The stages that are scripts by themselves: rivals, the encoder, the remedies."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from merged_sets import merges

HERE = Path(__file__).parent
OTHERS: Mapping[str, Sequence[str]] = {
    "rivals": ("cka_scores", "parameter_conflict_scores", "gradient_distance", "mergelens_scores"),
    "encoder": ("encoder_zoo",),
    "remedies": ("remedy_outcomes",),
}
"""The scripts of each stage, which go on where they stopped."""
GRACE = 900
"""Seconds over the limit, for what was begun within it."""


def run_others(stage: str, folder: Path, results: Path, until: float) -> None:
    """Run what a stage is made of, one script after the other.

    Raises:
        SystemExit: a script failed; what it finished is kept.
    """
    for script in OTHERS[stage]:
        if (minutes := (until - time.time()) / 60) > 0:
            command = [sys.executable, str(HERE / f"{script}.py")]
            command += _asked(stage, script, folder, results, minutes)
            # Rivals know no limit of time; what they finished is kept where they are ended.
            with suppress(subprocess.TimeoutExpired):
                if subprocess.run(command, check=False, timeout=minutes * 60 + GRACE).returncode:
                    sys.exit(f"stage {stage} failed in {script}; what it finished is kept")


def _asked(stage: str, script: str, folder: Path, results: Path, minutes: float) -> list[str]:
    if stage == "rivals":
        output = folder / f"predictors-{script}.csv"
        return [f"--folder={folder}", f"--groups={_seen_sets(folder)}", f"--output={output}"]
    told = [f"--results={results}", f"--minutes={minutes}"]
    return [*told, f"--folder={folder}"] if stage == "encoder" else [*told, str(folder)]


def _seen_sets(folder: Path) -> Path:
    """Rivals are asked about the sets that signals are compared on."""
    path = folder / "groups.txt"
    seen = dict.fromkeys("+".join(merge.members) for merge in merges() if not merge.unseen)
    path.write_text("".join(f"{members}\n" for members in seen), encoding="utf-8")
    return path
