"""The stock commands in subprocesses, as a user runs them, on tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

COMMANDS = Path(sys.executable).parent
FAST = {"probes": {"samples": 8, "max_tokens": 16}}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model, variant):
    """Links with short names, since a refusal names models as the recipe does."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    for name, source in {
        "base": base,
        "one": variant(base, 0.02, 1),
        "two": variant(base, 0.02, 2),
        "far": variant(base, 3.0, 3),
        "encoder": tiny_model("bert"),
    }.items():
        (folder / name).symlink_to(source)
    return folder


@pytest.fixture
def command(tmp_path):
    """Run a console script in the test's folder."""

    def run(*arguments, **environment):
        program, *rest = map(str, arguments)
        keep = {k: v for k, v in os.environ.items() if k != "MERGEKIT_COLLAPSE"}
        return subprocess.run(
            [COMMANDS / program, *rest],
            cwd=tmp_path,
            env={**keep, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run


def write(path, *documents):
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    return path


def linear(models, *names, compat=FAST, **keys):
    listed = [{"model": str(models / n), "parameters": {"weight": 1.0}} for n in names]
    block = {} if compat is None else {"compat": compat}
    return {"merge_method": "linear", "models": listed, "dtype": "float32", **keys, **block}


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_doomed_merge_is_refused_before_a_byte_is_written(command, models, tmp_path):
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "far"))
    done = command("mergekit-yaml", recipe, "out")
    assert done.returncode == 3, done.stderr
    assert "REFUSED" in done.stderr
    assert "far" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert left(tmp_path) == ["out.compat", "recipe.yml"]
    document = json.loads((tmp_path / "out.compat" / "report.json").read_text(encoding="utf-8"))
    assert document["verdict"]["exit_code"] == 3


def test_a_good_merge_is_made_and_its_card_says_so(command, models, tmp_path):
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "two"))
    done = command("mergekit-yaml", recipe, "out")
    assert done.returncode == 0, done.stderr
    assert "ALLOWED" in done.stderr
    assert left(tmp_path) == ["out", "out.compat", "recipe.yml"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## Compatibility" in card
    # The user's own text is what the merged model keeps.
    kept = (tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8")
    assert kept == recipe.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"compat": {"probes": {"sampels": 3}}}, 2, "did you mean 'samples'?"),
        ({"compat": {"budget": {"mds": float("nan")}}}, 2, "finite number"),
        ({"compat": {"probes": {"tasks": [{"name": "t", "data": "no.jsonl"}]}}}, 1, "no such file"),
        ({"merge_method": "slerp"}, 2, "base"),
    ],
)
def test_a_bad_block_ends_with_a_message_and_no_folder(
    command, models, tmp_path, change, code, told
):
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "two", **change))
    if "compat" in change:
        write(recipe, {**linear(models, "one", "two"), **change})
    done = command("mergekit-yaml", recipe, "out")
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert left(tmp_path) == ["recipe.yml"]


def test_models_of_two_kinds_are_told_by_check(command, models, tmp_path):
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "encoder"))
    done = command("mergekit-collapse", "check", recipe)
    assert done.returncode == 1, done.stderr
    assert "architecture" in done.stderr
    assert "Traceback" not in done.stderr


def test_multi_gates_each_document_and_its_tasks_follow(command, models, tmp_path):
    """The second merge's task belongs to the first by its name, and strings stay strings.

    The folder is absolute because MergeKit's card asks the hub about ``between/first``.
    """
    (tmp_path / "rows.txt").write_text("a + b + c\nuser@host@place\nfirst\none more row\n")
    first = {"name": "first", **linear(models, "one", "two")}
    task = {"name": "first", "model": "first", "data": "rows.txt"}
    block = {"probes": {**FAST["probes"], "tasks": [task]}, "report": "first"}
    second = linear(models, "one", compat=block)
    second["models"].insert(0, {"model": "first", "parameters": {"weight": 1.0}})
    recipe = write(tmp_path / "recipe.yml", first, second)
    done = command("mergekit-multi", recipe, "-I", tmp_path / "between", "--out-path", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    document = json.loads((tmp_path / "first" / "report.json").read_text(encoding="utf-8"))
    owners = {t["name"]: t["model"] for t in document["probes"]["tasks"]}
    assert owners["first"].endswith("between/first")


def test_multi_refuses_a_doomed_document(command, models, tmp_path):
    first = {"name": "first", **linear(models, "one", "two")}
    second = linear(models, "far")
    second["models"].insert(0, {"model": "first", "parameters": {"weight": 1.0}})
    recipe = write(tmp_path / "recipe.yml", first, second)
    done = command("mergekit-multi", recipe, "-I", tmp_path / "between", "--out-path", "out")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "between" / "first" / "model.safetensors").exists()
    assert not (tmp_path / "out").exists()


def test_check_prints_its_report_as_json_and_exits_with_the_verdict(command, models, tmp_path):
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "far"))
    done = command("mergekit-collapse", "check", recipe, "--json", "-")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert document["verdict"]["decision"] == "refuse"
    assert "REFUSED" in done.stderr
    assert left(tmp_path) == ["recipe.compat", "recipe.yml"]
    # The order of experts is the YAML's, whatever the hash seed.
    for seed in ("1", "2"):
        again = command("mergekit-collapse", "check", recipe, "--json", "-", PYTHONHASHSEED=seed)
        other = json.loads(again.stdout)
        assert other["experts"] == document["experts"]
        assert other["geometry"] == document["geometry"]


def test_run_gates_a_recipe_without_a_block(command, models, tmp_path):
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "far", compat=None))
    assert command("mergekit-yaml", recipe, "plain").returncode == 0
    done = command("mergekit-collapse", "run", recipe, "out", "--json", "refusal.json")
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "out").exists()
    document = json.loads((tmp_path / "refusal.json").read_text(encoding="utf-8"))
    assert document["verdict"]["decision"] == "refuse"


def test_lora_references_are_gated_and_need_mergekits_folder(command, models, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    names = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(models / "base")
        settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(tmp_path / f"lora{seed}")
        names.append(f"{models / 'base'}+./lora{seed}")
    recipe = linear(models)
    recipe["models"] = [{"model": n, "parameters": {"weight": 1.0}} for n in names]
    recipe["compat"] = {**FAST, "on_violation": "warn", "evaluate": {"on_collapse": "warn"}}
    path = write(tmp_path / "recipe.yml", recipe)
    without = command("mergekit-yaml", path, "out")
    assert without.returncode == 2
    assert "--lora-merge-cache" in without.stderr
    done = command("mergekit-yaml", path, "out", "--lora-merge-cache", "adapters")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
