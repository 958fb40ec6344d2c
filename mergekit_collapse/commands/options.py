"""Options that several commands take."""

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from mergekit.options import MergeOptions

from mergekit_collapse.byte_size import EXAMPLES, parse_size
from mergekit_collapse.commands.output import ReportFiles
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.merge_options import with_memory
from mergekit_collapse.saved_plan.options import PLANNED, STANDING_FOR

# Of mergekit-yaml's options, those about devices, caches, trust and talk.
_MEASURING = {
    *("allow_crimes", "cuda", "device", "lora_merge_cache", "num_threads", "quiet"),
    *("transformers_cache", "trust_remote_code", "unsafe_truncate_embeddings", "verbosity"),
}

# Whatever else is there already, such as weights or a recipe, is not to be overwritten.
_REPORTS = (".json", ".html", ".htm", ".xml", ".md", ".txt")

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
PLACES = click.argument(
    "places",
    nargs=-1,
    metavar="(RECIPE OUT | --plan FILE OUT)",
    type=click.Path(path_type=Path),
)
REPORT_FOLDER = click.option(
    "--report", type=click.Path(path_type=Path), help="Folder for report.json, over the block's."
)


def writable(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    """Said before the models are measured, not when there is something to write."""
    if name is not None and name != "-":
        path = Path(name)
        place = path if path.exists() else path.absolute().parent
        if path.is_dir() or not place.exists() or not os.access(place, os.W_OK):
            raise click.BadParameter(f"{path} cannot be written; name a file in a folder that can")
        if path.is_file() and path.suffix.lower() not in _REPORTS:
            raise click.BadParameter(
                f"{path} is there already and looks like no report; remove it, or name a file that "
                f"ends in {', '.join(_REPORTS)}"
            )
    return name


class _Size(click.ParamType[int]):
    """Bytes, as ``8GB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = value if isinstance(value, int) else parse_size(value)
        if not found:
            self.fail(f"{value!r} is no size; write it as {EXAMPLES}", param, ctx)
        return int(found)


def memory_limit(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--max-memory SIZE``, put into the command's ``merge_options``."""

    @functools.wraps(command)
    def with_limit(*, max_memory: int | None, merge_options: MergeOptions, **rest: Any) -> Any:
        return command(merge_options=with_memory(merge_options, max_memory), **rest)

    return click.option(
        "--max-memory",
        type=_Size(),
        metavar="SIZE",
        help="Most memory for measuring, of this process or of the GPU, such as 8GB: fewer models "
        "at a time and smaller batches, or refused before a weight is read.",
    )(with_limit)


def require_distinct(names: Mapping[str, str | None]) -> None:
    """Two documents in one place would be none.

    Args:
        names: file of each option, None where it was not given.

    Raises:
        InvalidRecipeError: two options name the same file, or both standard output.
    """
    taken: dict[str, str] = {}
    for option, name in names.items():
        if name is None:
            continue
        place = name if name == "-" else os.path.realpath(name)
        if (first := taken.setdefault(place, option)) != option:
            where = "standard output" if name == "-" else name
            raise InvalidRecipeError(
                f"--{first} and --{option} both go to {where}; name another file for one of them"
            )


def plan_option(text: str) -> Callable[..., Any]:
    """``--plan FILE``, with what it is for."""
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option("--plan", metavar="FILE", type=kind, help=text)


def measuring_options(command: click.Command) -> click.Command:
    """Keep the MergeKit options that matter where nothing is merged."""
    return _with_only(_MEASURING, command)


def planning_options(command: click.Command) -> click.Command:
    """Keep those, and the ones that a plan holds; see `require_plan_for`."""
    return _with_only(_MEASURING | PLANNED | set(STANDING_FOR), command)


def _with_only(kept: Collection[str], command: click.Command) -> click.Command:
    unused = set(MergeOptions.model_fields) - set(kept)
    command.params = [param for param in command.params if param.name not in unused]
    return command


def given_options() -> frozenset[str]:
    """Names of the MergeKit options that stand on the command line."""
    source = click.get_current_context().get_parameter_source
    typed = ParameterSource.COMMANDLINE
    return frozenset(name for name in MergeOptions.model_fields if source(name) is typed)


def require_plan_for(given: Collection[str], plan: Path | None) -> None:
    """Options about a merge say nothing where none is made or planned.

    Raises:
        InvalidRecipeError: one was given, and no plan is to be written.
    """
    if plan is None and (unused := sorted(set(given) - _MEASURING)):
        raise InvalidRecipeError(
            f"--{unused[0].replace('_', '-')}: is about the merged model, and a check makes none; "
            "leave it out, or save the merge with --plan FILE"
        )


def recipe_and_out(places: Sequence[Path], plan: Path | None) -> tuple[Path | None, Path]:
    """The paths of ``run``; where a plan holds the recipe, OUT alone is there.

    Raises:
        click.UsageError: there are more or fewer.
    """
    if len(places) == (2 if plan is None else 1):
        return (places[0] if plan is None else None), places[-1]
    count = f"{len(places)} path{'' if len(places) == 1 else 's'}"
    if plan is not None:
        told = f"--plan {plan} holds the recipe, so that OUT alone is named beside it; got {count}"
    else:
        told = f"two paths are needed, the recipe and the output folder; got {count}"
    raise click.UsageError(f"{told}. Write `run RECIPE OUT`, or `run --plan FILE OUT`")


def report_files(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, ``--html`` and ``--junit``, each a file or ``-``, as one ``files``."""

    @functools.wraps(command)
    def with_files(*, json: str | None, html: str | None, junit: str | None, **rest: Any) -> Any:
        others = {name: rest.get(name) for name in ("plan", "fix")}
        named = {name: str(path) if path is not None else None for name, path in others.items()}
        require_distinct({"json": json, "html": html, "junit": junit} | named)
        return command(files=ReportFiles(json, html, junit), **rest)

    told = {"json": "as JSON", "html": "as one self-contained page", "junit": "as JUnit XML"}
    for name, what in reversed(told.items()):
        text = f"Also write the report {what} to FILE, or to standard output if -."
        option = click.option(f"--{name}", metavar="FILE", callback=writable, help=text)
        with_files = option(with_files)
    return with_files


def apply(options: MergeOptions) -> None:
    """Set what MergeKit's options set for the whole process.

    Raises:
        InvalidRecipeError: a number of threads that torch refuses.
    """
    try:
        options.apply_global_options()
    except RuntimeError as error:
        raise InvalidRecipeError(f"--num-threads {options.num_threads}: {error}") from None
