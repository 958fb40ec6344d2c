"""The commands that judge the signals themselves, and not a merge."""

import math
from pathlib import Path
from typing import Any

import click

from mergekit_collapse.commands.options import writable
from mergekit_collapse.commands.output import write_text
from mergekit_collapse.errors import CompatError
from mergekit_collapse.study.report_signals import SIGNALS


class _Finite(click.FloatRange):
    """A range takes a NaN for a number inside it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
        return found


@click.group()
def study() -> None:
    """How far the signals that the gate goes by can be trusted."""


@study.command()
@click.option("--json", "json_file", metavar="FILE", callback=writable, help="Write it as JSON.")
def paper(json_file: str | None) -> None:
    """Recompute what arXiv 2603.09463 claims from the tables that it prints."""
    # SciPy's statistics are slow to import, and no other command needs them.
    from mergekit_collapse.study.paper_document import paper_json
    from mergekit_collapse.study.paper_study import study_paper
    from mergekit_collapse.study.paper_tables import read_paper_tables
    from mergekit_collapse.study.paper_text import paper_text

    found = study_paper(read_paper_tables())
    click.echo(paper_text(found), err=json_file == "-")
    if json_file is not None:
        write_text(paper_json(found), json_file, "--json")


@study.command()
@click.argument("reports", type=click.Path(path_type=Path))
@click.option(
    "--collapse",
    type=_Finite(min=0, max=100, max_open=True),
    default=20.0,
    show_default=True,
    help="A merge collapsed if a task lost more than this, in percent.",
)
@click.option(
    "--signal",
    "names",
    metavar="NAME",
    multiple=True,
    type=click.Choice([signal.name for signal in SIGNALS]),
    help="Only this signal, such as hidden.ball; may be repeated.",
)
@click.option(
    "--cost",
    type=_Finite(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of refusing every good merge, as a multiple of letting every collapse through.",
)
@click.option("--json", "json_file", metavar="FILE", callback=writable, help="Write it as JSON.")
def calibrate(
    reports: Path, collapse: float, names: tuple[str, ...], cost: float, json_file: str | None
) -> None:
    """Fit limits to merges of your own.

    REPORTS is a folder with report.json files at any depth, of merges that were evaluated on tasks
    with targets.
    """
    from mergekit_collapse.study.calibration import calibrate as fit
    from mergekit_collapse.study.calibration_document import calibration_json
    from mergekit_collapse.study.calibration_text import calibration_text, unused_text
    from mergekit_collapse.study.finished_merges import finished_merges
    from mergekit_collapse.study.report_folder import read_reports

    read, unreadable = read_reports(reports)
    merges, others = finished_merges(read)
    unused = (*unreadable, *others)
    signals = [signal for signal in SIGNALS if signal.name in (names or (signal.name,))]
    try:
        found = fit(merges, signals, collapse=collapse, cost=cost)
    except CompatError:
        # Why there are too few stands there.
        click.echo(unused_text(unused), nl=False, err=True)
        raise
    click.echo(calibration_text(found, unused), err=json_file == "-")
    if json_file is not None:
        write_text(calibration_json(found, unused), json_file, "--json")
