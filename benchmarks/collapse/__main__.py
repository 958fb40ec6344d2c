"""Build the zoo, merge it and measure: `python benchmarks/collapse FOLDER`.

Every stage goes on where it stopped. Two workers of one thread each are faster on two cores than
one worker of two. `table` writes what there is to FOLDER/results, or where `--results` says;
`remedies` chooses merges from these tables, and adds to them.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

from other_scripts import OTHERS, run_others
from result_tables import write_tables
from stages import ON_MODELS, prepare, work

STAGES = ("sources", *ON_MODELS, "rivals", "encoder", "table", "remedies")


def main() -> None:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="20 GB, for models and what was measured")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--results", type=Path, help="where tables go (default FOLDER/results)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after so many")
    arguments = parser.parse_args()
    until = time.time() + 60 * arguments.minutes
    folder = arguments.folder.resolve()
    results = (arguments.results or folder / "results").resolve()
    for stage in STAGES:
        if stage not in arguments.stages or (time.time() > until and stage != "table"):
            continue
        if stage == "sources":
            prepare(folder)
        elif stage == "table":
            write_tables(folder, results)
        elif stage in OTHERS:
            run_others(stage, folder, results, until)
        else:
            _share_out(stage, folder, arguments.workers, until)
    if "remedies" in arguments.stages:
        write_tables(folder, results)


def _share_out(stage: str, folder: Path, workers: int, until: float) -> None:
    context = multiprocessing.get_context("spawn")
    shared = [
        context.Process(target=work, args=(folder, stage, i, workers, until))
        for i in range(workers)
    ]
    for process in shared:
        process.start()
    for process in shared:
        process.join()
    if any(process.exitcode for process in shared):
        sys.exit(f"stage {stage} failed; what it finished is kept")


if __name__ == "__main__":
    main()
