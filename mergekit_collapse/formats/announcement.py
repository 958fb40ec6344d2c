"""Where a finished report shows itself besides its folder: a workflow, an experiment tracker."""

import os

import click

from mergekit_collapse.formats.github import annotate, append_summary
from mergekit_collapse.formats.tracking import log_scalars
from mergekit_collapse.report.document import to_document
from mergekit_collapse.report.report import Report


def announce(report: Report) -> None:
    """Annotate the GitHub workflow that this runs in, and log to the trackers of ``log_to``.

    Raises:
        EvaluationError: a tracker or the step's summary does not take it.
    """
    wanted = report.recipe.compat.log_to
    in_workflow = os.environ.get("GITHUB_ACTIONS") == "true"
    if not wanted and not in_workflow:
        return
    document = to_document(report)
    if in_workflow:
        # Standard output may be the document's; the runner reads both.
        click.echo(annotate(document), err=True, nl=False)
        append_summary(document)
    if report.path is not None:
        log_scalars(document, wanted, report.path.parent)
