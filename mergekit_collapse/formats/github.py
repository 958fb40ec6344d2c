"""The report where a GitHub workflow shows it: annotations, and the step's summary."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import printable
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.formats.missing_keys import complete
from mergekit_collapse.formats.readings import reason_text
from mergekit_collapse.formats.stages import Stage, ending, stages

# GitHub shows no more of one step, and drops a summary that is longer than a mebibyte: some
# bytes below it, since the runner writes the file anew before it looks.
_SHOWN = 10
_SUMMARY_BYTES = 1024 * 1024 - 1024
_CUT = "\n\nCut here: GitHub shows no more than 1 MiB of a step. report.json has all of it.\n"


def annotate(document: dict[str, Any], environ: Mapping[str, str] = os.environ) -> str:
    """Workflow commands, one a line, for what the stages decided; nothing outside a workflow.

        ::error title=…,file=RECIPE::message

    The runner reads them from standard output and standard error alike. An ``error`` for
    each reason of a refusal or rejection, a ``warning`` for each that only warns, a
    ``notice`` where all is well. ``file`` is relative to the checkout, where the recipe
    lies in it.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return ""
    document = complete(document)
    place = _place(document["recipe"]["path"], environ.get("GITHUB_WORKSPACE"))
    lines = [_command(*parts, place) for stage in stages(document) for parts in _said(stage)]
    if not lines:
        lines = [_command("notice", f"merge {ending(document).word}", "every limit is kept", place)]
    if len(lines) > _SHOWN:
        more = f"and {len(lines) - _SHOWN + 1} more reasons; report.json has all of them"
        kind = lines[_SHOWN - 1].split(maxsplit=1)[0].removeprefix("::")
        lines[_SHOWN - 1 :] = [_command(kind, f"merge {ending(document).word}", more, place)]
    return "".join(f"{line}\n" for line in lines)


def append_summary(document: dict[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Append the Markdown to the step's summary, where a workflow has one.

    Raises:
        EvaluationError: the file cannot be written.
    """
    name = environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    path = Path(name)
    try:
        taken = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            # An empty line, so that what is there does not take the heading for its own.
            text = ("\n" if taken else "") + to_markdown(document)
            file.write(_shortened(text.encode(), _SUMMARY_BYTES - taken))
    except OSError as error:
        raise EvaluationError(
            f"GITHUB_STEP_SUMMARY: {path} cannot be written: {error.strerror}; "
            "unset it, or free the disk"
        ) from None


def _said(stage: Stage) -> Iterator[tuple[str, str, str]]:
    """Kind, title and message."""
    kind = "error" if stage.exit_code else "warning"
    title = f"{stage.name}: {stage.decision}{stage.told}"
    bad = [check for check in stage.checks if check.outcome in ("failed", "error", "warned")]
    yield from ((kind, title, reason_text(reason)) for reason in stage.reasons)
    if not stage.reasons:
        yield from ((kind, title, f"{check.reading.name}: {check.text}") for check in bad)


def _command(kind: str, title: str, message: str, place: str | None) -> str:
    properties = {"title": f"mergekit-collapse, {title}"} | ({"file": place} if place else {})
    named = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{kind} {named}::{_data(message)}"


def _data(text: str) -> str:
    """A line end would start a command of the stranger's own."""
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _place(recipe: str | None, workspace: str | None) -> str | None:
    if recipe is None or not workspace:
        return None
    path, root = Path(os.path.realpath(recipe)), Path(os.path.realpath(workspace))
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None


def _shortened(text: bytes, room: int) -> bytes:
    """Whole lines, so that no table or character is cut in two."""
    if len(text) <= room:
        return text
    kept = text[: max(0, room - len(_CUT.encode()))]
    kept = kept[: kept.rfind(b"\n") + 1]
    return kept + _CUT.encode() if len(_CUT.encode()) <= room else b""
