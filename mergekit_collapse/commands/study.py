"""The commands that judge the signals themselves, and not a merge."""

import click

from mergekit_collapse.commands.options import writable
from mergekit_collapse.commands.output import write_text


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
