"""Train, merge and measure the encoder's part of the benchmark, from where it was left.

    python benchmarks/collapse/encoder_zoo.py --folder FOLDER [--minutes N] [--summary]

FOLDER has tasks/ and tasks.json, as `python benchmarks/collapse FOLDER --stages sources` writes
them. Everything is kept in FOLDER/encoder; the tables are written to results/ beside this file.
"""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
import transformers
from encoder_base import ensure_base
from encoder_experts import EXPERTS, PAIRS, SETS
from encoder_merges import make_merge, merges
from encoder_signals import read_all, read_group
from encoder_summary import summary
from encoder_tables import (
    expert_rows,
    outcome_rows,
    read_records,
    signal_rows,
    signals,
    write,
)
from encoder_training import make_expert

RESULTS = Path(__file__).parent / "results"


def build(folder: Path, results: Path, minutes: float) -> None:
    """All that is not there yet, then the tables.

    Args:
        minutes: after which no further merge is begun; the tables hold those that are there.
    """
    end = time.perf_counter() + 60 * minutes
    base = ensure_base(folder)
    for name in EXPERTS:
        make_expert(name, folder, base)
    read = read_all(folder)
    groups = {members: read_group(read, members) for members in (*PAIRS, *SETS)}
    for method, members in merges():
        if time.perf_counter() < end:
            make_merge(folder, method, groups[members])
    experts, records = read_records(folder)
    write(results / "encoder_experts.csv", expert_rows(experts))
    write(results / "encoder_outcomes.csv", outcome_rows(experts, records))
    found = (s for g in groups.values() for s in signals(folder, read, g, experts, records))
    write(results / "encoder_predictors.csv", signal_rows(found))
    merged = sum(sum(record["seconds"].values()) for record in records.values())
    trained = sum(record["seconds"] for record in experts.values())
    print(
        f"{len(experts)} experts trained in {trained / 60:.0f} minutes; {len(records)} of "
        f"{len(merges())} merges made, measured and scored in {merged / 60:.0f}"
    )


def main() -> None:
    """What a person types."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the zoo; without it nothing is made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then begin no merge")
    parser.add_argument("--summary", action="store_true", help="print AUROCs from the tables")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger().setLevel(logging.ERROR)
    # More threads than one gain little at this size, and other numbers may come out.
    torch.set_num_threads(1)
    if options.folder is not None:
        build(options.folder.resolve(), options.results, options.minutes)
    if options.summary:
        print("\n".join(summary(options.results)))


if __name__ == "__main__":
    main()
