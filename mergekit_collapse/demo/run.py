"""The main job on real weights: stock MergeKit merges one recipe and refuses another."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from importlib import resources
from pathlib import Path

import click

from mergekit_collapse.demo.scores import CHOICES, load_model, load_rows, score
from mergekit_collapse.demo.smollm2 import cache_folder, ensure_base
from mergekit_collapse.errors import EvaluationError, MergeRefusedError

_GENTLE = {task: task for task in CHOICES}
_HOT = {task: f"{task}-hot" for task in CHOICES}
_RECIPES = ("good", "doomed", "twin")


def run_demo(work: Path) -> None:
    """Merge a good group, have a doomed one refused, and show where the gate is blind.

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
        _expect(0, _mergekit_yaml(good, work / "good", work))
        _title("Three adapters of the same base, trained too hot:")
        _expect(MergeRefusedError.exit_code, _mergekit_yaml(doomed, work / "doomed", work))
        if (work / "doomed").exists():
            raise EvaluationError(f"{work / 'doomed'}: a refused merge left an output folder")
        _title("Was it right? The refused recipe, merged with the gate off:")
        _expect(0, _mergekit_yaml(doomed, work / "doomed-ungated", work, gate="0"))
        _title("Accuracy on held-out rows, by likelihood over two answers:")
        _compare("gently trained", _GENTLE, base, shipped, work / "good")
        _compare("too hot", _HOT, base, shipped, work / "doomed-ungated")
        _title("What these readings do not see: an adapter and its twin with swapped labels.")
        _expect(0, _mergekit_yaml(twin, work / "twin", work))
        _compare("the twins", {"sentiment": "sentiment"}, base, shipped, work / "twin")
        _show_own_tasks(work / "twin.compat" / "report.json")
    click.echo(f"\nReports: {', '.join(str(work / f'{name}.compat') for name in _RECIPES)}")


def _start_afresh(work: Path) -> None:
    """Clear what an earlier demo left; other files in the folder stay."""
    work.mkdir(parents=True, exist_ok=True)
    made = ("good", "doomed", "doomed-ungated", "twin", "adapters")
    for name in (*made, *(f"{recipe}.compat" for recipe in _RECIPES)):
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


def _show_own_tasks(report: Path) -> None:
    """How far apart the twins are on the task that they contradict each other on."""
    geometry = json.loads(report.read_text(encoding="utf-8"))["geometry"]
    for space in ("hidden", "predictive"):
        near = geometry[space]["own_task"]["right"]["squared_distance"][0][1]
        click.echo(f"  D² between the twins on this task, {space} space: {near:.2f}")


def _mergekit_yaml(recipe: Path, out: Path, work: Path, gate: str = "1") -> int:
    """Run the stock command, its output going where ours goes."""
    beside = Path(sys.executable).with_name("mergekit-yaml")
    program = (
        [str(beside)] if beside.exists() else [sys.executable, "-m", "mergekit.scripts.run_yaml"]
    )
    command = [*program, str(recipe), str(out), "--lora-merge-cache", str(work / "adapters")]
    click.secho(f"$ mergekit-yaml {recipe.name} {out.name}", fg="cyan")
    environment = {
        **os.environ,
        "MERGEKIT_COLLAPSE": gate,
        "HF_HUB_OFFLINE": "1",
        # What transformers and PEFT deprecate of each other's is no news to the reader.
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    # The recipe and the paths are the demo's own, and no shell reads them.
    code = subprocess.run(command, env=environment, check=False).returncode
    click.secho(f"exit code {code}", fg="green" if code == 0 else "yellow")
    return code


def _expect(wanted: int, code: int) -> None:
    if code != wanted:
        raise EvaluationError(
            f"the demo expected exit code {wanted} and got {code}; "
            "run `mergekit-collapse doctor` to see whether the stock commands are hooked"
        )


def _compare(title: str, experts: dict[str, str], base: Path, shipped: Path, merged: Path) -> None:
    from peft import PeftModel

    # PEFT asks transformers for a property by its old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    click.echo(f"\n  {title:<16} {'expert':>7} {'merged':>7}")
    model, tokenizer = load_model(base)
    whole, _ = load_model(merged)
    for task, adapter in experts.items():
        rows = load_rows(shipped / "probes" / f"{task}.jsonl")
        expert = PeftModel.from_pretrained(model, shipped / "adapters" / adapter)
        own = score(expert, tokenizer, rows, CHOICES[task])
        model = expert.unload()
        after = score(whole, tokenizer, rows, CHOICES[task])
        click.echo(f"  {task:<16} {own:>7.2f} {after:>7.2f}")
