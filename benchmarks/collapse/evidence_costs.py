"""What the signals cost, as it was measured while the tables were made."""

from collections.abc import Iterator

from merge_rows import read_table

SHOWN = {
    "states of one model on one task's probes": "states of one expert on 64 probes, all readings",
    "hidden": "r², MDS and predictions in hidden space, from the states",
    "predictive": "the same in predictive space",
    "every_layer": "the same for all 15 layers that differ",
    "cka_mean": "linear CKA, from the states",
    "sign_change_ratio": "parameter conflict",
    "gradient_base_l2": "gradients at the base",
    "gradient_expert_l2": "gradients at the experts",
    "mergelens": "MergeLens with the base",
    "merging": "merging",
    "rehearsal: states of the merged model": "states of the merged model on 32 probes a task",
}


def costs() -> Iterator[str]:
    """Seconds, the mean over sets or merges."""
    rows = {row["signal"]: row for row in read_table("costs.csv")}
    yield "| what | seconds | measured |"
    yield "| --- | ---: | ---: |"
    for name, label in SHOWN.items():
        if name in rows:
            seconds = float(rows[name]["seconds"])
            yield f"| {label} | {seconds:.2g} | {rows[name]['times']} times |"
    yield ""
