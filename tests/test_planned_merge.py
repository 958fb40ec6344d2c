"""Merges by a plan: what is planned is what is made, and nothing else."""

import json
import os
import shutil
from pathlib import Path

import peft
import pytest
import transformers
import yaml
from click.testing import CliRunner
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

import mergekit_collapse
from mergekit_collapse import gate
from mergekit_collapse.cli import main
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError, MergeRefusedError
from mergekit_collapse.formats.junit import to_junit
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.report.reader import parse_report
from mergekit_collapse.saved_plan.plan_file import read_plan

pytestmark = pytest.mark.slow

QUIET = MergeOptions(quiet=True)
FAST = {"probes": {"samples": 8, "max_tokens": 16}, "cache": False}
OPEN = {"max_distortion": None, "min_variance_ratio": None, "min_rank_ratio": None}


@pytest.fixture(scope="module")
def models(tiny_model, variant):
    base = tiny_model("llama")
    return {
        "base": base,
        "one": variant(base, 0.02, 1),
        "two": variant(base, 0.02, 2),
        "far": variant(base, 3.0, 3),
    }


@pytest.fixture
def write(tmp_path, models):
    """Write a recipe of models by name, copied beside it, so that they may be changed."""

    def write(*names, compat=FAST, **keys):
        used = {*names, keys.get("base_model")} & models.keys()
        for name in used:
            shutil.copytree(models[name], tmp_path / name, dirs_exist_ok=True)
        places = {name: str(tmp_path / name) for name in used}
        if "base_model" in keys:
            keys["base_model"] = places[keys["base_model"]]
        listed = [
            {"model": places.get(name, name), "parameters": {"weight": 1.0}} for name in names
        ]
        recipe = {"merge_method": "linear", "models": listed, "dtype": "float32", **keys}
        if compat is not None:
            recipe["compat"] = compat
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return path

    return write


def block(**keys):
    return {**FAST, **keys}


def planned(path, options=QUIET, **keys):
    """A report of the check, and the plan that it wrote."""
    plan = path.with_name("plan.json")
    return gate.check(path, options, plan=plan, **keys), plan


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def weights(folder):
    return {n: b for n, b in files(folder).items() if n.endswith((".safetensors", ".index.json"))}


def document(report):
    found = json.loads(report.path.read_text(encoding="utf-8"))
    parse_report(found)
    return found


def timeless(found):
    """A report's document without what differs between any two merges."""
    # What is estimated begins at the memory that the process has already.
    for key in ("timing", "plan", "plan_reason", "estimate"):
        found.pop(key, None)
    for key in ("evaluation", "monitor", "rehearsal"):
        if found[key] is not None:
            found[key] |= {"seconds": 0, "model": None}
    return found


def same_merge(path, tmp_path, plain=QUIET, **keys):
    """Merge by the plan and by the recipe; both must come to the same files and report."""
    _, plan = planned(path, plain, **keys)
    found = [
        gate.run_plan(plan, tmp_path / "by-plan", QUIET),
        gate.run(path, tmp_path / "by-recipe", plain),
    ]
    made = [tmp_path / "by-plan", tmp_path / "by-recipe"]
    assert weights(made[0]) == weights(made[1]) != {}
    assert sorted(files(made[0])) == sorted(files(made[1]))
    kept = [(one / "mergekit_config.yml").read_text(encoding="utf-8") for one in made]
    assert kept[0] == kept[1] == read_plan(plan).plan.recipe.effective
    assert timeless(document(found[0])) == timeless(document(found[1]))
    return found[0], plan


def test_an_untouched_plan_gives_the_very_merge_of_its_recipe(write, tmp_path):
    report, plan = same_merge(write("one", "two"), tmp_path)
    assert report.verdict.decision == "allow"
    assert report.evaluation.verdict.decision == "allow"
    opened = read_plan(plan)
    assert document(report)["plan"] == {"path": str(plan), "sha256": opened.sha256}
    card = (tmp_path / "by-plan" / "README.md").read_text(encoding="utf-8")
    assert f"Plan followed: sha256 {opened.sha256}." in card
    assert opened.sha256 in to_markdown(document(report))
    assert f'name="plan.sha256" value="{opened.sha256}"' in to_junit(document(report))
    plain = json.loads((tmp_path / "by-recipe.compat" / "report.json").read_text("utf-8"))
    assert (plain["plan"], plain["plan_reason"]) == (None, "no plan was followed")


def test_a_recipe_without_a_block_has_the_default_one(write, tmp_path, monkeypatch):
    report, _ = same_merge(write("one", "two", compat=None), tmp_path)
    assert report.recipe.compat.budget.distortion == 0.25
    assert "compat" not in (tmp_path / "by-plan" / "mergekit_config.yml").read_text("utf-8")


def test_the_planned_options_are_used(write, tmp_path):
    keys = {"merge_method": "dare_linear", "base_model": "base", "parameters": {"density": 0.5}}
    path = write("one", "two", **keys)
    options = MergeOptions(
        quiet=True, random_seed=7, out_shard_size=20_000, clone_tensors=True, copy_tokenizer=False
    )
    same_merge(path, tmp_path, options)
    made = files(tmp_path / "by-plan")
    assert "model.safetensors.index.json" in made
    assert "tokenizer.json" not in made
    other = options.model_copy(update={"random_seed": 8})
    gate.run(path, tmp_path / "other", other)
    assert weights(tmp_path / "other") != weights(tmp_path / "by-plan")


def test_a_dropped_expert_stays_dropped(write, tmp_path, capsys):
    report, _ = same_merge(write("one", "far", "two", compat=block(on_violation="drop")), tmp_path)
    assert report.verdict.decision == "modified"
    kept = yaml.safe_load((tmp_path / "by-plan" / "mergekit_config.yml").read_text("utf-8"))
    assert [Path(m["model"]).name for m in kept["models"]] == ["one", "two"]
    assert document(report)["remedy"]["dropped"] == ["far"]
    assert "CHANGED (drop): without far" in capsys.readouterr().err
    # What was left out is no input any more.
    shutil.rmtree(tmp_path / "far")
    gate.run_plan(tmp_path / "plan.json", tmp_path / "again", QUIET)
    assert weights(tmp_path / "again") == weights(tmp_path / "by-plan")


def test_weights_that_give_an_expert_up_stay_as_they_were_planned(write, tmp_path):
    compat = block(
        on_violation="reweight",
        budget={"rule": "weights", "distortion": 0.3, "mds": None},
        reweight={"goal": "protect", "floor": 0.0},
        evaluate=OPEN,
        rehearse="never",
    )
    report, _ = same_merge(write("one", "two", "far", compat=compat), tmp_path)
    assert report.verdict.decision == "modified"
    assert [reason.subject for reason in report.verdict.reasons] == ["far"]


def test_a_model_of_the_pool_is_merged_as_planned(write, tmp_path, models):
    shutil.copytree(models["base"], tmp_path / "pool" / "base")
    pool = {"substitute": {"pool": {"far": ["pool/base"]}}}
    path = write("one", "far", "two", compat=block(on_violation="substitute", **pool))
    report, plan = same_merge(path, tmp_path)
    assert report.verdict.decision == "modified"
    names = [Path(one.name).name for one in read_plan(plan).plan.inputs]
    assert names == ["recipe.yml", "one", "base", "two"]
    (tmp_path / "pool" / "base" / "config.json").write_text("{}")
    with pytest.raises(InvalidRecipeError, match=r"base: config\.json: was changed"):
        gate.run_plan(plan, tmp_path / "again", QUIET)


@pytest.mark.parametrize("action", ["abort", "split"])
def test_a_refusal_is_planned_as_one(write, tmp_path, action):
    report, plan = planned(write("one", "far", "two", compat=block(on_violation=action)))
    assert report.verdict.exit_code == 3
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(MergeRefusedError, match="plans no merge") as caught:
        gate.run_plan(plan, tmp_path / "out", QUIET)
    for reason in report.verdict.reasons:
        assert str(reason) in str(caught.value)
    assert ("mergekit-multi" in str(caught.value)) == (action == "split")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_rehearsal_that_was_due_is_due_again(write, tmp_path):
    path = write("one", "two")
    report, plan = planned(path, rehearse=True)
    assert report.rehearsal is not None
    assert read_plan(plan).plan.rehearsal.due
    report = gate.run_plan(plan, tmp_path / "out", QUIET)
    assert report.rehearsal.verdict.decision == "allow"
    assert "rehearse" not in (tmp_path / "out" / "mergekit_config.yml").read_text("utf-8")


def test_a_rehearsal_may_overrule_the_geometry_as_it_was_planned(write, tmp_path):
    """The limit lies within the interval, and the merge is nearer than its geometry says."""
    first = gate.check(write("one", "two"), QUIET)
    ball = first.deciding.confidence.ball_radius_squared
    limit = (ball.low + first.deciding.ball.radius_squared) / 2
    compat = block(budget={"distortion": limit, "mds": None}, evaluate={"max_distortion": 1.0})
    report, _ = same_merge(write("one", "two", compat=compat), tmp_path)
    assert report.geometry_verdict.decision == "refuse"
    assert report.verdict.decision == report.rehearsal.verdict.decision == "allow"


def test_a_refused_rehearsal_is_planned_as_a_refusal(write, tmp_path):
    compat = block(rehearse="always", evaluate={"max_distortion": 1e-9})
    report, plan = planned(write("one", "two", compat=compat))
    assert report.geometry_verdict.decision == "allow"
    with pytest.raises(MergeRefusedError, match="max_distortion"):
        gate.run_plan(plan, tmp_path / "out", QUIET)


def test_a_stack_of_slices_is_planned_unmeasured(write, tmp_path, models):
    shutil.copytree(models["one"], tmp_path / "one")
    part = {"sources": [{"model": str(tmp_path / "one"), "layer_range": [0, 2]}]}
    other = {"sources": [{"model": str(tmp_path / "one"), "layer_range": [0, 1]}]}
    path = tmp_path / "stack.yml"
    recipe = {"merge_method": "passthrough", "slices": [part, other], "compat": {}}
    path.write_text(yaml.safe_dump(recipe))
    report, plan = same_merge(path, tmp_path)
    assert report.measurement is None
    assert read_plan(plan).plan.probes is None
    (tmp_path / "one" / "tokenizer.json").unlink()
    with pytest.raises(InvalidRecipeError, match=r"tokenizer\.json: is missing"):
        gate.run_plan(plan, tmp_path / "again", QUIET)


def edited(plan, **keys):
    found = json.loads(plan.read_text(encoding="utf-8")) | keys
    plan.write_text(json.dumps(found), encoding="utf-8")
    return plan


def test_a_verdict_that_is_not_found_again_is_a_refusal(write, tmp_path):
    _, plan = planned(write("one", "two"))
    reason = {
        "rule": "mds",
        "reading": "unrelated, hidden space",
        "subject": "one",
        "value": 4.0,
        "value_reason": None,
        "limit": 3.0,
        "advice": "Leave one out.",
    }
    verdict = {"decision": "warn", "exit_code": 0, "reasons": [reason]}
    edited(plan, verdict=verdict, gate=verdict)
    with pytest.raises(MergeRefusedError, match="was judged warn for mds of one") as caught:
        gate.run_plan(plan, tmp_path / "out", QUIET)
    assert "is now judged allow" in str(caught.value)
    assert not (tmp_path / "out").exists()
    report = document(caught.value.report)
    assert report["verdict"]["exit_code"] == 3
    assert [one["rule"] for one in report["verdict"]["reasons"]] == ["plan"]
    assert "<failure" in to_junit(report)
    assert "refused" in to_markdown(report)


def test_a_doctored_plan_passes_no_gate(write, tmp_path):
    """With a change that no action made, and the refusal that will be found."""
    path = write("one", "two", "far", compat=block(rehearse="never"))
    report, plan = planned(path)
    refusal = json.loads(plan.read_text(encoding="utf-8"))["verdict"]
    remedy = {
        "action": "reweight",
        "source_sha256": report.recipe.sha256,
        "over": [],
        "diff": "",
        "effective": path.read_text(encoding="utf-8"),
        "members": [],
        "reading_before": None,
        "reading_after": None,
        "notes": [],
        "split": None,
    }
    modified = {"decision": "modified", "exit_code": 0, "reasons": []}
    edited(plan, verdict=modified, gate=refusal, remedy=remedy)
    with pytest.raises(MergeRefusedError, match=r"limit 0\.25"):
        gate.run_plan(plan, tmp_path / "out", QUIET)
    edited(plan, verdict={"decision": "allow", "exit_code": 0, "reasons": []}, remedy=None)
    with pytest.raises(MergeRefusedError, match=r"limit 0\.25"):
        gate.run_plan(plan, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_other_probes_are_told_before_a_model_is_run(write, tmp_path, monkeypatch):
    _, plan = planned(write("one", "two"))
    probes = {"text_digest": "0" * 64, "digest": "0" * 64}
    edited(plan, probes=probes)
    monkeypatch.setattr("mergekit_collapse.assessment.collect", lambda *_: pytest.fail("measured"))
    with pytest.raises(InvalidRecipeError, match="the probes are not those of the plan"):
        gate.run_plan(plan, tmp_path / "out", QUIET)


def test_a_model_that_changes_during_the_merge_is_noticed(write, tmp_path, monkeypatch):
    _, plan = planned(write("one", "two"))

    def meddling(config, out_path, options, config_source=None):
        run_merge(config, out_path, options, config_source)
        weights = tmp_path / "two" / "model.safetensors"
        weights.write_bytes(weights.read_bytes())

    monkeypatch.setattr(gate, "run_merge", meddling)
    with pytest.raises(EvaluationError, match=r"two/model\.safetensors: was changed meanwhile"):
        gate.run_plan(plan, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".collapse-")]


def test_a_recipe_that_changes_while_it_is_checked_is_noticed(write, tmp_path, monkeypatch):
    path = write("one", "two")
    written = gate.write_report

    def slow(report, folder):
        path.write_text(path.read_text(encoding="utf-8") + "# later\n", encoding="utf-8")
        return written(report, folder)

    monkeypatch.setattr(gate, "write_report", slow)
    with pytest.raises(EvaluationError, match="was changed while it was being checked"):
        planned(path)
    assert not (tmp_path / "plan.json").exists()


def make_adapter(base, folder, seed):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False
    )
    transformers.set_seed(seed)
    peft.get_peft_model(model, config).save_pretrained(folder)


def test_adapters_are_merged_anew_whatever_the_cache_holds(write, tmp_path, models):
    for number, name in enumerate(("a", "b")):
        make_adapter(models["base"], tmp_path / name, number)
    pairs = [f"{models['base']}+{tmp_path / name}" for name in ("a", "b")]
    path = write(*pairs, compat=block(budget={"distortion": 50, "mds": None}, evaluate=OPEN,
                                      rehearse="never"))  # fmt: skip
    cache = tmp_path / "cache"
    _, plan = planned(path)
    with pytest.raises(InvalidRecipeError, match="give --lora-merge-cache FOLDER"):
        gate.run_plan(plan, tmp_path / "out", QUIET)
    with_cache = MergeOptions(quiet=True, lora_merge_cache=str(cache))
    gate.run_plan(plan, tmp_path / "first", with_cache)
    assert list(cache.iterdir()) == []
    # An earlier merge of other files under the same names, as MergeKit keeps them.
    gate.run(path, tmp_path / "plain", with_cache)
    assert weights(tmp_path / "plain") == weights(tmp_path / "first")
    for stale in cache.glob("*/model.safetensors"):
        shutil.copyfile(models["far"] / "model.safetensors", stale)
    LoaderCache.loaders.clear()
    gate.run(path, tmp_path / "stale", with_cache)
    assert weights(tmp_path / "stale") != weights(tmp_path / "first")
    gate.run_plan(plan, tmp_path / "second", with_cache)
    assert weights(tmp_path / "second") == weights(tmp_path / "first")
    weighed = tmp_path / "a" / "adapter_model.safetensors"
    weighed.write_bytes(weighed.read_bytes()[:-1] + b"\0")
    with pytest.raises(InvalidRecipeError, match=r"adapter .*a: adapter_model\.safetensors: was"):
        gate.run_plan(plan, tmp_path / "third", with_cache)


def test_a_plan_is_followed_from_wherever_its_file_lies(write, tmp_path, monkeypatch):
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"Row {i} of text.\n" for i in range(9)))
    tasks = [{"name": "mine", "data": "rows.txt"}]
    path = write("one", "two", compat={"probes": {**FAST["probes"], "tasks": tasks}})
    _, plan = planned(path)
    (tmp_path / "elsewhere").mkdir()
    moved = plan.rename(tmp_path / "elsewhere" / "moved.json")
    monkeypatch.chdir(tmp_path / "elsewhere")
    report = gate.run_plan("moved.json", "out", QUIET)
    assert report.verdict.decision == "allow"
    assert (tmp_path / "elsewhere" / "out" / "model.safetensors").exists()
    assert report.path == tmp_path / "elsewhere" / "out.compat" / "report.json"
    assert moved.exists()


def test_relative_models_are_looked_for_where_the_merge_is_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write("one", "two")
    path.write_text(path.read_text(encoding="utf-8").replace(str(tmp_path), "."), encoding="utf-8")
    _, plan = planned(path)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(InvalidRecipeError) as caught:
        gate.run_plan(plan, "out", QUIET)
    assert "./one: no such folder" in str(caught.value)
    assert f"relative to it, and it was {tmp_path}" in str(caught.value)
    assert f"again in {tmp_path}" in str(caught.value)
    # The same models in the same place are the same inputs.
    for name in ("one", "two"):
        shutil.copytree(tmp_path / name, tmp_path / "other" / name)
    assert gate.run_plan(plan, "out", QUIET).verdict.decision == "allow"


@pytest.mark.parametrize("mode", ["0", "warn"])
def test_the_switch_is_about_the_gate_and_not_about_the_inputs(write, tmp_path, monkeypatch, mode):
    _, plan = planned(write("one", "two"))
    monkeypatch.setenv("MERGEKIT_COLLAPSE", mode)
    report = gate.run_plan(plan, tmp_path / "out", QUIET)
    assert (report is None) == (mode == "0")
    assert (tmp_path / "out" / "model.safetensors").exists()
    (tmp_path / "one" / "vocab.json").write_text("{}")
    with pytest.raises(InvalidRecipeError, match=r"vocab\.json: was added"):
        gate.run_plan(plan, tmp_path / "again", QUIET)


def test_the_command_line_checks_and_runs_a_plan(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        return CliRunner().invoke(main, list(map(str, arguments)))

    write("one", "two", compat=block(on_violation="drop"))
    done = command("check", "recipe.yml", "--plan", "p.plan", "--random-seed", 5, "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("Plan: p.plan\n")
    assert read_plan(Path("p.plan")).plan.options.random_seed == 5
    done = command("run", "--plan", "p.plan", "out", "--quiet", "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["plan"]["path"] == "p.plan"
    assert "Plan: p.plan (sha256 " in done.stderr
    assert "Hashing" not in done.stderr
    write("one", "far", compat=block(on_violation="drop"))
    done = command("check", "recipe.yml", "--plan", "p.plan", "--json", "-")
    assert done.exit_code == 3
    assert "Plan: p.plan holds the refusal; no merge is planned" in done.stderr
    assert "Hashing" in done.stderr
    done = command("run", "--plan", "p.plan", "new", "--junit", "cases.xml")
    assert done.exit_code == 3
    assert "REFUSED when the plan was made" in done.stderr
    assert "plans no merge" in Path("cases.xml").read_text(encoding="utf-8")
    assert not Path("new").exists()


def test_the_package_offers_run_plan(write, tmp_path):
    _, plan = planned(write("one", "two"))
    found = mergekit_collapse.run_plan(str(plan), str(tmp_path / "out"), QUIET)
    assert found.verdict.exit_code == 0
