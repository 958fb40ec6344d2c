"""The main job on real weights: stock MergeKit merges one recipe and refuses another."""

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import click

from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.smollm2 import ensure_base
from mergekit_collapse.errors import EvaluationError, MergeRefusedError, MergeRejectedError

_RECIPES = ("good", "doomed", "twin")
_REFUSED, _REJECTED = MergeRefusedError.exit_code, MergeRejectedError.exit_code


def run_demo(work: Path) -> None:
    """Merge a good group, have a doomed one refused and rejected, and rehearse a blind spot.

    Args:
        work: folder for the recipes, the merged models and the reports; made anew.

    Raises:
        EvaluationError: a part of the demo is not installed, or it did not end as it should.
    """
    work = work.resolve()
    base = ensure_base(cache_folder())
    with resources.as_file(resources.files("mergekit_collapse.demo")) as shipped:
        _start_afresh(work)
        good, doomed, twin = (write_recipe(shipped, work, base, name) for name in _RECIPES)
        _title("Three adapters of one base, trained gently:")
        _expect(0, _run("mergekit-yaml", good, work, work / "good"))
        _title("Three adapters of the same base, trained too hot:")
        _expect(_REFUSED, _run("mergekit-yaml", doomed, work, work / "doomed"))
        _title("Was it right? The same recipe with `on_violation: warn`, judged when it is merged:")
        warned = work / "doomed-warned.yml"
        text = doomed.read_text(encoding="utf-8")
        warned.write_text(text.replace("compat:\n", "compat:\n  on_violation: warn\n"), "utf-8")
        _expect(_REJECTED, _run("mergekit-yaml", warned, work, work / "doomed-warned"))
        for out in ("doomed", "doomed-warned"):
            if (work / out).exists():
                raise EvaluationError(f"{work / out}: a merge that failed left an output folder")
        _title("An adapter and its twin with swapped labels, as near as can be; so, rehearsed:")
        _expect(_REFUSED, _run("mergekit-collapse check --rehearse", twin, work))
    _title("Accuracy on held-out rows, by likelihood over two answers:")
    for name, title in (
        ("good", "trained gently"),
        ("doomed-warned", "trained too hot"),
        ("twin", "swapped labels"),
    ):
        _show_tasks(title, work / f"{name}.compat" / "report.json")
    click.echo(f"\nReports: {work}/*.compat/report.json")


def _start_afresh(work: Path) -> None:
    """Clear what an earlier demo left; other files in the folder stay."""
    work.mkdir(parents=True, exist_ok=True)
    made = ("good", "doomed", "doomed-warned", "doomed-warned.rejected", "twin", "adapters")
    for name in (*made, *(f"{out}.compat" for out in made)):
        shutil.rmtree(work / name, ignore_errors=True)


def write_recipe(shipped: Path, work: Path, base: Path, name: str) -> Path:
    """A shipped recipe in the folder ``work``, with the paths of this machine."""
    text = (shipped / "recipes" / f"{name}.yml").read_text(encoding="utf-8")
    path = work / f"{name}.yml"
    for word, folder in (
        ("BASE", base),
        ("ADAPTERS", shipped / "adapters"),
        ("PROBES", shipped / "probes"),
    ):
        text = text.replace(word, str(folder))
    path.write_text(text, encoding="utf-8")
    return path


def _title(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _show_tasks(title: str, report: Path) -> None:
    """What each task was worth to its own expert, and to the merge of all."""
    document = json.loads(report.read_text(encoding="utf-8"))
    radius = document["geometry"]["hidden"]["ball_radius_squared"]
    click.echo(f"\n  {f'{title}, ball r² {radius:.2f}':<32} {'expert':>7} {'merged':>7}")
    for task in (document["evaluation"] or document["rehearsal"])["tasks"]:
        click.echo(f"  {task['name']:<32} {task['expert']:>7.2f} {task['merged']:>7.2f}")


def _run(command: str, recipe: Path, work: Path, *more: Path) -> int:
    """Run a command of this environment, its output going where ours goes."""
    program, *words = command.split()
    beside = Path(sys.executable).with_name(program)
    module = {"mergekit-yaml": "mergekit.scripts.run_yaml"}.get(program, "mergekit_collapse")
    start = [str(beside)] if beside.exists() else [sys.executable, "-m", module]
    shown = " ".join([command, recipe.name, *(path.name for path in more)])
    click.secho(f"$ {shown}", fg="cyan")
    environment = {
        **os.environ,
        "MERGEKIT_COLLAPSE": "1",
        "HF_HUB_OFFLINE": "1",
        # What transformers and PEFT deprecate of each other's is no news to the reader.
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    paths = [str(path) for path in (recipe, *more)]
    adapters = ["--lora-merge-cache", str(work / "adapters")]
    # The recipe and the paths are the demo's own, and no shell reads them.
    code = subprocess.run(
        [*start, *words, *paths, *adapters], env=environment, check=False
    ).returncode
    click.secho(f"exit code {code}", fg="green" if code == 0 else "yellow")
    return code


def _expect(wanted: int, code: int) -> None:
    if code != wanted:
        raise EvaluationError(
            f"the demo expected exit code {wanted} and got {code}; "
            "run `mergekit-collapse doctor` to see whether the stock commands are hooked"
        )
