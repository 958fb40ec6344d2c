"""The whole line in-process, on tiny models: what is measured, written, merged and refused."""

import json
import math
import pickle
import shutil
from pathlib import Path

import mergekit.merge
import pytest
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

import mergekit_collapse
from mergekit_collapse import gate, mergekit_hook
from mergekit_collapse.cli import main
from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    InvalidRecipeError,
    MergeRefusedError,
)

pytestmark = pytest.mark.slow

QUIET = MergeOptions(quiet=True)
FAST = {"probes": {"samples": 8, "max_tokens": 16}}


@pytest.fixture(scope="module", autouse=True)
def hooked():
    mergekit_hook.install()


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
    """Write a linear recipe of models, by name or folder, and return its path."""

    def write(*names, compat=FAST, **keys):
        recipe = {
            "merge_method": "linear",
            "models": [
                {"model": str(models.get(name, name)), "parameters": {"weight": 1.0}}
                for name in names
            ],
            "dtype": "float32",
            **keys,
        }
        if compat is not None:
            recipe["compat"] = compat
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return path

    return write


def checked(path):
    report = gate.check(path, QUIET)
    return report, json.loads(report.path.read_text(encoding="utf-8"))


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_near_experts_are_allowed_and_the_report_has_every_key(write):
    report, document = checked(write("one", "two"))
    assert report.verdict.decision == "allow"
    assert set(document) >= {
        *("format_version", "versions", "timing", "budget", "recipe", "experts", "probes"),
        *("geometry", "similarity", "mds", "groups", "verdict"),
    }
    hidden = document["geometry"]["hidden"]
    assert set(hidden) >= {
        *("layer", "pooling", "scale", "dimension", "distance", "squared_distance", "to_base"),
        *("diameter_squared", "ball_radius_squared", "bounds", "center", "predicted_distortion"),
        *("confidence", "own_task"),
    }
    assert set(hidden["bounds"]) >= {"converse", "jung", "jung_dimension"}
    assert document["verdict"] == {"decision": "allow", "exit_code": 0, "reasons": []}
    assert [e["weight"] for e in document["experts"]] == [1.0, 1.0]
    assert [t["rows"] for t in document["probes"]["tasks"]] == [8]
    assert document["geometry"]["predictive"]["scale"] == "none"


def test_every_number_is_finite_or_null_with_a_reason(write):
    _, document = checked(write("one", "two", "far"))

    def walk(value, where):
        if isinstance(value, dict):
            for key, item in value.items():
                if item is None:
                    assert f"{key}_reason" in value or key in ("path", "model", "base", "owner",
                        "note", "distortion", "mds"), f"{where}.{key}"  # fmt: skip
                walk(item, f"{where}.{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{where}[{index}]")
        elif isinstance(value, float):
            assert math.isfinite(value), where

    walk(document, "report")


def test_a_far_expert_is_refused_with_a_reason(write):
    report, document = checked(write("one", "two", "far"))
    assert report.verdict.exit_code == document["verdict"]["exit_code"] == 3
    reason = document["verdict"]["reasons"][0]
    assert reason["value"] > reason["limit"] == 0.25
    assert document["experts"][2]["name"] in reason["subject"]
    groups = document["groups"]
    assert [g["k"] for g in groups] == [1, 2, 3]
    assert groups[1]["groups"] == [[0, 1], [2]]


def test_the_first_tokenizer_is_taken_for_models_without_one(write, models, tmp_path):
    bare = shutil.copytree(models["one"], tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    report, _ = checked(write(bare, "two"))
    assert report.verdict.decision == "allow"
    assert "has no tokenizer" in str(report.preflight.warnings[0])


def test_a_link_to_an_expert_is_the_same_model_twice(write, models, tmp_path):
    (tmp_path / "twin").symlink_to(models["one"])
    with pytest.raises(InvalidRecipeError, match="is the same model as"):
        checked(write("one", tmp_path / "twin"))


def test_identical_experts_pass_the_tightest_budget(write, models, variant):
    tight = {**FAST, "budget": {"distortion": 0.0, "mds": 1.0}}
    report, document = checked(write("one", variant(models["one"], 0.0, 9), compat=tight))
    assert report.verdict.decision == "allow"
    assert document["geometry"]["hidden"]["diameter_squared"] == 0


@pytest.mark.parametrize("space", ["hidden", "predictive"])
def test_an_expert_of_noise_never_passes(write, tiny_model, space):
    noise = [tiny_model("llama", seed) for seed in (77, 78)]
    # Random tiny models answer nearly uniformly, so in predictive space the limit is lower.
    limit = {"hidden": 0.3, "predictive": 0.001}[space]
    budget = {"space": space, "distortion": limit, "mds": None}
    report, _ = checked(write("one", *noise, compat={**FAST, "budget": budget}))
    assert report.verdict.decision == "refuse"


def test_all_layers_several_poolings_and_scales_are_measured(write):
    block = {**FAST, "layer": "all", "pooling": "tokens", "scale": "rms"}
    _, document = checked(write("one", "two", compat=block))
    hidden = document["geometry"]["hidden"]
    assert (hidden["layer"], hidden["layers"]) == ("all", [1, 2])
    assert [p["layer"] for p in hidden["profile"]] == [1, 2]


def test_own_tasks_decide(write, tmp_path, models):
    (tmp_path / "p.txt").write_text("One line.\nAnother line.\nA third one.\nAnd a fourth.\n" * 2)
    tasks = [{"name": name, "data": "p.txt", "model": str(models[name])} for name in ("one", "far")]
    block = {
        "probes": {**FAST["probes"], "builtin": False, "tasks": tasks},
        "budget": {"over": "own_task", "mds": None},
    }
    report, document = checked(write("one", "far", compat=block))
    assert report.verdict.decision == "refuse"
    assert set(document["geometry"]["hidden"]["own_task"]) == {"one", "far"}


def test_slices_with_one_source_pass_unmeasured(tmp_path, models):
    part = {"sources": [{"model": str(models["one"]), "layer_range": [0, 2]}]}
    other = {"sources": [{"model": str(models["far"]), "layer_range": [0, 1]}]}
    recipe = {"merge_method": "passthrough", "slices": [part, other], "compat": {}}
    path = tmp_path / "stack.yml"
    path.write_text(yaml.safe_dump(recipe))
    report, document = checked(path)
    assert report.measurement is None
    assert document["verdict"]["decision"] == "allow"
    assert "one source" in document["geometry"]["hidden_reason"]


def merge(path, out, source="text", options=QUIET):
    text = path.read_text(encoding="utf-8")
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    return mergekit.merge.run_merge(config, str(out), options, text if source == "text" else None)


def test_run_merge_in_process_is_gated_without_its_yaml(write, tmp_path):
    """As TRL's callback and mergenetic call it: no text, no click context."""
    with pytest.raises(MergeRefusedError, match="REFUSED") as caught:
        merge(write("one", "far"), tmp_path / "out", source=None)
    assert caught.value.report.verdict.decision == "refuse"
    assert pickle.loads(pickle.dumps(caught.value)).report.path == caught.value.report.path
    assert "out" not in left_in(tmp_path)
    assert (tmp_path / "out.compat" / "report.json").exists()


def test_an_allowed_merge_has_the_same_weights_as_an_ungated_one(write, tmp_path):
    merge(write("one", "two", compat=None), tmp_path / "plain")
    merge(write("one", "two"), tmp_path / "gated")
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("plain", "gated")]
    assert weights[0] == weights[1]
    assert left_in(tmp_path / "plain") == left_in(tmp_path / "gated")
    assert not [name for name in left_in(tmp_path) if name.startswith(".collapse-")]
    card = (tmp_path / "gated" / "README.md").read_text(encoding="utf-8")
    assert "## Compatibility" in card
    assert "**allow**" in card
    assert "compat:" in (tmp_path / "gated" / "mergekit_config.yml").read_text(encoding="utf-8")
    plain = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert "Compatibility" not in plain


def test_a_refusal_leaves_what_was_there(write, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("an older merge")
    with pytest.raises(CompatError):
        merge(write("one", "far"), out)
    assert left_in(out) == ["config.json"]
    assert (out / "config.json").read_text() == "an older merge"


def test_on_violation_warn_merges_and_says_so(write, tmp_path, capsys):
    block = {**FAST, "on_violation": "warn", "evaluate": {"on_collapse": "warn"}}
    merge(write("one", "far", compat=block), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "WARNING, over budget" in capsys.readouterr().err
    document = json.loads((tmp_path / "out.compat" / "report.json").read_text(encoding="utf-8"))
    assert (document["verdict"]["decision"], document["verdict"]["exit_code"]) == ("warn", 0)


@pytest.mark.parametrize("block", [FAST, {"probes": {"sampels": 1}}])
def test_the_environment_may_only_warn(write, tmp_path, monkeypatch, capsys, block):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "warn")
    merge(write("one", "far", compat=block), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "merging all the same" in capsys.readouterr().err


def test_a_warning_gate_merges_where_its_report_cannot_be_written(
    write, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "warn")
    (tmp_path / "file").write_text("")
    merge(write("one", "two", compat={**FAST, "report": str(tmp_path / "file")}), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "is where the report's folder must be" in capsys.readouterr().err


def test_the_environment_may_switch_the_gate_off(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "0")
    merge(write("one", "far"), tmp_path / "out")
    assert "IGNORED" in capsys.readouterr().err
    assert not (tmp_path / "out.compat").exists()


def test_run_works_where_nothing_is_hooked(write, tmp_path):
    report = gate.run(write("one", "two"), tmp_path / "out", QUIET)
    assert report.verdict.decision == "allow"
    assert (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(MergeRefusedError):
        gate.run(write("one", "far", compat=None), tmp_path / "other", QUIET)


def test_an_interrupted_merge_leaves_nothing(write, tmp_path, monkeypatch):
    def interrupted(config, out_path, options, config_source=None):
        Path(out_path).mkdir()
        (Path(out_path) / "config.json").write_text("half")
        raise KeyboardInterrupt

    path = write("one", "two")
    monkeypatch.setattr(gate, "run_merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gate.run(path, tmp_path / "out", QUIET)
    assert left_in(tmp_path) == ["out.compat", "recipe.yml"]


def test_a_full_disk_is_told(write, tmp_path, monkeypatch):
    def full(config, out_path, options, config_source=None):
        raise OSError(28, "No space left on device")

    path = write("one", "two")
    monkeypatch.setattr(gate, "run_merge", full)
    with pytest.raises(EvaluationError, match="the disk is full"):
        gate.run(path, tmp_path / "out", QUIET)
    assert "out" not in left_in(tmp_path)


def test_a_report_folder_that_cannot_be_written_is_told(write, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="the report cannot be written"):
        checked(write("one", "two", compat={**FAST, "report": "file"}))


def test_the_report_goes_where_the_block_says(write, tmp_path):
    checked(write("one", "two", compat={**FAST, "report": "reports/mine"}))
    assert (tmp_path / "reports" / "mine" / "report.json").exists()


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"merge_method": "lienar"}, InvalidRecipeError, "did you mean linear"),
        ({"merge_method": "slerp"}, InvalidRecipeError, "base"),
        ({"merge_method": "ties"}, InvalidRecipeError, "requires a base"),
        ({"compat": {"layer": 9}}, InvalidRecipeError, "no layer 9"),
        ({"compat": {"probes": {"tasks": [{"name": "t", "data": "no.txt"}]}}}, EvaluationError,
         "no such file"),
        ({"compat": {"budget": {"rule": "weights"}}, "merge_method": "sce", "base_model": "base"},
         EvaluationError, "sce sets its own coefficients"),
    ],
)  # fmt: skip
def test_bad_recipes_are_told(write, models, change, error, told):
    if "base_model" in change:
        change = {**change, "base_model": str(models[change["base_model"]])}
    with pytest.raises(error, match=told):
        checked(write("one", "two", **change))


def test_one_expert_is_told(write):
    with pytest.raises(InvalidRecipeError, match="add a second expert"):
        checked(write("one"))


def test_the_package_offers_check_and_run(write, tmp_path):
    path = write("one", "two")
    assert mergekit_collapse.check(str(path), QUIET).path == tmp_path / "recipe.compat/report.json"
    assert mergekit_collapse.run(str(path), str(tmp_path / "out"), QUIET).verdict.exit_code == 0
    with pytest.raises(AttributeError, match="no attribute 'evaluate_all'"):
        _ = mergekit_collapse.evaluate_all


def test_what_mergekit_raises_is_told(write, tmp_path, monkeypatch):
    def failing(config, out_path, options, config_source=None):
        raise KeyError("no such module")

    path = write("one", "two")
    monkeypatch.setattr(gate, "run_merge", failing)
    with pytest.raises(EvaluationError, match="MergeKit could not make it: KeyError"):
        gate.run(path, tmp_path / "out", QUIET)
    assert left_in(tmp_path) == ["out.compat", "recipe.yml"]


@pytest.mark.parametrize("report", ["out", "out/report"])
def test_a_refusal_makes_no_output_folder_for_its_report(write, tmp_path, report):
    with pytest.raises(InvalidRecipeError, match="lies in the output folder"):
        gate.run(write("one", "far", compat={**FAST, "report": report}), tmp_path / "out", QUIET)
    assert left_in(tmp_path) == ["recipe.yml"]


def test_a_refusal_leaves_the_folder_that_it_is_run_in(write, tmp_path, monkeypatch):
    path = write("one", "far")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(MergeRefusedError):
        gate.run(path, ".", QUIET)
    assert left_in(tmp_path) == ["here", "here.compat", "recipe.yml"]
    assert left_in(tmp_path / "here") == []


def test_a_report_name_that_is_too_long_is_told(write):
    with pytest.raises(EvaluationError, match="the report cannot be written"):
        checked(write("one", "two", compat={**FAST, "report": "a" * 300}))


def test_one_layer_by_two_numbers_is_told(write):
    with pytest.raises(InvalidRecipeError, match="a layer stands twice"):
        checked(write("one", "two", compat={**FAST, "layer": [2, -1]}))


@pytest.mark.parametrize("arguments", [["--json", "."], ["--json", "none/j"], ["--num-threads", 0]])
def test_options_that_cannot_work_are_told_before_anything_is_measured(write, tmp_path, arguments):
    command = [*("run", write("one", "two"), tmp_path / "out"), *arguments]
    done = CliRunner().invoke(main, list(map(str, command)))
    assert done.exit_code == 2, done.stderr
    assert left_in(tmp_path) == ["recipe.yml"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_json_file_on_a_full_disk_is_told(write):
    done = CliRunner().invoke(main, ["check", str(write("one", "two")), "--json", "/dev/full"])
    assert done.exit_code == 1
    assert "--json /dev/full: cannot be written: No space left on device" in done.stderr


def test_no_name_steers_the_terminal(write, tmp_path):
    escape = "\x1b[31m"
    done = CliRunner().invoke(main, ["run", str(write("one", "far")), str(tmp_path / f"o{escape}")])
    assert done.exit_code == 3
    assert escape not in done.output
    (tmp_path / "odd.yml").write_text('"compat\\e[31m": {}')
    done = CliRunner().invoke(main, ["doctor", str(tmp_path / "odd.yml")])
    assert escape not in done.output
