"""The section about the gate in a merged model's card."""

import html
from pathlib import Path

from mergekit_collapse.report.report import Report, cell


def card_section(report: Report) -> str:
    """Verdict, scores, probe digest and versions, in Markdown."""
    verdict, measured = report.verdict, report.measurement
    lines = [
        "## Compatibility",
        "",
        f"Checked before the merge by mergekit-collapse {report.versions['mergekit-collapse']}: "
        f"**{verdict.decision}**.",
        "",
    ]
    lines += [f"- {_plain(str(reason))}" for reason in verdict.reasons]
    geometry, scores = report.deciding, report.difficulty
    if measured is not None and geometry is not None and scores is not None:
        heads = f"| expert | MDS ({scores.reading}) | predicted distortion |"
        lines += ["", heads, "| --- | --- | --- |"]
        for index, name in enumerate(report.recipe.names):
            predicted = geometry.predicted[index] if geometry.predicted is not None else None
            score = cell(scores.mds[index], scores.reasons[index])
            lines.append(f"| {_plain(name)} | {score} | {cell(predicted)} |")
        lines += [
            "",
            f"Space {geometry.space}, Δ² {geometry.bounds.diameter_squared:.3g}, "
            f"enclosing ball r² {geometry.ball.radius_squared:.3g}. "
            f"{len(measured.probe_set.probes)} probes, "
            f"token digest `{measured.token_digest[:16]}`.",
        ]
    libraries = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return "\n".join([*lines, "", f"Versions: {libraries}.", ""])


def add_to_card(report: Report, model: Path) -> None:
    """Append the section to the model's ``README.md``, where MergeKit wrote one."""
    card = model / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8").rstrip("\n")
        card.write_text(f"{text}\n\n{card_section(report)}", encoding="utf-8")


def _plain(text: str) -> str:
    """A stranger's text with nothing that Markdown or HTML would obey."""
    one_line = " ".join(text.split())
    for mark in "\\`*_[]|<>":
        one_line = one_line.replace(mark, html.escape(mark) if mark in "<>" else f"\\{mark}")
    return one_line
