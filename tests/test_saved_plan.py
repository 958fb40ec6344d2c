"""A plan as a file: what it holds, what of its inputs is noticed, and what a stranger's may do."""

import json
import os
import shutil

import peft
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.options import MergeOptions

from mergekit_collapse import gate
from mergekit_collapse.cli import main
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError, MergeRefusedError
from mergekit_collapse.recipe.recipe import read_recipe
from mergekit_collapse.report.report import Report
from mergekit_collapse.saved_plan.changes import input_changes
from mergekit_collapse.saved_plan.digests import digests
from mergekit_collapse.saved_plan.following import follow
from mergekit_collapse.saved_plan.found_inputs import find_inputs
from mergekit_collapse.saved_plan.input_files import inputs_of, locate
from mergekit_collapse.saved_plan.options import (
    FREE,
    PLANNED,
    STANDING_FOR,
    contradictions,
    given_in,
    planned_options,
    with_planned,
)
from mergekit_collapse.saved_plan.plan_file import read_plan, write_plan
from mergekit_collapse.saved_plan.record import SavedPlan

QUIET = MergeOptions(quiet=True)
BLOCK = {
    "probes": {
        "samples": 4,
        "max_tokens": 8,
        "builtin": False,
        "tasks": [{"name": "mine", "data": "probes.txt"}],
    },
    "space": "hidden",
    "budget": {"mds": 3.0},
    "cache": False,
}
CHANGE = {
    "action": "split",
    "source_sha256": "",
    "over": [],
    "diff": None,
    "effective": None,
    "members": [],
    "reading_before": None,
    "reading_after": None,
    "notes": [],
    "split": None,
}
COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB = "someone/two"


def write_recipe(folder, *models, compat=BLOCK, **keys):
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 1.0}} for m in models],
        "dtype": "float32",
        **keys,
        "compat": compat,
    }
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    (folder / "probes.txt").write_text("One line.\nAnother one.\nA third.\n", encoding="utf-8")
    return folder / "recipe.yml"


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny_model, variant):
    """A folder with a plan of an allowed merge, and what it is made of."""
    folder = tmp_path_factory.mktemp("planned")
    for seed, name in ((1, "one"), (2, "two")):
        shutil.copytree(variant(tiny_model("llama"), 0.02, seed), folder / name)
    path = write_recipe(folder, folder / "one", folder / "two")
    gate.check(path, QUIET, plan=folder / "plan.json")
    return folder


@pytest.fixture
def copied(planned, tmp_path):
    """A copy of the plan's file, with what changes it: ``copied(a=..., b=...)`` at the top."""

    def write(**keys):
        document = json.loads((planned / "plan.json").read_text(encoding="utf-8")) | keys
        path = tmp_path / "copy.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write


def followed(path, options=QUIET, given=()):
    return follow(read_plan(path), options, given)


def refused(path, options=QUIET, given=()):
    with pytest.raises(InvalidRecipeError) as caught:
        followed(path, options, given)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_plan_says_all_that_the_merge_depends_on(planned):
    plan = read_plan(planned / "plan.json").plan
    assert plan.verdict.decision == plan.gate.decision == "allow"
    assert plan.readings.distortion == plan.readings.ball_radius_squared < 0.3
    assert len(plan.readings.mds) == 2
    assert plan.recipe.effective == (planned / "recipe.yml").read_text(encoding="utf-8")
    assert plan.recipe.folder == str(planned.resolve())
    assert set(plan.versions) == {"mergekit", "mergekit-collapse", "torch", "transformers"}
    assert [(one.role, os.path.basename(one.name)) for one in plan.inputs] == [
        ("recipe", "recipe.yml"),
        ("model", "one"),
        ("model", "two"),
        ("probes", "probes.txt"),
    ]
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} < set(
        plan.inputs[1].files
    )


def test_a_plan_is_the_same_whenever_it_is_made(planned, tmp_path):
    plan = read_plan(planned / "plan.json").plan
    write_plan(plan, tmp_path / "deep" / "again.json")
    text = (tmp_path / "deep" / "again.json").read_text(encoding="utf-8")
    assert text == (planned / "plan.json").read_text(encoding="utf-8")
    gate.check(planned / "recipe.yml", QUIET, plan=planned / "plan.json")
    assert text == (planned / "plan.json").read_text(encoding="utf-8")


def test_an_untouched_plan_is_followed(planned):
    following = followed(planned / "plan.json")
    assert [expert.model.path for expert in following.recipe.experts] == [
        str(planned / "one"),
        str(planned / "two"),
    ]
    assert following.recipe.folder == planned.resolve()
    assert following.options.copy_tokenizer


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("one/config.json", lambda p: p.write_text(p.read_text() + " "), "config.json: was chan"),
        ("two/model.safetensors", lambda p: p.unlink(), "model.safetensors"),
        ("two/tokenizer.json", lambda p: p.unlink(), "tokenizer.json: is missing"),
        ("one/added_tokens.json", lambda p: p.write_text("{}"), "added_tokens.json: was added"),
        ("one/chat_template.jinja", lambda p: p.write_text("x"), "chat_template.jinja: was added"),
        ("probes.txt", lambda p: p.write_text("Else.\n"), "probe file probes.txt: was changed"),
        ("probes.txt", lambda p: p.unlink(), "probes.txt: no such file"),
        ("recipe.yml", lambda p: p.write_text(p.read_text() + "# x\n"), "recipe recipe.yml: was"),
        ("recipe.yml", lambda p: p.unlink(), "recipe recipe.yml: "),
        ("two", lambda p: p.rename(p.with_name("moved")), "no such folder (seen from"),
    ],
)
def test_each_change_is_named(planned, tmp_path, name, change, told):
    shutil.copytree(planned, tmp_path / "kept")
    try:
        change(planned / name)
        said = refused(planned / "plan.json")
    finally:
        shutil.rmtree(planned)
        shutil.copytree(tmp_path / "kept", planned)
    assert told in said
    assert "nothing was merged" in said
    assert f"mergekit-collapse check {planned / 'recipe.yml'} --plan" in said


def test_what_nobody_reads_is_no_input(planned):
    (planned / "one" / "README.md").write_text("Read me.", encoding="utf-8")
    (planned / "one" / "training_args.bin").write_bytes(b"x")
    try:
        followed(planned / "plan.json")
    finally:
        (planned / "one" / "README.md").unlink()
        (planned / "one" / "training_args.bin").unlink()


def test_all_changes_are_named_at_once(planned, copied):
    document = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    versions = document["versions"] | {"torch": "1.0", "mergekit": "0.0.9", "gone": "1"}
    inputs = [one for one in document["inputs"] if not one["name"].endswith("two")]
    said = refused(
        copied(versions=versions, inputs=inputs),
        MergeOptions(quiet=True, random_seed=5, copy_tokenizer=False),
        ["quiet", "random_seed", "copy_tokenizer"],
    )
    assert "torch: the plan has version 1.0, here is" in said
    assert "mergekit: the plan has version 0.0.9, here is" in said
    assert "gone: the plan has version 1, here is none" in said
    assert "--random-seed: the plan has none, and 5 is given now" in said
    assert "--copy-tokenizer: the plan has true, and false is given now" in said
    # Of what the plan is silent nothing was verified.
    assert "two: the plan says nothing of it" in said
    assert "6 things are not as the plan has it" in said


def test_a_plan_of_a_refusal_is_no_plan_of_a_merge(copied, planned):
    reason = {
        "rule": "distortion",
        "reading": "ball",
        "subject": "one\x1b[31m",
        "value": 0.7,
        "value_reason": None,
        "limit": 0.3,
        "advice": "Part them.",
    }
    path = copied(verdict={"decision": "refuse", "exit_code": 3, "reasons": [reason]})
    with pytest.raises(MergeRefusedError, match="plans no merge") as caught:
        followed(path)
    assert r"one\x1b[31m (ball) is 0.7, limit 0.3. Part them." in str(caught.value)
    before = sorted(os.listdir(path.parent))
    done = CliRunner().invoke(main, ["run", "--plan", str(path), str(path.parent / "out")])
    assert done.exit_code == 3, done.output
    assert sorted(os.listdir(path.parent)) == before


def changed(document, place, value):
    part = document
    *way, last = place
    for key in way:
        part = part[key]
    part[last] = value
    return document


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("plan_version",), 2, "has plan_version 2, and this mergekit-collapse knows 1; upgrade"),
        (("plan_version",), 0, "make the plan again"),
        (("plan_version",), True, "has no plan_version"),
        (("later",), 1, "later: Extra inputs are not permitted"),
        (("options", "gpu"), 1, "options.gpu: Extra inputs"),
        (("options", "trust_remote_code"), "yes", "options.trust_remote_code"),
        (("options", "out_shard_size"), 0, "options.out_shard_size"),
        (("verdict", "decision"), "perhaps", "verdict.decision"),
        (("verdict", "exit_code"), 3, "verdict: allow has exit_code 0, not 3"),
        (("verdict", "decision"), "refuse", "verdict: refuse has exit_code 3, not 0"),
        (("verdict", "decision"), "modified", "verdict: modified, but no change is in remedy"),
        (("recipe", "folder"), "a\0b", "NUL"),
        (("recipe", "effective"), "models: [", "not valid YAML"),
        (("readings", "distortion"), "0", "readings.distortion"),
        (("rehearsal", "wanted"), "perhaps", "rehearsal.wanted"),
        (("experts", 0, "model"), "else", "experts: are not those of its recipe"),
        (("experts", 0, "name"), "two", "experts: two of them have one name"),
        (("inputs", 0, "role"), "virus", "inputs.0.role"),
        (("inputs", 1, "files", "config.json", "sha256"), "00", "config.json.sha256"),
        (("inputs", 1, "files", "config.json", "bytes"), -1, "config.json.bytes"),
        (("versions", "torch"), 2, "versions.torch"),
        (("remedy",), {}, "remedy.action"),
        (("remedy",), CHANGE, "remedy: changes a recipe of which the verdict is allow"),
        (("remedy",), CHANGE | {"effective": "else"}, "remedy.effective: is not the recipe"),
    ],
)
def test_a_damaged_plan_is_told(planned, tmp_path, place, value, told):
    document = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(changed(document, place, value)), encoding="utf-8")
    assert told in refused(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "as if cut short"),
        ("[]", "holds a list, not an object"),
        ("hello", "not JSON"),
        ("{}", "not a plan of mergekit-collapse: it has no plan_version"),
        ('{"plan_version": 1, "plan_version": 1}', "'plan_version' stands twice"),
        ('{"plan_version": NaN}', "NaN is no number"),
        ('{"plan_version": 1, "versions": {"\\ud800": "1"}}', "Invalid JSON"),
        ('{"plan_version": 1, "versions": ' + "[" * 300 + "]" * 300 + "}", "copy.json: "),
        ("[" * 100_000, "lists within lists"),
    ],
)
def test_what_is_no_plan_is_told(tmp_path, text, told):
    path = tmp_path / "copy.json"
    path.write_text(text, encoding="utf-8")
    assert told in refused(path)
    assert "no such file; name a plan" in refused(tmp_path / "none.json")


def test_a_plan_cut_anywhere_is_refused(planned, tmp_path):
    text = (planned / "plan.json").read_text(encoding="utf-8")
    path = tmp_path / "cut.json"
    for length in range(0, len(text) - 2, 211):
        path.write_text(text[:length], encoding="utf-8")
        refused(path)


def test_no_name_in_a_plan_steers_the_terminal(planned, copied):
    document = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    document["versions"]["\x1b[2J"] = "\x1b[31m"
    document["recipe"]["path"] = "/tmp/\x1b[31m\nrecipe.yml"
    document["recipe"]["working_directory"] = "/\x1b[31m"
    document["inputs"][1]["name"] = "\x1b[31m"
    assert "\x1b" not in refused(copied(**document))
    assert "\x1b" not in refused(copied(**{"\x1b[31m": 1}))


# --- options ---


def test_every_option_of_mergekit_has_its_place():
    assert set(MergeOptions.model_fields) == PLANNED | FREE | set(STANDING_FOR)
    assert not PLANNED & FREE


def test_the_planned_options_are_those_of_the_merge():
    made = MergeOptions(
        random_seed=3, out_shard_size=100, device="cuda:0", lora_merge_dtype="bfloat16"
    )
    planned = planned_options(made)
    own = with_planned(MergeOptions(quiet=True, num_threads=2, lora_merge_cache="here"), planned)
    assert (own.random_seed, own.out_shard_size, own.device) == (3, 100, "cuda:0")
    assert (own.quiet, own.num_threads, own.lora_merge_cache) == (True, 2, "here")
    assert own.cuda


def told_contradictions(planned, *, given=None, **now):
    options = MergeOptions(**now)
    found = given_in(options) if given is None else given
    return list(contradictions(planned_options(MergeOptions(**planned)), options, found))


@pytest.mark.parametrize(
    ("planned", "now", "told"),
    [
        ({}, {}, []),
        ({}, {"quiet": True, "num_threads": 3, "transformers_cache": "x"}, []),
        ({"random_seed": 3}, {}, []),
        ({"random_seed": 3}, {"random_seed": 3}, []),
        ({"random_seed": 3}, {"random_seed": 4}, ["--random-seed: the plan has 3, and 4"]),
        ({"device": "cuda"}, {}, []),
        ({"device": "cuda"}, {"cuda": True}, []),
        ({}, {"cuda": True}, ["--device: the plan has cpu, and cuda"]),
        ({}, {"gpu_rich": True}, ["--device: the", "--multi-gpu: the plan has false, and true"]),
        ({"gpu_rich": True}, {}, []),
        ({}, {"trust_remote_code": True}, ["--trust-remote-code: the plan has false"]),
        ({"trust_remote_code": True}, {"trust_remote_code": True}, []),
        ({"trust_remote_code": True}, {}, ["--trust-remote-code: the plan was made with it"]),
    ],
)
def test_options_agree_with_the_plan(planned, now, told):
    found = told_contradictions(planned, **now)
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))


def test_a_default_that_was_typed_counts_as_given():
    found = told_contradictions({"device": "cuda"}, given=["device"], device="cpu")
    assert found == ["--device: the plan has cuda, and cpu is given now"]


def test_a_plan_switches_no_code_on(planned, copied):
    document = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    path = copied(options=document["options"] | {"trust_remote_code": True})
    said = refused(path)
    assert "no file may switch it on" in said
    assert "give --trust-remote-code again if you trust it" in said
    trusted = MergeOptions(quiet=True, trust_remote_code=True)
    assert followed(path, trusted, ["trust_remote_code"]).options.trust_remote_code


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lora_merge_dtype": "float8"}, "--lora-merge-dtype float8: MergeKit has no such dtype"),
        ({"out_shard_size": 0}, "--out-shard-size 0"),
    ],
)
def test_an_option_that_cannot_be_is_told_before_anything_is_measured(planned, options, told):
    with pytest.raises(InvalidRecipeError, match=told):
        gate.check(planned / "recipe.yml", MergeOptions(**options), plan=planned / "new.json")
    assert not (planned / "new.json").exists()


def test_a_random_method_needs_a_seed(planned, tmp_path):
    keys = {"merge_method": "dare_linear", "base_model": str(planned / "two")}
    path = write_recipe(tmp_path, planned / "one", planned / "two", **keys)
    with pytest.raises(InvalidRecipeError, match="give --random-seed N"):
        gate.check(path, QUIET, plan=tmp_path / "plan.json")


# --- where a plan may lie ---


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("recipe.yml", "is there already and is no plan"),
        ("one/config.json", "is there already and is no plan"),
        ("one/plan.json", "lies in the folder of a model"),
        ("probes.txt/plan.json", "is no folder that can be written"),
    ],
)
def test_a_plan_destroys_nothing(planned, name, told):
    before = digests([p for p in planned.rglob("*") if p.is_file()], progress=False)
    with pytest.raises(InvalidRecipeError, match=told):
        gate.check(planned / "recipe.yml", QUIET, plan=planned / name)
    assert digests([p for p in planned.rglob("*") if p.is_file()], progress=False) == before


def test_a_fixed_recipe_is_not_the_one_that_is_planned(planned):
    path = planned / "recipe.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "  on_violation: drop\n", encoding="utf-8")
    try:
        with pytest.raises(InvalidRecipeError, match="would change the recipe"):
            gate.check(path, QUIET, plan=planned / "new.json", fix=path)
    finally:
        path.write_text(text, encoding="utf-8")


def test_a_plan_that_cannot_be_written_is_told(planned, tmp_path):
    plan = read_plan(planned / "plan.json").plan
    with pytest.raises(EvaluationError, match="the plan cannot be written: File name too long"):
        write_plan(plan, tmp_path / ("a" * 300))


# --- inputs of every kind ---


def make_adapter(base, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(folder)


def save_as_bin(source, folder):
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory, tiny_model, tiny_tokenizer):
    """Shards, a ``.bin``, an adapter, a tokenizer, the hub's cache, probes and lm-eval tasks."""
    folder = tmp_path_factory.mktemp("kinds")
    source = tiny_model("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(folder / "sharded", max_shard_size="60KB")
    assert (folder / "sharded" / "model.safetensors.index.json").exists()
    tiny_tokenizer.save_pretrained(folder / "sharded")
    (folder / "sharded" / "additional_chat_templates").mkdir()
    (folder / "sharded" / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    save_as_bin(source, folder / "base")
    make_adapter(source, folder / "lora")
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    repository = folder / "hub" / "models--someone--two"
    shutil.copytree(source, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "mine.yaml").write_text("include: shared.yml\ntask: mine\n")
    (folder / "tasks" / "shared.yml").write_text(
        "dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
    )
    (folder / "tasks" / "rows.jsonl").write_text('{"text": "a"}\n')
    block = {**BLOCK, "evaluate": {"lm_eval": ["tasks/mine.yaml", "hellaswag"]}}
    write_recipe(
        folder,
        folder / "sharded",
        f"{folder / 'base'}+{folder / 'lora'}",
        HUB,
        compat=block,
        tokenizer={
            "source": "union",
            "tokens": {"<s>": {"source": {"kind": "model_token", "model": str(folder / "tokenizer"),
                                          "token_id": 1}}},
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


def found(folder, *, trust=False, local=()):
    recipe = read_recipe(folder / "recipe.yml")
    cache = str(folder / "hub")
    return find_inputs(
        inputs_of(recipe), cache_dir=cache, trust_remote_code=trust, progress=False, local=local
    )


def plan_with(planned, inputs):
    plan = read_plan(planned / "plan.json").plan
    return plan.model_copy(update={"inputs": tuple(inputs.values())})


def test_inputs_of_every_kind_are_found(every_kind, offline):
    now = found(every_kind)
    assert not now.problems
    named = {(role, os.path.basename(name)): sorted(one.files) for (role, name), one in
             now.inputs.items()}  # fmt: skip
    assert list(named) == [
        ("recipe", "recipe.yml"),
        ("model", "sharded"),
        ("model", "base"),
        ("model", "two"),
        ("adapter", "lora"),
        ("tokenizer", "tokenizer"),
        ("probes", "probes.txt"),
        ("lm_eval", "mine.yaml"),
    ]
    sharded = named["model", "sharded"]
    assert "additional_chat_templates/tool.jinja" in sharded
    assert sum(name.endswith(".safetensors") for name in sharded) > 1
    assert "pytorch_model.bin" in named["model", "base"]
    assert named["adapter", "lora"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert named["lm_eval", "mine.yaml"] == ["mine.yaml", "rows.jsonl", "shared.yml"]
    assert now.inputs["model", HUB].commit == COMMIT


@pytest.fixture(scope="module")
def as_planned(planned, every_kind, offline):
    """The inputs that are wanted, a plan of them as they are, and their files."""
    wanted = inputs_of(read_recipe(every_kind / "recipe.yml"))
    place = {"cache_dir": str(every_kind / "hub"), "trust_remote_code": False}
    files = [path for one in wanted for path in locate(one, **place).files.values()]
    return wanted, plan_with(planned, found(every_kind).inputs), place, files


def noticed(as_planned, path, at, bits):
    """What is said of a file with one byte changed."""
    wanted, plan, place, _ = as_planned
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[at] ^= bits
    path.write_bytes(flipped)
    try:
        return list(input_changes(plan, find_inputs(wanted, progress=False, **place)))
    finally:
        path.write_bytes(content)


def test_every_file_is_watched_to_its_last_byte(as_planned, every_kind):
    wanted, plan, place, files = as_planned
    assert len(files) > 25
    for path in files:
        for at in (0, -1):
            assert noticed(as_planned, path, at, 1), path
    assert not list(input_changes(plan, find_inputs(wanted, progress=False, **place)))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_byte_of_any_input_is_noticed(as_planned, data):
    path = data.draw(st.sampled_from(as_planned[3]))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    assert noticed(as_planned, path, at, data.draw(st.integers(1, 255)))


def test_of_one_commit_more_files_are_no_change(planned, every_kind, offline):
    before = found(every_kind)
    snapshot = every_kind / "hub" / "models--someone--two" / "snapshots" / COMMIT
    (snapshot / "merges.txt").write_text("a b\n")
    try:
        assert not list(input_changes(plan_with(planned, before.inputs), found(every_kind)))
    finally:
        (snapshot / "merges.txt").unlink()


def test_another_commit_is_told_where_its_files_differ(planned, every_kind, offline):
    before = found(every_kind)
    repository, other = every_kind / "hub" / "models--someone--two", "f" * 40
    shutil.copytree(repository / "snapshots" / COMMIT, repository / "snapshots" / other)
    before.require_untouched("stop")
    (repository / "refs" / "main").write_text(other)
    try:
        with pytest.raises(EvaluationError, match="someone/two: was changed on the hub mean"):
            before.require_untouched("stop")
        assert not list(input_changes(plan_with(planned, before.inputs), found(every_kind)))
        (repository / "snapshots" / other / "config.json").write_text("{}")
        told = list(input_changes(plan_with(planned, before.inputs), found(every_kind)))
    finally:
        (repository / "refs" / "main").write_text(COMMIT)
        shutil.rmtree(repository / "snapshots" / other)
    assert told[0].endswith(f"the plan has the hub's commit {COMMIT}, here is the hub's commit "
                            f"{other}")  # fmt: skip
    assert "config.json: was changed" in told[1]


def test_what_was_a_folder_is_not_looked_for_on_the_hub(every_kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    now = found(every_kind, local=[("model", HUB)])
    assert "no such folder" in now.problems["model", HUB]


def test_code_is_an_input_where_it_may_run(every_kind, offline):
    code = every_kind / "sharded" / "nested" / "modeling.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    beside = every_kind / "tasks" / "metric.py"
    beside.write_text("y = 1\n")
    try:
        named = {name for one in found(every_kind).inputs.values() for name in one.files}
        assert not {"nested/modeling.py", "metric.py"} & named
        named = {
            name for one in found(every_kind, trust=True).inputs.values() for name in one.files
        }
        assert {"nested/modeling.py", "metric.py"} <= named
    finally:
        shutil.rmtree(code.parent)
        beside.unlink()


def test_code_of_another_repository_cannot_be_planned(every_kind, offline):
    path = every_kind / "sharded" / "tokenizer_config.json"
    text = path.read_text()
    foreign = {"auto_map": {"AutoTokenizer": ["else/where--tokenization.T", None]}}
    path.write_text(json.dumps(json.loads(text) | foreign))
    try:
        problems = found(every_kind, trust=True).problems
        assert not found(every_kind).problems
    finally:
        path.write_text(text)
    (told,) = problems.values()
    assert "takes code from another repository (else/where--tokenization.T)" in told


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(EvaluationError, match="gone: cannot be read: No such file"):
        digests([tmp_path / "gone"], progress=False)


def test_one_file_under_two_names_is_read_once(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    read = digests([tmp_path / "a", tmp_path / "b"], progress=False)
    assert read[tmp_path / "a"] is read[tmp_path / "b"]
    assert read[tmp_path / "a"].sha256.startswith("ba7816bf")
    assert read[tmp_path / "a"].bytes == 3


def test_a_plan_holds_nothing_that_its_document_does_not(planned):
    plan = read_plan(planned / "plan.json").plan
    assert SavedPlan.model_validate_json(plan.model_dump_json()) == plan
    assert Report.__dataclass_fields__["plan"].default is None


# --- the command line ---


def command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--plan", "PLAN"], "got 0 paths"),
        (["run", "RECIPE", "OUT", "--plan", "PLAN"], "holds the recipe, so that OUT alone"),
        (["run", "RECIPE"], "two paths are needed, the recipe and the output folder; got 1 path"),
        (["run"], "Write `run RECIPE OUT`, or `run --plan FILE OUT`"),
        (["run", "--plan", "none.json", "OUT"], "no such file"),
        (["run", "--plan", "PLAN", "--json", "PLAN", "OUT"], "--json and --plan both go to"),
        (["run", "--plan", "PLAN", "OUT", "--random-seed", "1"], "--random-seed: the plan has"),
        (["run", "--plan", "PLAN", "OUT", "--no-copy-tokenizer"], "--copy-tokenizer: the plan"),
        (["run", "--plan", "PLAN", "OUT", "--trust-remote-code"], "--trust-remote-code: the"),
        (["check", "RECIPE", "--random-seed", "1"], "--random-seed: is about the merged model"),
        (["check", "RECIPE", "--gpu-rich"], "--gpu-rich: is about the merged model"),
        (["check", "RECIPE", "--async-write"], "No such option"),
        (["check", "RECIPE", "--plan", "new.json", "--html", "new.json"], "both go to"),
    ],
)
def test_wrong_usage_is_told(planned, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    places = {"PLAN": planned / "plan.json", "RECIPE": planned / "recipe.yml", "OUT": "out"}
    done = command(*(places.get(one, one) for one in arguments))
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_says_how_a_plan_is_run():
    text = " ".join(command("run", "--help").stdout.split())
    assert "run [OPTIONS] (RECIPE OUT | --plan FILE OUT)" in text
    assert "run --plan FILE OUT does exactly what the plan says" in text
    assert "--random-seed" in command("check", "--help").stdout
