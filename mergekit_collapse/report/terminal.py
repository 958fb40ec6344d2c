"""The report as a person reads it in a terminal."""

from collections.abc import Iterator

from mergekit_collapse.errors import MergeRejectedError
from mergekit_collapse.findings import printable
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.resampling import Interval
from mergekit_collapse.parameters.conflict_document import conflict_text
from mergekit_collapse.report.merged_text import merged_lines
from mergekit_collapse.report.remedy import remedy_lines
from mergekit_collapse.report.report import Report, cell
from mergekit_collapse.report.verdict_text import verdict_lines
from mergekit_collapse.stopping import stop_text

_SHADES = " ░▒▓█"
_NAME_WIDTH = 32


def readings(report: Report) -> str:
    """Experts, distances and bounds: a few lines of plain text."""
    lines = [*_warnings(report)]
    if (geometry := report.deciding) is not None:
        lines += [*_experts(report, geometry), "", *_grid(report, geometry), "", _bounds(geometry)]
        if geometry.optimistic:
            lines.append(
                "  Mixtures leave this space: upper bounds and predictions are optimistic."
            )
    if report.parameters is not None:
        lines += ["", conflict_text(report.parameters)]
    return "\n".join([*lines, *_merged(report)])


def merged(report: Report) -> str:
    """What was seen of the merged model; empty where nothing was."""
    return "\n".join(merged_lines(report))


def _merged(report: Report) -> Iterator[str]:
    lines = list(merged_lines(report))
    if lines:
        yield from ("", *lines)


def change(report: Report) -> str:
    """What was changed in the recipe, with its diff; empty where nothing was."""
    if report.remedy is None:
        return ""
    return "\n".join(printable(line) for line in remedy_lines(report.remedy))


def verdict(report: Report) -> str:
    """The decision and its reasons."""
    return "\n".join(verdict_lines(report))


def ending(report: Report) -> str:
    """What every way in prints last: the verdict, and where the report is."""
    lines = [verdict(report)]
    if report.verdict.exit_code == MergeRejectedError.exit_code and report.evaluation is not None:
        lines.append(f"Merged model: {printable(str(report.evaluation.model))}")
    if (plan := report.plan) is not None:
        lines.append(f"Plan: {printable(str(plan.path))} (sha256 {plan.sha256[:16]})")
    return "\n".join([*lines, f"Report: {printable(str(report.path))}"])


def _warnings(report: Report) -> Iterator[str]:
    for finding in report.preflight.warnings if report.preflight is not None else ():
        yield f"warning: {printable(str(finding))}"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"


def _experts(report: Report, geometry: Geometry) -> Iterator[str]:
    reading = report.difficulty
    assert reading is not None
    names = [_short(name) for name in report.recipe.names]
    width = max(len("expert"), *map(len, names)) + 4
    yield (
        f"{len(names)} experts, {report.recipe.config.merge_method}; {geometry.space} space, "
        f"{_layers(geometry)}, pooling {geometry.pooling}, scale {geometry.scale}, "
        f"{_probe_count(report)} probes"
    )
    yield f"  {'expert':<{width}} {'weight':>7} {'MDS':>7} {'predicted':>10} {'to base':>8}"
    weights = report.coefficients.weights if report.coefficients is not None else ()
    to_base = geometry.squared[: len(names), len(names) :]
    for index, name in enumerate(names):
        weight = weights[index] if weights else None
        score = cell(reading.mds[index], reading.reasons[index])
        predicted = geometry.predicted[index] if geometry.predicted is not None else None
        base = float(to_base[index, 0]) if to_base.size else None
        yield (
            f"  {f'{index + 1:>2} {name}':<{width}} {cell(weight):>7} {score:>7} "
            f"{cell(predicted):>10} {cell(base):>8}"
        )
    if report.measurement is not None and (stop := report.measurement.stop) is not None:
        yield f"  {stop_text(stop)}"
    if report.measurement is not None and (cached := report.measurement.cached):
        yield f"  From the cache, not run again: {', '.join(map(_short, cached))}."
    if geometry.predicted is None:
        yield f"  No prediction: {geometry.predicted_reason}."
    elif report.coefficients is not None and report.coefficients.note:
        yield f"  Predicted approximately: {report.coefficients.note}."


def _layers(geometry: Geometry) -> str:
    if geometry.space == "predictive":
        return "next-token answers"
    layers = geometry.layers
    return f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"


def _probe_count(report: Report) -> int:
    return len(report.measurement.probe_set.probes) if report.measurement is not None else 0


def _grid(report: Report, geometry: Geometry) -> Iterator[str]:
    """Squared distances; 0 is the same, 2 is unrelated."""
    count = geometry.expert_count
    names = [_short(name) for name in report.recipe.names]
    width = max(map(len, names)) + 4
    yield "  Squared distances D² (0 the same, 2 unrelated, more where lengths or means differ too)"
    yield " " * (width + 2) + "".join(f"{j + 1:>7}" for j in range(count))
    for i, name in enumerate(names):
        row = "".join(_shaded(float(geometry.squared[i, j]), i == j) for j in range(count))
        yield f"  {f'{i + 1:>2} {name}':<{width}}{row}"


def _shaded(value: float, diagonal: bool) -> str:
    if diagonal:
        return f"{'·':>7}"
    # By the distance, not its square, so that small ones can be told apart too.
    shade = _SHADES[min(len(_SHADES) - 1, int((value / 2) ** 0.5 * len(_SHADES)))]
    return f" {shade}{value:>5.2f}"


def _bounds(geometry: Geometry) -> str:
    bounds, confidence = geometry.bounds, geometry.confidence
    return (
        f"  Δ² {bounds.diameter_squared:.3g}{_interval(confidence.diameter_squared)}"
        f" · every merge ≥ {bounds.converse:.3g}"
        f" · ball r² {geometry.ball.radius_squared:.3g}{_interval(confidence.ball_radius_squared)}"
        f" · Jung ({bounds.jung_dimension}) {bounds.jung:.3g}"
        f" · corollary {bounds.corollary:.3g}"
    )


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" [{interval.low:.3g}, {interval.high:.3g}]"
