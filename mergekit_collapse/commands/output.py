"""Writing a report to the files that the command line names."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mergekit_collapse.errors import CompatError, EvaluationError
from mergekit_collapse.findings import printable
from mergekit_collapse.formats.junit import error_junit, to_junit
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.page.html import to_html
from mergekit_collapse.report.document import to_document, to_json
from mergekit_collapse.report.report import Report

Render = Callable[[dict[str, Any]], str]

FORMATS: Mapping[str, Render] = {
    "html": to_html,
    "markdown": to_markdown,
    "junit": to_junit,
}


class ReportFiles:
    """The files that ``--json``, ``--html`` and ``--junit`` name; None for none.

    Within ``with``, an error that ends the command before there is a report goes into the
    JUnit file, so that a CI system shows why.
    """

    def __init__(self, json_file: str | None, html_file: str | None, junit_file: str | None):
        self._names = {"json": json_file, "html": html_file, "junit": junit_file}
        self._written = False

    @property
    def to_stdout(self) -> bool:
        """Whether a document has standard output to itself."""
        return "-" in self._names.values()

    def write(self, report: Report | None) -> None:
        """Write each file; nothing where there is no report.

        Raises:
            EvaluationError: a file cannot be written.
        """
        if report is None:
            return
        self._written = True
        if (name := self._names["json"]) is not None:
            write_text(to_json(report), name, "--json")
        for kind in ("html", "junit"):
            if (name := self._names[kind]) is not None:
                write_text(FORMATS[kind](to_document(report)), name, f"--{kind}")

    def __enter__(self) -> "ReportFiles":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, CompatError):
            return
        if not self._written:
            try:
                self.write(getattr(error, "report", None))
            except EvaluationError as failure:
                # The refusal is what the exit code must say.
                click.echo(printable(str(failure)), err=True)
        if not self._written and (name := self._names["junit"]) is not None:
            write_text(error_junit(str(error), error.exit_code), name, "--junit")


def write_text(text: str, name: str, option: str) -> None:
    """To a file, or to standard output if ``-``.

    Raises:
        EvaluationError: it cannot be written.
    """
    try:
        if name == "-":
            click.echo(text, nl=False)
        else:
            Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        if error.errno == errno.EPIPE:  # a reader that had enough; click ends quietly
            raise
        raise EvaluationError(
            f"{option} {name}: cannot be written: {error.strerror}; free the disk, or name a "
            "file in a folder that can be written"
        ) from None
