"""What becomes of a merge that was made: published, put aside, or, interrupted, nowhere."""

import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mergekit.merge
import pytest
import tiny_models
import torch
import transformers
import yaml
from click.testing import CliRunner
from mergekit.options import MergeOptions

import mergekit_collapse
from mergekit_collapse import gate, mergekit_hook, merging
from mergekit_collapse.cli import main
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError, MergeRejectedError
from mergekit_collapse.recipe.recipe import read_recipe
from mergekit_collapse.staging_folder import staged

pytestmark = pytest.mark.slow

QUIET = MergeOptions(quiet=True)
FAST = {"probes": {"samples": 4, "max_tokens": 16}, "rehearse": "never", "cache": False}
NEVER = {**FAST, "evaluate": {"max_distortion": 0.0}}


@pytest.fixture(scope="module", autouse=True)
def hooked():
    mergekit_hook.install()


@pytest.fixture(scope="module")
def models(tiny_model, variant):
    base = tiny_model("llama")
    return {"one": variant(base, 0.02, 1), "two": variant(base, 0.02, 2)}


@pytest.fixture
def write(tmp_path, models):
    def write(compat, *folders, name="recipe.yml", **keys):
        members = folders or models.values()
        recipe = {
            "merge_method": "linear",
            "models": [{"model": str(f), "parameters": {"weight": 1.0}} for f in members],
            "dtype": "float32",
            "compat": compat,
            **keys,
        }
        recipe = {key: value for key, value in recipe.items() if value is not None}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return path

    return write


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def document_in(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def rejected(recipe, out):
    with pytest.raises(MergeRejectedError) as caught:
        gate.run(recipe, out, QUIET)
    return caught.value


def test_a_merge_over_its_limits_is_put_aside_with_its_report(write, tmp_path):
    error = rejected(write(NEVER), tmp_path / "out")
    assert error.exit_code == 4
    assert "REJECTED" in str(error)
    assert left_in(tmp_path) == ["out.compat", "out.rejected", "recipe.yml"]
    aside = tmp_path / "out.rejected"
    assert {"config.json", "model.safetensors", "report.json"} <= set(left_in(aside))
    inside, beside = document_in(aside), document_in(tmp_path / "out.compat")
    assert inside == beside
    assert inside["verdict"]["exit_code"] == 4
    assert inside["evaluation"]["model"] == str(aside)
    assert {r["rule"] for r in inside["verdict"]["reasons"]} == {"max_distortion"}
    transformers.AutoModelForCausalLM.from_pretrained(aside)  # it can be looked into


def test_an_earlier_rejected_merge_is_replaced_and_anything_else_is_kept(write, tmp_path):
    aside = tmp_path / "out.rejected"
    rejected(write(NEVER), tmp_path / "out")
    (aside / "of the first").write_text("")
    rejected(write(NEVER), tmp_path / "out")
    assert not (aside / "of the first").exists()
    shutil.rmtree(aside)
    aside.mkdir()
    (aside / "notes.txt").write_text("mine")
    error = rejected(write(NEVER), tmp_path / "out")
    assert left_in(aside) == ["notes.txt"]
    assert error.report.evaluation.model == str(tmp_path / "out.rejected-2")
    assert (tmp_path / "out.rejected-2" / "report.json").exists()
    assert not (tmp_path / "out").exists()


def test_a_rejected_merge_leaves_what_was_at_its_place(write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("an older merge")
    rejected(write(NEVER), tmp_path / "out")
    assert left_in(tmp_path / "out") == ["config.json"]


def test_it_may_only_warn(write, tmp_path):
    block = {**FAST, "evaluate": {"max_distortion": 0.0, "on_collapse": "warn"}}
    report = gate.run(write(block), tmp_path / "out", QUIET)
    assert (report.verdict.decision, report.verdict.exit_code) == ("warn", 0)
    assert report.evaluation.verdict.decision == "warn"
    assert report.evaluation.model == str(tmp_path / "out")
    assert left_in(tmp_path) == ["out", "out.compat", "recipe.yml"]
    assert document_in(tmp_path / "out.compat")["evaluation"]["verdict"]["decision"] == "warn"


def test_it_may_be_switched_off(write, tmp_path):
    block = {**FAST, "evaluate": False, "monitor": False}
    report = gate.run(write(block), tmp_path / "out", QUIET)
    document = document_in(tmp_path / "out.compat")
    assert document["evaluation"] is document["monitor"] is None
    assert document["evaluation_reason"] == document["monitor_reason"] == "it was switched off"
    assert report.verdict.decision == "allow"
    assert (tmp_path / "out" / "config.json").exists()


def test_what_cannot_be_evaluated_is_put_aside(write, tmp_path, monkeypatch, capsys):
    def broken(_folder, _material):
        raise raised

    monkeypatch.setattr(merging, "evaluate_folder", broken)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for raised in (EvaluationError("no states"), RuntimeError("no such kernel")):
        with pytest.raises(EvaluationError, match="could not be evaluated, and is at") as caught:
            gate.run(write(FAST), tmp_path / "out", QUIET)
        assert str(raised) in str(caught.value)
        assert caught.value.exit_code == 1
        # Each time the earlier one is replaced, since a report says what it is.
        assert left_in(tmp_path) == ["out.compat", "out.rejected", "recipe.yml"]
        inside = document_in(tmp_path / "out.rejected")
        assert str(raised) in inside["evaluation_reason"]
        assert (inside["verdict"]["decision"], inside["verdict"]["exit_code"]) == ("refuse", 1)
        assert document_in(tmp_path / "out.compat")["verdict"] == inside["verdict"]
        (annotation,) = re.findall("^::error .*", capsys.readouterr().err, re.MULTILINE)
        assert str(raised) in annotation
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "warn")
    report = gate.run(write(FAST), tmp_path / "out", QUIET)
    assert str(raised) in report.evaluation_reason
    assert (tmp_path / "out" / "config.json").exists()


def test_a_merge_that_cannot_be_compared_is_put_aside(write, tmp_path, models):
    """A merge that is deeper than its experts has no layer of theirs at each of its own."""
    part = {"sources": [{"model": str(m), "layer_range": [0, 2]} for m in models.values()]}
    for source in part["sources"]:
        source["parameters"] = {"weight": 1.0}
    recipe = write({**FAST, "layer": "all"}, models=None, slices=[part, part])
    with pytest.raises(EvaluationError, match=r"is at .*out.rejected: .*set compat.layer: last"):
        gate.run(recipe, tmp_path / "out", QUIET)
    assert left_in(tmp_path) == ["out.compat", "out.rejected", "recipe.yml"]
    document = document_in(tmp_path / "out.compat")
    assert document["evaluation"] is document["monitor"] is None
    assert "set compat.layer: last" in document["evaluation_reason"]
    assert "set compat.layer: last" in document["monitor_reason"]


ROWS = ["The film was", "Two plus three is", "The dog does", "Where is the"]


@pytest.fixture
def tasks(tmp_path, models):
    """A task of ``one`` for each word: its right answer is always that word."""
    words = [" good", " five", " not"]
    lines = [json.dumps({"text": row, **{f"w{i}": w for i, w in enumerate(words)}}) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return [
        {
            "name": f"task {i}",
            "model": str(models["one"]),
            "data": "rows.jsonl",
            "target": f"{{w{i}}}",
            "choices": [word.strip() for word in words],
        }
        for i in range(len(words))
    ]


def test_merging_loss_is_in_the_report_and_watched_alike(write, tasks, tmp_path):
    likelihood = {**tasks[0], "name": "likelihood"}
    del likelihood["choices"]
    probes = {**FAST["probes"], "tasks": [*tasks, likelihood]}
    block = {**FAST, "probes": probes}
    # A monitor leaves scores to the evaluation; a rehearsal, which decides, takes them itself.
    watched = gate.run(write(block), tmp_path / "watched", QUIET)
    assert watched.monitor.tasks == ()
    report = gate.run(write({**block, "rehearse": "always"}), tmp_path / "out", QUIET)
    found = {task.name: task for task in report.evaluation.tasks}
    assert report.rehearsal.tasks == report.evaluation.tasks == watched.evaluation.tasks
    assert set(found) == {"task 0", "task 1", "task 2", "likelihood"}
    assert found["likelihood"].metric == "likelihood"
    assert 0 < found["likelihood"].expert < 1
    due = (found["likelihood"].merged / found["likelihood"].expert - 1) * 100
    assert found["likelihood"].loss_percent == pytest.approx(due)
    accuracies = [found[f"task {i}"] for i in range(3)]
    assert sum(task.expert for task in accuracies) <= 1
    assert {(task.metric, task.rows, task.owner) for task in accuracies} == {("accuracy", 4, 0)}
    # The model of noise prefers some word, and never says another.
    (nothing, *_) = [task for task in accuracies if task.expert == 0]
    assert nothing.loss_percent is None
    written = {t["name"]: t for t in document_in(tmp_path / "out.compat")["evaluation"]["tasks"]}
    assert written[nothing.name]["loss_percent"] is None
    assert "scores 0" in written[nothing.name]["loss_percent_reason"]


def test_a_merging_loss_over_the_limit_rejects(write, tasks, tiny_model, tmp_path):
    """Of the owner hardly anything is in the merge."""
    owner, noise = tiny_model("llama"), tiny_model("llama", 77)
    own = [{**task, "model": str(owner)} for task in tasks]
    for task in own:
        del task["choices"]
    block = {**FAST, "on_violation": "warn", "probes": {**FAST["probes"], "tasks": own}}
    off = dict.fromkeys(("max_distortion", "min_variance_ratio", "min_rank_ratio"))
    members = [
        {"model": str(m), "parameters": {"weight": w}} for m, w in ((owner, 0.01), (noise, 1.0))
    ]
    block["evaluate"] = {**off, "max_merging_loss": 1e6}
    found = gate.run(write(block, models=members), tmp_path / "free", QUIET).evaluation.tasks
    worst = min(task.loss_percent for task in found)
    assert worst < 0
    block["evaluate"] = {**off, "max_merging_loss": -worst / 2}
    error = rejected(write(block, models=members), tmp_path / "out")
    reasons = error.report.evaluation.verdict.reasons
    assert {reason.rule for reason in reasons} == {"max_merging_loss"}
    assert max(reason.value for reason in reasons) == -worst


@pytest.fixture
def made(write, tmp_path):
    """A recipe and MergeKit's own merge of it."""
    recipe = write(FAST)
    out = tmp_path / "merged"
    inspect.unwrap(mergekit.merge.run_merge)(read_recipe(recipe).config, str(out), QUIET)
    return recipe, out


def test_evaluate_is_what_a_gated_merge_is_judged_by(made, tmp_path):
    recipe, out = made
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    report = mergekit_collapse.evaluate(recipe, out, QUIET)
    assert report.path == tmp_path / "merged.evaluation" / "report.json"
    assert report.verdict.decision == "allow"
    gated = gate.run(recipe, tmp_path / "out", QUIET)
    assert report.evaluation.hidden == gated.evaluation.hidden
    assert report.evaluation.layers == gated.evaluation.layers
    assert report.evaluation.model == str(out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def evaluated(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--quiet"])


def test_evaluate_exits_with_4_over_a_limit_and_moves_nothing(write, made, tmp_path):
    _, out = made
    recipe = write(NEVER)
    before = left_in(out)
    done = evaluated(recipe, out, "--report", tmp_path / "elsewhere")
    assert done.exit_code == 4, done.output
    assert "REJECTED" in done.output
    document = document_in(tmp_path / "elsewhere")
    assert document["verdict"]["exit_code"] == 4
    assert document["evaluation"]["model"] == str(out)
    assert left_in(out) == before
    assert left_in(tmp_path) == ["elsewhere", "merged", "recipe.yml"]


@pytest.mark.parametrize("kind", ["nowhere", "file", "empty"])
def test_evaluate_refuses_what_is_no_model(write, tmp_path, kind):
    recipe, path = write(FAST), tmp_path / "merged"
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    done = evaluated(recipe, path)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    with pytest.raises(InvalidRecipeError):
        gate.evaluate(recipe, path, QUIET)
    assert not (tmp_path / "merged.evaluation").exists()


@pytest.mark.parametrize(
    "lost", ["config.json", "model-00002-of-", "model.safetensors.index.json", "truncated"]
)
def test_evaluate_says_what_an_interrupted_merge_lacks(write, tmp_path, lost):
    recipe, out = write(FAST), tmp_path / "merged"
    options = QUIET.model_copy(update={"out_shard_size": 50_000})
    inspect.unwrap(mergekit.merge.run_merge)(read_recipe(recipe).config, str(out), options)
    if lost == "truncated":
        (shard,) = out.glob("model-00002-of-*")
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        (gone,) = (p for p in out.iterdir() if p.name.startswith(lost))
        gone.unlink()
    before = left_in(out)
    done = evaluated(recipe, out)
    assert done.exit_code == 4, done.output
    assert "Traceback" not in done.output
    assert "complete" in done.output
    assert left_in(out) == before
    found = document_in(tmp_path / "merged.evaluation")["evaluation"]
    assert [(c["name"], c["passed"]) for c in found["checks"]] == [("complete", False)]
    assert found["hidden"] is None
    assert "failed its checks" in found["hidden_reason"]


def hold(folder, host=None, *, sign=True):
    """What a killed merge leaves: a folder with a whole model, and who made it."""
    holder = folder / ".collapse-old"
    (holder / "out").mkdir(parents=True)
    (holder / "out" / "config.json").write_text("{}")
    if sign:
        (holder / "maker").write_text(f"{host or socket.gethostname()} 99999999\n")
    return holder


def test_what_a_killed_merge_left_is_removed_by_the_next(tmp_path):
    holder = hold(tmp_path)
    with staged(tmp_path / "out"):
        assert not holder.exists()
    assert left_in(tmp_path) == []


def test_nothing_else_is_removed(tmp_path):
    """Another host's, one that nobody signed, and one whose process lives."""
    for settings in ({"host": "elsewhere"}, {"sign": False}):
        holder = hold(tmp_path, **settings)
        with staged(tmp_path / "out"):
            assert holder.exists()
        shutil.rmtree(holder)
    (tmp_path / ".collapse-mine").mkdir()
    (tmp_path / ".collapse-mine" / "notes.txt").write_text("mine")
    code = (
        "import sys, pathlib, mergekit_collapse.staging_folder as s\n"
        f"with s.staged(pathlib.Path({str(tmp_path / 'other')!r})) as folder:\n"
        "    folder.mkdir(); print(folder, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        held = Path(process.stdout.readline().strip())
        with staged(tmp_path / "out") as first, staged(tmp_path / "out") as second:
            first.mkdir()
            second.mkdir()
            assert held.is_dir()
            assert first.is_dir()
        assert held.is_dir()
        process.kill()
        process.wait()
        assert held.is_dir()
        with staged(tmp_path / "out"):
            assert not held.exists()
    assert left_in(tmp_path) == [".collapse-mine"]


COMMANDS = Path(sys.executable).parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def environment():
    return {k: v for k, v in os.environ.items() if k != "MERGEKIT_COLLAPSE"} | ENVIRONMENT


@pytest.mark.slow
def test_the_stock_command_exits_with_4(write, tmp_path):
    done = subprocess.run(
        [COMMANDS / "mergekit-yaml", write(NEVER), "out"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "REJECTED" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_in(tmp_path) == ["out.compat", "out.rejected", "recipe.yml"]


@pytest.mark.slow
def test_multi_does_not_take_a_rejected_merge_for_a_made_one(models, tmp_path):
    members = [{"model": str(f), "parameters": {"weight": 1.0}} for f in models.values()]
    first = {"name": "first", "merge_method": "linear", "models": members, "dtype": "float32"}
    second = {"merge_method": "linear", "models": [*members[:1], {**members[1], "model": "first"}]}
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        yaml.safe_dump_all([{**first, "compat": NEVER}, {**second, "dtype": "float32"}])
    )
    command = [COMMANDS / "mergekit-multi", recipe, "-I", "between", "--out-path", "out", "--lazy"]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 4, done.stderr
        assert left_in(tmp_path / "between") == ["first.compat", "first.rejected"]
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory, tiny_tokenizer):
    """Two models of so many layers that their merge takes a while."""
    folder = tmp_path_factory.mktemp("lasting")
    settings = {**tiny_models._LLAMA_LIKE, "num_hidden_layers": 48}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    return [
        tiny_models.save_variant(folder / "base", 0.02, seed, folder / str(seed)) for seed in (1, 2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["the first shard", "the whole"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 1), (signal.SIGTERM, 143)]
)
def test_an_interrupted_command_leaves_nothing_that_passes_for_a_model(
    write, lasting, tmp_path, number, code, when
):
    recipe = write({**FAST, "on_violation": "warn", "probes": {"samples": 32}}, *lasting)
    command = [COMMANDS / "mergekit-yaml", recipe, "out", "--out-shard-size", "20K"]
    awaited = {"the first shard": "*/*.safetensors", "the whole": "*/config.json"}[when]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores it, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (one thread)
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(f".collapse-*/{awaited}")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        process.wait(60)
        assert process.returncode == code
    visible = [name for name in left_in(tmp_path) if not name.startswith(".")]
    assert visible == ["out.compat", "recipe.yml"]
    assert [p for p in tmp_path.glob("*/config.json") if not p.parent.name.startswith(".")] == []
    assert list(tmp_path.glob("*/*.safetensors")) == []
    stale = list(tmp_path.glob(".collapse-*"))
    assert len(stale) == (1 if number == signal.SIGKILL else 0)
    gate.run(write(FAST), tmp_path / "out", QUIET)
    assert left_in(tmp_path) == ["out", "out.compat", "recipe.yml"]
