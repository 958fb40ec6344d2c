"""Build the zoo, merge it and measure: `python benchmarks/collapse FOLDER`.

Every stage goes on where it stopped. Two workers of one thread each are faster on two cores than
one worker of two. `table` writes what there is to FOLDER/results, or where `--results` says.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

from result_tables import write_tables
from stages import STAGES, prepare, work


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
    context = multiprocessing.get_context("spawn")
    for stage in STAGES:
        if stage not in arguments.stages:
            continue
        if stage == "sources":
            prepare(folder)
        elif stage == "table":
            write_tables(folder, arguments.results or folder / "results")
        else:
            shared = [
                context.Process(target=work, args=(folder, stage, i, arguments.workers, until))
                for i in range(arguments.workers)
            ]
            for process in shared:
                process.start()
            for process in shared:
                process.join()
            if any(process.exitcode for process in shared):
                sys.exit(f"stage {stage} failed; what it finished is kept")


if __name__ == "__main__":
    main()
