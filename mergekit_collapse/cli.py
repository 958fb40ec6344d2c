"""The command line: it parses, calls, prints and exits."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click
from mergekit.options import MergeOptions, add_merge_options

from mergekit_collapse import __version__
from mergekit_collapse.click_errors import at_the_edge
from mergekit_collapse.doctor.doctor import diagnose
from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    InvalidRecipeError,
    MergeRefusedError,
)
from mergekit_collapse.findings import printable
from mergekit_collapse.gate import check as check_recipe
from mergekit_collapse.gate import run as run_recipe
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import to_json
from mergekit_collapse.report.report import Report

# Of mergekit-yaml's options, those about devices, caches, trust and talk.
_MEASURING = {
    *("allow_crimes", "cuda", "device", "num_threads", "quiet", "transformers_cache"),
    *("trust_remote_code", "unsafe_truncate_embeddings", "verbosity"),
}
_RECIPE = click.argument("recipe", type=click.Path(path_type=Path))


def _writable(_ctx: click.Context, _param: click.Parameter, file: Any) -> Any:
    """Said before the models are measured; the file is opened when there is something to write."""
    if file is not None and file.name != "-":
        path = Path(file.name)
        place = path if path.exists() else path.absolute().parent
        if path.is_dir() or not place.exists() or not os.access(place, os.W_OK):
            raise click.BadParameter(f"{path} cannot be written; name a file in a folder that can")
    return file


_JSON = click.option(
    "--json",
    "json_file",
    callback=_writable,
    type=click.File("w", encoding="utf-8", lazy=True),
    help="Also write the report to this file, or to standard output if -.",
)


class _Group(click.Group):
    """Turns the exception family into clean messages with the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CompatError as error:
            raise at_the_edge(error) from error


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="mergekit-collapse")
def main() -> None:
    """Refuse doomed model merges: measure the experts of a MergeKit recipe before they are merged.

    Exit codes: 0 allowed, 1 could not be evaluated, 2 invalid recipe or usage, 3 refused.
    """


def _measuring_options(command: click.Command) -> click.Command:
    """Keep the MergeKit options that matter where nothing is merged."""
    unused = set(MergeOptions.model_fields) - _MEASURING
    command.params = [param for param in command.params if param.name not in unused]
    return command


def _apply(options: MergeOptions) -> None:
    try:
        options.apply_global_options()
    except RuntimeError as error:
        raise InvalidRecipeError(f"--num-threads {options.num_threads}: {error}") from None


def _write_json(file: Any, report: Report | None) -> None:
    if file is None or report is None:
        return
    try:
        file.write(to_json(report))
        file.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:  # a reader that had enough; click ends quietly
            raise
        raise EvaluationError(
            f"--json {file.name}: cannot be written: {error.strerror}; free the disk, or read "
            f"{report.path}"
        ) from None


@_measuring_options
@main.command()
@_RECIPE
@_JSON
@click.option(
    "--report", type=click.Path(path_type=Path), help="Folder for report.json, over the block's."
)
@add_merge_options  # type: ignore[untyped-decorator]  # MergeKit ships no types
def check(recipe: Path, json_file: Any, report: Path | None, merge_options: MergeOptions) -> None:
    """Measure and judge RECIPE without merging it.

    A recipe without a compat: block is judged by the default block.
    """
    _apply(merge_options)
    found = check_recipe(recipe, merge_options, report)
    # The document has standard output to itself.
    to_stderr = json_file is not None and json_file.name == "-"
    if not merge_options.quiet:
        click.echo(terminal.readings(found), err=to_stderr)
    click.echo(terminal.ending(found), err=to_stderr)
    _write_json(json_file, found)
    sys.exit(found.verdict.exit_code)


@main.command()
@_RECIPE
@click.argument("out", type=click.Path(path_type=Path))
@_JSON
@add_merge_options  # type: ignore[untyped-decorator]  # MergeKit ships no types
def run(recipe: Path, out: Path, json_file: Any, merge_options: MergeOptions) -> None:
    """Merge RECIPE into OUT if the gate allows it: mergekit-yaml with the gate for certain.

    Takes mergekit-yaml's own options. A recipe without a compat: block is judged by the
    default block.
    """
    _apply(merge_options)
    try:
        report = run_recipe(recipe, out, merge_options)
    except MergeRefusedError as refusal:
        _write_json(json_file, refusal.report)
        raise
    _write_json(json_file, report)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
def doctor(recipe: Path | None) -> None:
    """Say whether the stock MergeKit commands obey compat: blocks here, and that of RECIPE.

    Exits with 1 where a block would be ignored.
    """
    diagnosis = diagnose(recipe)
    for finding in diagnosis.findings:
        text = "\n".join(map(printable, finding.text.split("\n")))
        click.echo(f"{finding.level:>8}  {finding.subject}: {text}")
    sys.exit(diagnosis.exit_code)


@main.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mergekit-collapse-demo"),
    show_default=True,
    help="Folder for the recipes, the merged model and the reports.",
)
def demo(work: Path) -> None:
    """Merge a good group and have a doomed one refused: real weights, offline, no arguments."""
    from mergekit_collapse.demo.run import run_demo  # its libraries are an extra

    run_demo(work)
