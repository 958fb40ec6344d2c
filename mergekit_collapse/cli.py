"""The command line: it parses, calls, prints and exits."""

import sys
from pathlib import Path
from typing import Any

import click
from mergekit.options import MergeOptions, add_merge_options

from mergekit_collapse import __version__
from mergekit_collapse.click_errors import at_the_edge
from mergekit_collapse.commands.cache import cache
from mergekit_collapse.commands.options import (
    PLACES,
    RECIPE,
    REPORT_FOLDER,
    apply,
    given_options,
    measuring_options,
    memory_limit,
    plan_option,
    planning_options,
    recipe_and_out,
    report_files,
    require_distinct,
    require_plan_for,
    writable,
)
from mergekit_collapse.commands.output import FORMATS, ReportFiles, write_text
from mergekit_collapse.commands.recipe_files import require_other, told_of_fix, write_recipe
from mergekit_collapse.commands.study import study
from mergekit_collapse.doctor.doctor import diagnose
from mergekit_collapse.errors import CompatError, InvalidRecipeError
from mergekit_collapse.findings import printable
from mergekit_collapse.formats.comparison import compare
from mergekit_collapse.gate import check as check_recipe
from mergekit_collapse.gate import evaluate as evaluate_merge
from mergekit_collapse.gate import run as run_recipe
from mergekit_collapse.gate import run_plan as run_saved_plan
from mergekit_collapse.pool.chosen_text import recipe_text as chosen_text
from mergekit_collapse.pool.selection import select as select_from
from mergekit_collapse.pool.selection_report import selection_json, selection_text
from mergekit_collapse.recipe.initial_block import add_block
from mergekit_collapse.recipe.text import read_text
from mergekit_collapse.report import terminal
from mergekit_collapse.report.reader import read_report
from mergekit_collapse.report.report import Report
from mergekit_collapse.saved_plan.making import plan_line

_Folder = click.Path(path_type=Path)
_NewFile = click.Path(path_type=Path, dir_okay=False, writable=True)


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

    Exit codes: 0 allowed, 1 could not be evaluated, 2 invalid recipe or usage, 3 refused,
    4 merged but rejected.
    """


main.add_command(study)
main.add_command(cache)


def _show(report: Report, options: MergeOptions, files: ReportFiles) -> None:
    if not options.quiet:
        click.echo(terminal.readings(report), err=files.to_stdout)
    if text := terminal.change(report):
        click.echo(text, err=files.to_stdout)
    click.echo(terminal.ending(report), err=files.to_stdout)
    files.write(report)


@planning_options
@main.command()
@RECIPE
@report_files
@REPORT_FOLDER
@plan_option("Save all that the merge will do, for `run --plan FILE OUT`.")
@click.option("--rehearse", is_flag=True, help="Make the merge in memory and judge it as well.")
@click.option("--parameters", is_flag=True, help="Measure the conflict of the weights as well.")
@click.option(
    "--fix",
    metavar="OUT.yml",
    type=_NewFile,
    help="Write the recipe as its on_violation changed it.",
)
@add_merge_options  # type: ignore[untyped-decorator]  # MergeKit ships no types
@memory_limit
def check(
    *,
    recipe: Path,
    files: ReportFiles,
    report: Path | None,
    rehearse: bool,
    parameters: bool,
    fix: Path | None,
    plan: Path | None,
    merge_options: MergeOptions,
) -> None:
    """Measure and judge RECIPE without merging it.

    A recipe without a compat: block is judged by the default block. Options about the merged
    model, such as --random-seed, go into the plan.
    """
    require_plan_for(given_options(), plan)
    apply(merge_options)
    with files:
        found = check_recipe(
            recipe,
            merge_options,
            report,
            rehearse=rehearse,
            parameters=parameters,
            fix=fix,
            plan=plan,
        )
        _show(found, merge_options, files)
        if plan is not None:
            click.echo(plan_line(found, plan), err=files.to_stdout)
    if fix is not None:
        click.echo(told_of_fix(fix, found), err=files.to_stdout)
    sys.exit(found.verdict.exit_code)


@main.command()
@PLACES
@report_files
@plan_option("Make the merge that `check RECIPE --plan FILE` saved; RECIPE is left out.")
@add_merge_options  # type: ignore[untyped-decorator]  # MergeKit ships no types
@memory_limit
def run(
    *,
    places: tuple[Path, ...],
    files: ReportFiles,
    plan: Path | None,
    merge_options: MergeOptions,
) -> None:
    """Merge RECIPE into OUT if the gate allows it: mergekit-yaml with the gate for certain.

    Takes mergekit-yaml's own options. A recipe without a compat: block is judged by the
    default block.

    run --plan FILE OUT does exactly what the plan says, and refuses where an input changed.
    Options about the merged model are the plan's; those about devices, caches and talk are free.
    """
    recipe, out = recipe_and_out(places, plan)
    apply(merge_options)
    with files:
        if recipe is not None:
            files.write(run_recipe(recipe, out, merge_options))
        else:
            assert plan is not None
            files.write(run_saved_plan(plan, out, merge_options, given=given_options()))


@measuring_options
@main.command()
@RECIPE
@click.argument("merged", type=_Folder)
@report_files
@REPORT_FOLDER
@add_merge_options  # type: ignore[untyped-decorator]  # MergeKit ships no types
@memory_limit
def evaluate(
    *,
    recipe: Path,
    merged: Path,
    files: ReportFiles,
    report: Path | None,
    merge_options: MergeOptions,
) -> None:
    """Hold MERGED, a finished merge of RECIPE, against its experts.

    Exits with 4 if it is over a limit of compat.evaluate; nothing is moved or removed.
    """
    apply(merge_options)
    with files:
        found = evaluate_merge(recipe, merged, merge_options, report)
        _show(found, merge_options, files)
    sys.exit(found.verdict.exit_code)


@main.command()
@click.argument("file", type=_Folder, required=False)
@click.option("--html", metavar="FILE", callback=writable, help="One self-contained page.")
@click.option("--markdown", metavar="FILE", callback=writable, help="For an issue or a wiki.")
@click.option("--junit", metavar="FILE", callback=writable, help="For a CI system.")
@click.option(
    "--compare",
    nargs=2,
    type=_Folder,
    metavar="A.json B.json",
    help="Say what changed from one report to another.",
)
def report(
    file: Path | None,
    html: str | None,
    markdown: str | None,
    junit: str | None,
    compare: tuple[Path, Path] | None,
) -> None:
    """Show FILE, a report.json, in another form; - is standard output.

    Without an option it is shown as Markdown.
    """
    if (file is None) == (compare is None):
        raise InvalidRecipeError("name one report.json, or two with --compare")
    if compare is not None:
        if html or markdown or junit:
            raise InvalidRecipeError("--compare is shown as text; leave the other options out")
        click.echo(_compared(*compare), nl=False)
        return
    assert file is not None
    wanted = {"html": html, "markdown": markdown, "junit": junit}
    require_distinct(wanted)
    document = read_report(file)
    if not any(wanted.values()):
        wanted["markdown"] = "-"
    for kind, name in wanted.items():
        if name is not None:
            write_text(FORMATS[kind](document), name, f"--{kind}")


def _compared(first: Path, second: Path) -> str:
    text = compare(read_report(first), read_report(second))
    return text if text.endswith("\n") else f"{text}\n"


@main.command()
@RECIPE
@click.option("--in-place", "-i", is_flag=True, help="Change RECIPE itself.")
def init(recipe: Path, in_place: bool) -> None:
    """Print RECIPE with a compat: block that shows the main keys; nothing else is changed."""
    text = add_block(read_text(recipe, newline=""))
    if in_place:
        write_recipe(recipe, text)
        click.echo(f"{recipe}: a compat: block was added")
    else:
        click.echo(text, nl=False)


@measuring_options
@main.command()
@click.argument("pool", type=_Folder)
@click.option("--count", type=int, help="How many to choose, over the pool's own.")
@click.option("--recipe", metavar="OUT.yml", type=_NewFile, help="Write the recipe of the chosen.")
@click.option("--json", "json_file", metavar="FILE", callback=writable, help="Write it as JSON.")
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="",
    help="Run the candidates on a Ray cluster, without ADDRESS on this machine's processors or "
    "GPUs. Stands after POOL.",
)
@add_merge_options  # type: ignore[untyped-decorator]  # MergeKit ships no types
@memory_limit
def select(
    *,
    pool: Path,
    count: int | None,
    recipe: Path | None,
    json_file: str | None,
    ray: str | None,
    merge_options: MergeOptions,
) -> None:
    """Choose from POOL, a YAML list of candidates, those that merge best under its budget."""
    require_other(recipe, pool)
    apply(merge_options)
    found = select_from(pool, merge_options, count=count, ray=ray)
    click.echo(selection_text(found), err=json_file == "-")
    if json_file is not None:
        write_text(selection_json(found), json_file, "--json")
    if recipe is not None:
        write_recipe(recipe, chosen_text(found, recipe.absolute().parent))
        click.echo(f"Recipe: {printable(str(recipe))}", err=json_file == "-")
    sys.exit(found.verdict.exit_code)


@main.command()
@click.argument("recipe", type=_Folder, required=False)
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
