"""What was seen of the merged model, as a person reads it in a terminal."""

import math
from collections.abc import Iterator

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.findings import printable
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.measured import Measured
from mergekit_collapse.report.report import Report, cell

_TITLES = {
    "rehearsal": "Rehearsed in memory",
    "monitor": "Watched while it was merged",
    "merged": "The finished merge",
}


def merged_lines(report: Report) -> Iterator[str]:
    """Each evaluation there is: predicted beside measured, the layers, the tasks, the checks."""
    measured = report.measurement
    # The finished merge says all that the monitor saw of it.
    monitor = report.monitor if report.evaluation is None else None
    for found in (report.rehearsal, monitor, report.evaluation):
        if found is None:
            continue
        yield f"{_TITLES[found.source]} ({found.seconds:.0f} s):"
        if found.stopped_at is not None:
            yield f"  ended at layer {found.stopped_at}"
        if found.hidden is not None and measured is not None:
            yield _space("hidden", found.hidden, measured.hidden)
        if found.predictive is not None and measured is not None and measured.predictive:
            yield _space("predictive", found.predictive, measured.predictive)
        yield from _layers(found)
        for task in found.tasks:
            loss = task.loss_reason
            if task.loss_percent is not None:
                loss = f"{task.loss_percent:+.1f} %"
            yield (
                f"  {printable(task.name)}: {task.metric} {task.expert:.3g} of its expert, "
                f"{task.merged:.3g} merged ({loss})"
            )
        if found.checks:
            failed = [check.name for check in found.checks if not check.passed]
            told = f"failed: {', '.join(failed)}" if failed else f"{len(found.checks)} passed"
            yield f"  checks: {told}"
        for name, metrics in (found.lm_eval or {}).items():
            shown = ", ".join(f"{metric} {value:.3g}" for metric, value in metrics.items())
            yield f"  lm-eval {printable(name)}: {printable(shown)}"
        yield from (f"  {printable(note)}" for note in found.notes)


def _space(name: str, measured: Measured, geometry: Geometry) -> str:
    predicted = cell(max(geometry.predicted)) if geometry.predicted is not None else "-"
    own = ""
    if measured.own_task_worst is not None:
        own = f"; on own tasks {cell(measured.own_task_worst)}"
    return (
        f"  {name} distortion, worst expert: measured {cell(measured.worst)}, "
        f"predicted {predicted}, no merge below {cell(geometry.ball.radius_squared)}{own}"
    )


def _layers(found: Evaluation) -> Iterator[str]:
    """The lowest ratios, which are the signs of collapse; NaN is below all."""
    parts = []
    for name, key in (("variance", "variance_ratio"), ("effective rank", "rank_ratio")):
        known = [(getattr(one, key), one.layer) for one in found.layers]
        numbers = [(value, layer) for value, layer in known if value is not None]
        if numbers:
            value, layer = min(numbers, key=lambda one: (not math.isnan(one[0]), one[0]))
            parts.append(f"{name} {value:.3g} of the experts' (layer {layer})")
    if parts:
        yield f"  lowest over layers: {', '.join(parts)}"
