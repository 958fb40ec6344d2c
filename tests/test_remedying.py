"""A refused recipe changed as its block says: what is merged, written, reported and refused."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mergekit.merge
import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from tiny_models import make_adapter

from mergekit_collapse import gate, mergekit_hook
from mergekit_collapse.cli import main
from mergekit_collapse.errors import InvalidRecipeError, MergeRefusedError, MergeRejectedError
from mergekit_collapse.formats.junit import to_junit
from mergekit_collapse.formats.markdown import to_markdown
from mergekit_collapse.page.html import to_html
from mergekit_collapse.recipe.recipe import read_recipe
from mergekit_collapse.report.reader import parse_report

pytestmark = pytest.mark.slow

QUIET = MergeOptions(quiet=True)
FAST = {"probes": {"samples": 8, "max_tokens": 16}, "cache": False}
OPEN = {"max_distortion": None, "min_variance_ratio": None, "min_rank_ratio": None}


@pytest.fixture(scope="module", autouse=True)
def hooked():
    mergekit_hook.install()


@pytest.fixture(scope="module")
def models(tiny_model, variant, tmp_path_factory):
    base = tiny_model("llama")
    return {
        "base": base,
        "one": variant(base, 0.02, 1),
        "two": variant(base, 0.02, 2),
        "three": variant(base, 0.02, 4),
        "off": variant(base, 0.4, 4),
        "far": variant(base, 3.0, 3),
        "away": variant(variant(base, 3.0, 3), 0.02, 5),
        "apart": variant(base, 3.0, 9),
        "other": tiny_model("bert"),
        "loud": loud(base, tmp_path_factory.mktemp("loud") / "model"),
    }


def loud(base, folder):
    """States 30 times as long, so that beside them everybody else is close together."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def write(tmp_path, models):
    """Write a recipe with comments, of models by name, each with a weight."""

    def write(weights, compat, method="linear", **keys):
        links = tmp_path / "models"
        links.mkdir(exist_ok=True)
        for name in {*weights, *keys.values()} & models.keys():
            if not (links / name).exists():
                (links / name).symlink_to(models[name])
        keys = {k: str(links / v) if v in models else v for k, v in keys.items()}
        lines = ["# a recipe of mine", f"merge_method: {method}", "models:"]
        for name, weight in weights.items():
            lines += [f"  - model: {links / name}  # the {name} one", "    parameters:"]
            lines += [f"      weight: {weight}"]
        rest = yaml.safe_dump({"dtype": "float32", **keys, "compat": compat}, sort_keys=False)
        path = tmp_path / "recipe.yml"
        path.write_text("\n".join(lines) + "\n" + rest, encoding="utf-8")
        return path

    return write


def even(*names):
    return dict.fromkeys(names, 1.0)


def block(action, **keys):
    return {**FAST, "on_violation": action, **keys}


def checked(path, **keys):
    report = gate.check(path, QUIET, **keys)
    document = json.loads(report.path.read_text(encoding="utf-8"))
    parse_report(document)
    return report, document


def merge(path, out, source="text"):
    text = path.read_text(encoding="utf-8")
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    return mergekit.merge.run_merge(config, str(out), QUIET, text if source == "text" else None)


def listed(text):
    return [Path(m["model"]).name for m in yaml.safe_load(text)["models"]]


def test_drop_leaves_the_fewest_out_and_the_rest_is_inside(write):
    report, document = checked(write(even("one", "far", "two"), block("drop")))
    assert (report.verdict.decision, report.verdict.exit_code) == ("modified", 0)
    assert report.recipe.names == ("one", "two")
    assert report.deciding.ball.radius_squared <= report.recipe.compat.budget.distortion
    remedy = document["remedy"]
    assert remedy["dropped"] == ["far"]
    assert remedy["distortion_before"] > 0.25 >= remedy["distortion_after"]
    assert listed(remedy["effective"]) == ["one", "two"]
    assert remedy["effective"] == document["recipe"]["effective"]
    assert "# the two one" in remedy["effective"]
    removed = [line for line in remedy["diff"].splitlines() if line.startswith("-  ")]
    assert any("# the far one" in line for line in removed)
    assert not any("# the two one" in line for line in removed)
    assert [e["name"] for e in document["experts"]] == ["one", "two"]
    assert document["recipe"]["sha256"] == read_recipe(report.recipe.path).sha256
    # Of what is left, and not of what was left out.
    assert document["gate"] == {"decision": "modified", "exit_code": 0, "reasons": []}


def test_a_changed_recipe_is_measured_as_if_it_had_been_written_so(write, tmp_path):
    report, _ = checked(write(even("one", "far", "two"), block("drop")), fix=tmp_path / "fixed.yml")
    again, document = checked(tmp_path / "fixed.yml")
    assert again.verdict.decision == "allow"
    assert document["remedy"] is None
    for space in ("hidden", "predictive"):
        pair = [getattr(r.measurement, space) for r in (report, again)]
        np.testing.assert_allclose(pair[0].squared, pair[1].squared, rtol=1e-6, atol=1e-12)
    assert report.coefficients.alpha.tolist() == again.coefficients.alpha.tolist()


@pytest.mark.parametrize("source", ["text", None])
def test_what_is_left_is_merged_and_lands_in_the_model(write, tmp_path, capsys, source):
    report = merge(write(even("one", "far", "two"), block("drop")), tmp_path / "out", source)
    assert report.verdict.decision == "modified"
    assert report.evaluation.verdict.decision == "allow"
    assert len(report.evaluation.hidden.distortion) == 2
    kept = (tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8")
    assert listed(kept) == ["one", "two"]
    assert yaml.safe_load(kept)["compat"]["on_violation"] == "drop"
    assert kept == report.remedy.effective
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "**modified**" in card
    assert "/far" not in card.split("## Compatibility")[0]
    said = capsys.readouterr().err
    assert "CHANGED (drop): without far" in said
    assert "\n-  - model: " in said or "\n-- model: " in said
    merge(write(even("one", "two"), FAST), tmp_path / "plain")
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "plain")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "budget", [{}, {"over": "own_task"}, {"over": "own_task", "rule": "weights"}]
)
def test_tasks_of_the_dropped_leave_and_the_rest_is_measured_on_its_own(write, tmp_path, budget):
    rows = "".join(f"Line number {i} of a text.\n" for i in range(12))
    for name in ("one", "two", "far"):
        (tmp_path / f"{name}.txt").write_text(f"{name} says so.\n{rows}")
    tasks = [
        {"name": name, "data": f"{name}.txt", "model": f"models/{name}"}
        for name in ("far", "one", "two")
    ]
    probes = {**FAST["probes"], "tasks": tasks}
    path = write(even("one", "far", "two"), block("drop", probes=probes, budget=budget))
    report, document = checked(path, fix=tmp_path / "elsewhere" / "fixed.yml")
    assert report.verdict.decision == "modified"
    assert report.recipe.owners == (0, 1)
    assert [t["name"] for t in document["probes"]["tasks"]] == ["builtin", "one", "two"]
    again, _ = checked(tmp_path / "elsewhere" / "fixed.yml")
    assert again.recipe.owners == (0, 1)
    first, second = (r.measurement.hidden.squared for r in (report, again))
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-12)


def test_drop_keeps_as_many_as_it_is_told_to(write):
    kept = block("drop", drop={"min_experts": 3})
    report, document = checked(write(even("one", "far", "two"), kept))
    assert report.verdict.exit_code == 3
    assert "every choice of 3 or more experts is over" in str(report.verdict.reasons[-1])
    assert document["remedy"] is None
    assert document["remedy_reason"].startswith("drop: every choice")


def test_two_experts_apart_cannot_be_mended_by_dropping(write, tmp_path):
    with pytest.raises(MergeRefusedError, match="on_violation: drop: every choice of 2 or more"):
        merge(write(even("one", "far"), block("drop")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def weighted(action, **keys):
    keys = {"budget": {"rule": "weights", "distortion": 1.0, "mds": None}} | keys
    return block(action, **keys)


def test_reweight_moves_the_weights_to_the_centre_of_the_ball(write, tmp_path):
    own = {"one": 0.9, "far": 0.1}
    compat = weighted("reweight", reweight={"floor": 0.0}, evaluate=OPEN, rehearse="never")
    report = merge(write(own, compat), tmp_path / "out")
    assert report.verdict.decision == "modified"
    found = report.deciding
    assert max(found.predicted) == pytest.approx(found.ball.radius_squared, rel=1e-6)
    before = [m.predicted_before for m in report.remedy.members]
    assert max(found.predicted) < max(before)
    kept = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8"))
    weights = [m["parameters"]["weight"] for m in kept["models"]]
    np.testing.assert_allclose(weights, found.ball.weights, atol=1e-6)
    assert report.evaluation.hidden.worst > 0


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_on_own_tasks_the_weights_are_the_best_for_the_worst_task(write, tmp_path, method):
    tasks = []
    for name in ("one", "far"):
        (tmp_path / f"{name}.txt").write_text("".join(f"Row {i} of {name}.\n" for i in range(9)))
        tasks.append({"name": name, "data": f"{name}.txt", "model": f"models/{name}"})
    budget = {"over": "own_task", "rule": "weights", "distortion": 20.0, "mds": None}
    compat = weighted(
        "reweight",
        budget=budget,
        probes={**FAST["probes"], "tasks": tasks},
        reweight={"floor": 0.0},
        rehearse="never",
    )
    keys = {} if method == "linear" else {"base_model": "base"}
    report, _ = checked(write({"one": 0.95, "far": 0.05}, compat, method, **keys))
    assert report.verdict.decision == "modified", report.remedy_reason
    own = report.deciding.own_task
    assert own.predicted_worst == pytest.approx(own.minimax.distortion, rel=1e-6)
    assert report.remedy.reading_after == own.predicted_worst < report.remedy.reading_before
    new = [m.weight_after for m in report.remedy.members]
    assert new == pytest.approx(own.minimax.weights.tolist(), abs=1e-5)


def test_weights_do_not_mend_a_ball_that_is_too_large(write):
    ball = block("reweight", budget={"mds": None})
    report, _ = checked(write({"one": 0.9, "far": 0.1}, ball))
    assert report.verdict.exit_code == 3
    assert "under the best weights there are" in str(report.verdict.reasons[-1])


def test_no_weights_are_good_enough(write):
    tight = weighted("reweight", budget={"rule": "weights", "distortion": 0.1, "mds": None})
    report, _ = checked(write({"one": 0.9, "far": 0.1}, tight))
    assert report.verdict.exit_code == 3
    assert "these experts are too far apart" in str(report.verdict.reasons[-1])


def test_protect_gives_up_the_expert_over_budget_and_says_so(write):
    budget = {"rule": "weights", "distortion": 0.3, "mds": None}
    keys = {"budget": budget, "reweight": {"goal": "protect", "floor": 0.0}}
    report, document = checked(write(even("one", "two", "far"), weighted("reweight", **keys)))
    assert report.verdict.decision == "modified"
    assert max(report.deciding.predicted[:2]) <= 0.3
    assert [r.subject for r in report.verdict.reasons] == ["far"]
    assert "given up" in document["remedy"]["notes"][0]


PROTECT = {
    "budget": {"rule": "weights", "distortion": 0.1, "mds": None},
    "reweight": {"goal": "protect", "floor": 0.0},
}


def test_who_was_given_up_is_not_what_the_merged_model_is_rejected_for(write, tmp_path, capsys):
    compat = weighted("reweight", **PROTECT, rehearse="never")
    report = merge(write(even("one", "two", "off"), compat), tmp_path / "out")
    assert (report.verdict.decision, report.verdict.exit_code) == ("modified", 0)
    assert {(r.rule, r.subject) for r in report.verdict.reasons} == {
        ("distortion", "off"),
        ("max_distortion", "off"),
    }
    assert report.evaluation.verdict.decision == "modified"
    assert (
        report.evaluation.hidden.distortion[2] > 0.5 > max(report.evaluation.hidden.distortion[:2])
    )
    assert (tmp_path / "out" / "model.safetensors").exists()
    said = capsys.readouterr().err
    assert "given up: max_distortion of off" in said
    assert "ALLOWED: all others are within the limits." in said
    document = json.loads(report.path.read_text(encoding="utf-8"))
    assert "2 readings are outside their limits" in to_html(document)
    assert "<failure" not in to_junit(document)


def test_whoever_was_not_given_up_still_is(write, tmp_path):
    limits = {**OPEN, "max_distortion": 0.01}
    compat = weighted("reweight", **PROTECT, rehearse="never", evaluate=limits)
    with pytest.raises(MergeRejectedError, match="max_distortion of one"):
        merge(write(even("one", "two", "off"), compat), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("limit", "code"), [(0.5, 0), (0.01, 3)])
def test_a_rehearsal_spares_who_was_given_up_alone(write, limit, code):
    limits = {**OPEN, "max_distortion": limit}
    compat = weighted("reweight", **PROTECT, rehearse="always", evaluate=limits)
    report, document = checked(write(even("one", "two", "off"), compat))
    assert report.verdict.exit_code == code
    assert report.verdict.decision == ("refuse" if code else "modified")
    assert document["rehearsal"]["verdict"]["decision"] == report.verdict.decision
    assert "max_distortion of off" in str([str(r) for r in report.verdict.reasons])


def test_layers_get_weights_of_their_own(write, tmp_path):
    budget = {"rule": "weights", "distortion": 1.7, "mds": None}
    keys = {
        "budget": budget,
        "layer": "all",
        "reweight": {"per_layer": True, "floor": 0.0},
        "evaluate": OPEN,
    }
    report = merge(
        write(
            {"one": 0.9, "far": 0.05, "apart": 0.05}, weighted("reweight", rehearse="never", **keys)
        ),
        tmp_path / "out",
    )
    assert report.verdict.decision == "modified"
    kept = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert [len(m["parameters"]["weight"]) for m in kept["models"]] == [2, 2, 2]


def test_a_floor_that_cannot_be_met_is_told_before_anything_is_measured(write, tmp_path):
    path = write(even("one", "two", "far"), block("reweight", reweight={"floor": 0.4}))
    with pytest.raises(InvalidRecipeError, match=r"give at most 0\.333"):
        gate.check(path, QUIET)
    with pytest.raises(InvalidRecipeError, match=r"give at most 0\.333"):
        merge(path, tmp_path / "out")
    assert not (tmp_path / "out.compat").exists()


def test_a_method_without_weights_is_told(write):
    path = write(even("one", "two", "far"), weighted("reweight"), method="karcher")
    text = path.read_text(encoding="utf-8").replace("    parameters:\n      weight: 1.0\n", "")
    path.write_text(text, encoding="utf-8")
    report, document = checked(path)
    assert report.verdict.exit_code == 3
    assert "merge_method karcher has no weights to change" in document["remedy_reason"]


def test_karcher_takes_the_weights_of_task_vectors_along(write, tmp_path):
    """Task vectors of weight 0.3 each are 0.4 of the base, which a Karcher mean leaves out."""
    budget = {"rule": "weights", "distortion": 0.3, "mds": None}
    compat = weighted("karcher", budget=budget, evaluate=OPEN, rehearse="never")
    own = {"far": 0.1, "away": 0.1}
    path = write(own, compat, method="task_arithmetic", base_model="base")
    report = merge(path, tmp_path / "out")
    assert report.verdict.decision == "modified"
    assert report.recipe.base is None
    assert report.recipe.config.merge_method == "weighted_karcher"
    assert max(report.deciding.predicted) <= 0.3
    kept = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert kept["merge_method"] == "weighted_karcher"
    assert "base_model" not in kept
    assert [m["parameters"]["weight"] for m in kept["models"]] == [0.1, 0.1]


def test_no_method_mends_a_ball_that_is_too_large(write):
    report, _ = checked(write(even("one", "far"), block("karcher", budget={"mds": None})))
    assert report.verdict.exit_code == 3
    assert "whatever the method is" in str(report.verdict.reasons[-1])


def test_split_writes_one_merge_for_each_group_and_refuses_the_whole(write, tmp_path, capsys):
    path = write(
        even("one", "far", "two", "away"), block("split", report=str(tmp_path / "reports"))
    )
    with pytest.raises(MergeRefusedError, match=r"split\.yml") as caught:
        merge(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = (tmp_path / "reports" / "split.yml").read_text(encoding="utf-8")
    documents = list(yaml.safe_load_all(text))
    groups = [[Path(m["model"]).name for m in d["models"]] for d in documents]
    assert groups == [["one", "two"], ["far", "away"]]
    assert [d["name"] for d in documents] == ["group-1", "group-2"]
    assert all("report" not in d["compat"] for d in documents)
    assert "group-1" in capsys.readouterr().err
    report = json.loads(caught.value.report.path.read_text(encoding="utf-8"))
    assert report["remedy"]["split"] == text
    assert report["verdict"]["decision"] == "refuse"
    for number, document in enumerate(documents):
        document.pop("name")
        part = tmp_path / f"part-{number}.yml"
        part.write_text(yaml.safe_dump(document), encoding="utf-8")
        assert checked(part)[0].verdict.decision == "allow"


def test_an_expert_alone_is_left_out_of_the_split(write, tmp_path):
    report, _ = checked(write(even("one", "far", "two"), block("split")))
    assert report.verdict.exit_code == 3
    text = (tmp_path / "recipe.compat" / "split.yml").read_text(encoding="utf-8")
    assert "# far: used as it is" in text
    assert len(list(yaml.safe_load_all(text))) == 1


def test_groups_of_a_split_are_inside_when_they_are_measured_apart(write, tmp_path):
    """In the scale of all of them, the loud one included, the far one is near to the others."""
    compat = block("split", budget={"mds": None})
    report, document = checked(write(even("one", "two", "far", "loud"), compat))
    assert report.verdict.exit_code == 3
    assert document["remedy"]["notes"] == [
        "one + two | far | loud",
        "one + two + far is over when measured by itself",
    ]
    (part,) = yaml.safe_load_all((tmp_path / "recipe.compat" / "split.yml").read_text("utf-8"))
    assert listed(yaml.safe_dump(part)) == ["one", "two"]
    vain, document = checked(write(even("one", "far", "loud"), compat))
    assert vain.verdict.exit_code == 3
    told = "split: one + far would be inside, but not when measured apart; no other groups"
    assert document["remedy_reason"].startswith(told)


RULES = [
    {"rule": "ball"},
    {"rule": "corollary"},
    {"rule": "weights"},
    {"over": "own_task"},
    {"over": "own_task", "rule": "weights"},
]


@pytest.mark.parametrize("budget", RULES)
def test_a_model_of_the_pool_takes_the_place_of_the_worst(write, tmp_path, models, budget):
    (tmp_path / "pool").mkdir()
    for name in ("apart", "three"):
        (tmp_path / "pool" / name).symlink_to(models[name])
    names = ("one", "far", "two") if budget.get("over") else ("far",)
    tasks = []
    for name in names:
        (tmp_path / f"{name}.txt").write_text("".join(f"Row {i} of {name}.\n" for i in range(9)))
        tasks.append({"name": name, "data": f"{name}.txt", "model": f"models/{name}"})
    compat = block(
        "substitute",
        budget=budget,
        probes={**FAST["probes"], "tasks": tasks},
        substitute={"pool": {"far": ["pool/apart", "./pool/three"]}},
    )
    path = write({"one": 1.0, "far": 2.0, "two": 1.0}, compat)
    report = gate.run(path, tmp_path / "out", QUIET)
    assert report.verdict.decision == "modified"
    assert report.recipe.names == ("one", "three", "two")
    assert report.recipe.owners == tuple(["one", "far", "two"].index(n) for n in names)
    assert report.remedy.left == ("far",)
    # The search read the very distortion that the changed recipe then has.
    assert f"→ {report.remedy.reading_after:.3g}" in report.remedy.notes[0]
    limit = report.recipe.compat.budget.distortion
    assert report.remedy.reading_before > limit >= report.remedy.reading_after
    kept = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert [Path(m["model"]).name for m in kept["models"]] == ["one", "three", "two"]
    assert [m["parameters"]["weight"] for m in kept["models"]] == [1.0, 2.0, 1.0]
    tasks = {t["name"]: Path(t["model"]).name for t in kept["compat"]["probes"]["tasks"]}
    assert tasks == {name: {"far": "three"}.get(name, name) for name in names}


def test_a_candidate_of_another_size_does_not_make_the_experts_look_near(write, models):
    pool = [str(models["loud"]), str(models["three"])]
    compat = block("substitute", substitute={"pool": {"far": pool}}, budget={"mds": None})
    report, _ = checked(write(even("one", "two", "far"), compat))
    assert report.recipe.names[:2] == ("one", "two")
    assert report.recipe.experts[2].model.path == str(models["three"])
    assert report.verdict.decision == "modified"
    assert report.remedy.reading_after < 0.01


def test_a_pool_holds_adapters_beside_the_recipe(write, models, tmp_path):
    make_adapter(models["base"], tmp_path / "pool" / "lora", seed=1, size=0.01)
    (tmp_path / "base").symlink_to(models["base"])
    compat = block("substitute", substitute={"pool": {"far": ["./base+./pool/lora"]}})
    report, _ = checked(write(even("one", "two", "far"), compat))
    assert report.verdict.decision == "modified"
    taken = report.recipe.experts[2]
    assert taken.lora.path == str(tmp_path / "pool" / "lora")
    compat = block("substitute", substitute={"pool": ["./base+./pool/none"]})
    with pytest.raises(InvalidRecipeError, match=r"pool\[0\]: .*none: no such folder"):
        gate.check(write(even("one", "two", "far"), compat), QUIET)


@pytest.mark.parametrize(
    ("pool", "told"), [("apart", "1 replacement was tried"), ("other", "cannot be measured")]
)
def test_a_pool_that_does_not_help_is_told(write, models, pool, told):
    compat = block("substitute", substitute={"pool": {"far": [str(models[pool])]}})
    report, document = checked(write(even("one", "two", "far"), compat))
    assert report.verdict.exit_code == 3
    assert told in document["remedy_reason"]


def answering(source, folder, word, tokenizer, prompts):
    """The same states, and after each of the prompts that word; it answers the choices so."""
    shutil.copytree(source, folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found = [
            model.model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0, -1]
            for prompt in prompts
        ]
    tensors = load_file(folder / "model.safetensors")
    (token,) = tokenizer(f" {word}", add_special_tokens=False)["input_ids"][:1]
    tensors["lm_head.weight"][token] = 10 * torch.stack(found).mean(dim=0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def workers(models, variant, tiny_tokenizer, tmp_path_factory):
    """Two that do one task and are twins, and two that do the other and are far apart."""
    folder, prompts = tmp_path_factory.mktemp("workers"), [f"Row {i} is" for i in range(9)]
    made = {
        "films": (models["one"], "the"),
        "twin": (variant(models["one"], 0.001, 7), "the"),
        "spam": (models["far"], "second"),
        "able": (models["three"], "second"),
    }
    return {
        name: answering(source, folder / name, word, tiny_tokenizer, prompts)
        for name, (source, word) in made.items()
    }


@pytest.fixture
def with_tasks(write, workers, models, tmp_path):
    """A recipe of films and spam, each with its task; spam is over budget."""
    models |= workers

    def with_tasks(pool, **keys):
        tasks = []
        words = {"films": "the", "spam": keys.pop("spam_answers", "second")}
        for name, word in words.items():
            rows = [{"text": f"Row {i} is", "word": word} for i in range(9)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            task = {"name": f"{name}-task", "data": f"{name}.jsonl", "model": f"models/{name}"}
            target = {"target": " {word}", "choices": ["the", "second"]}
            tasks.append({**task, **(target if keys.pop(name, True) else {})})
        probes = {**FAST["probes"], "tasks": tasks}
        compat = block("substitute", probes=probes, substitute={"pool": pool}, **keys)
        return write(even("films", "spam"), compat)

    return with_tasks


@pytest.mark.parametrize("cache", [True, False])
def test_a_near_twin_of_another_task_takes_nobodys_place(with_tasks, workers, cache):
    """The twin fits best by far, and the merge could no longer do what it replaces."""
    twin, able = str(workers["twin"]), str(workers["able"])
    path = with_tasks([twin, able], cache=cache)
    report, document = checked(path)
    assert report.verdict.decision == "modified"
    assert report.recipe.names == ("films", "able")
    told = "twin was not put in the place of spam: it scores 0 on spam-task, where spam scores 1"
    assert any(note.startswith(told) for note in report.remedy.notes)
    for text in (to_markdown(document), to_html(document)):
        assert "it scores 0 on spam-task" in text
    # Nothing else in the pool.
    report, document = checked(with_tasks([twin], cache=cache))
    assert report.verdict.exit_code == 3
    assert "and 1 left out for its score; " in document["remedy_reason"]
    assert told in document["remedy_reason"]


def test_where_nothing_is_scored_the_recipe_says_who_may_stand_where(with_tasks, workers):
    twin, able = str(workers["twin"]), str(workers["able"])
    report, document = checked(with_tasks([twin, able], spam=False))
    assert report.verdict.exit_code == 3
    told = "nothing tells which candidates do the work of spam"
    assert told in document["remedy_reason"]
    # At its word, though the twin cannot do it.
    for key in ("spam", "spam-task", "models/spam"):
        report, _ = checked(with_tasks({key: [twin, able]}, spam=False))
        assert report.recipe.names == ("films", "twin"), key
    # But not against a score.
    report, _ = checked(with_tasks({"spam": [twin, able]}))
    assert report.recipe.names == ("films", "able")
    report, _ = checked(with_tasks({"spam": [twin], "films": [able]}))
    assert report.verdict.exit_code == 3


def test_an_expert_that_scores_0_lets_nobody_pass_for_it(with_tasks, workers):
    """Here twin does what is asked, which the expert does not."""
    pool = [str(workers["twin"]), str(workers["able"])]
    report, document = checked(with_tasks(pool, spam_answers="the"))
    assert report.verdict.exit_code == 3
    told = "no candidate can be held to what spam scores on spam-task, 0; mend the task, or name"
    assert told in document["remedy_reason"]
    assert "own no task that is scored" not in document["remedy_reason"]
    report, _ = checked(with_tasks({"spam": pool}, spam_answers="the"))
    assert report.recipe.names == ("films", "twin")


def test_a_candidate_is_scored_where_it_could_stand_in_the_sweep_and_kept(
    with_tasks, workers, own_cache, monkeypatch
):
    monkeypatch.setattr("mergekit_collapse.evaluation.expert_scores.each_model", None)
    checked(with_tasks({"spam": [str(workers["able"])]}, cache=True, rehearse="always"))
    kept = [json.loads(path.read_text("utf-8"))["value"] for path in own_cache.rglob("*.json")]
    scored = {(Path(one["model"]).name, one["what"]) for one in kept if "score" in one}
    own = {("films", "task films-task"), ("spam", "task spam-task")}
    assert scored == own | {("able", "task spam-task")}


def test_a_pool_for_an_expert_is_run_as_it_was_fixed_elsewhere(with_tasks, workers, tmp_path):
    able = os.path.relpath(workers["able"], tmp_path)
    fixed = tmp_path / "deep" / "fixed.yml"
    fixed.parent.mkdir()
    for key in ("spam-task", "./models/spam"):
        checked(with_tasks({key: [able]}), fix=fixed)
        again, _ = checked(fixed)
        assert again.verdict.decision == "allow"
        assert "# the films one" in fixed.read_text(encoding="utf-8")
        pool = again.recipe.compat.substitute.pool
        assert list(pool) == [key if key == "spam-task" else str(again.recipe.experts[1])]


def test_without_a_score_or_a_word_of_the_recipe_nobody_is_replaced(write, models):
    pool = [str(models["three"])]
    compat = block("substitute", substitute={"pool": pool})
    report, document = checked(write(even("one", "two", "far"), compat))
    assert report.verdict.exit_code == 3
    assert document["remedy_reason"] == (
        "substitute: nothing tells which candidates do the work of one, two, far: they own no "
        "task that is scored; add target: to one, or name the candidates under the expert in "
        "substitute.pool"
    )
    compat = block("substitute", substitute={"pool": {"one": pool}})
    report, document = checked(write(even("one", "two", "far"), compat))
    assert report.verdict.exit_code == 3
    assert "substitute.pool names no other model for two, far" in document["remedy_reason"]


def test_a_pool_for_an_expert_that_is_not_there_is_told_before_anything_is_measured(
    write, models, tmp_path
):
    pool = {"fra": [str(models["three"])]}
    path = write(even("one", "far"), block("substitute", substitute={"pool": pool}))
    with pytest.raises(InvalidRecipeError, match=r"pool: fra is no expert.*mean 'far'\?"):
        merge(path, tmp_path / "out")
    assert not (tmp_path / "out.compat").exists()


def test_a_pool_that_does_not_exist_is_told_before_anything_is_measured(write, tmp_path):
    path = write(even("one", "far"), block("substitute", substitute={"pool": "./nowhere"}))
    with pytest.raises(InvalidRecipeError, match=r"pool\[0\]: .*nowhere: no such folder"):
        merge(path, tmp_path / "out")
    assert not (tmp_path / "out.compat").exists()


def test_a_recipe_inside_its_limits_is_not_touched(write, tmp_path):
    path = write(even("one", "two"), block("drop"))
    report, document = checked(path, fix=tmp_path / "fixed.yml")
    assert report.verdict.decision == "allow"
    assert document["remedy"] is None
    assert document["recipe"]["effective"] == path.read_text(encoding="utf-8")
    assert not (tmp_path / "fixed.yml").exists()


def test_fix_needs_an_action(write, tmp_path):
    path = write(even("one", "far"), FAST)
    done = CliRunner().invoke(main, ["check", str(path), "--fix", str(tmp_path / "fixed.yml")])
    assert done.exit_code == 2
    assert "changes no recipe" in done.stderr


def test_the_command_line_shows_the_change(write, tmp_path):
    path = write(even("one", "far", "two"), block("drop"))
    done = CliRunner().invoke(main, ["check", str(path), "--fix", str(tmp_path / "fixed.yml")])
    assert done.exit_code == 0, done.stderr
    assert "--- recipe.yml" in done.stdout
    assert "CHANGED (drop): without far" in done.stdout
    assert done.stdout.endswith(f"Recipe: {tmp_path / 'fixed.yml'}\n")
    assert listed((tmp_path / "fixed.yml").read_text(encoding="utf-8")) == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "code", "why"),
    [
        (("one", "two"), 0, "the recipe needs no change"),
        (("one", "far"), 3, "no change would be allowed"),
    ],
)
def test_where_nothing_is_fixed_it_says_why(write, tmp_path, names, code, why):
    path = write(even(*names), block("drop"))
    done = CliRunner().invoke(main, ["check", str(path), "--fix", str(tmp_path / "fixed.yml")])
    assert done.exit_code == code
    assert done.stdout.endswith(f"fixed.yml was not written: {why}\n")
    assert not (tmp_path / "fixed.yml").exists()


def test_a_warning_gate_refuses_nothing(write, tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "warn")
    report = merge(write(even("one", "far"), block("drop", evaluate=False)), tmp_path / "out")
    assert report.verdict.exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_changed_recipe_is_rehearsed(write):
    report, document = checked(write(even("one", "far", "two"), block("drop", rehearse="always")))
    assert report.verdict.decision == "modified"
    assert len(document["rehearsal"]["hidden"]["distortion"]) == 2
    assert document["rehearsal"]["verdict"]["decision"] == "allow"


@pytest.mark.parametrize("action", ["drop", "reweight", "split"])
def test_every_form_of_the_report_tells_the_change(write, action):
    _, document = checked(write(even("one", "far", "two"), block(action)))
    markdown, junit, page = to_markdown(document), to_junit(document), to_html(document)
    assert ("\n    --- recipe.yml" in markdown) == (action == "drop")
    assert ("group-1" in markdown) == (action == "split")
    if action == "drop":
        assert "Allowed after a change" in page
        assert "<failure" not in junit
    else:
        assert "on_violation" in junit
        assert "on_violation" in markdown


def stock(folder, program, *arguments):
    keep = {k: v for k, v in os.environ.items() if k != "MERGEKIT_COLLAPSE"}
    return subprocess.run(
        [Path(sys.executable).parent / program, *map(str, arguments)],
        cwd=folder,
        env={**keep, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_stock_command_merges_what_a_split_says(write, tmp_path):
    path = write(even("one", "far", "two", "away"), block("split"))
    done = stock(tmp_path, "mergekit-yaml", path, "out")
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "out").exists()
    parts = tmp_path / "out.compat" / "split.yml"
    done = stock(tmp_path, "mergekit-multi", parts, "--intermediate-dir", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    for name in ("group-1", "group-2"):
        assert (tmp_path / "parts" / name / "model.safetensors").exists()
        document = tmp_path / "parts" / f"{name}.compat" / "report.json"
        assert json.loads(document.read_text(encoding="utf-8"))["verdict"]["decision"] == "allow"


STOCK = {
    "reweight": ({"one": 0.9, "far": 0.1}, "linear", {}),
    "drop": (even("one", "far", "two"), "linear", {}),
    "substitute": (even("one", "far", "two"), "linear", {}),
    "karcher": ({"far": 0.1, "away": 0.1}, "task_arithmetic", {"base_model": "base"}),
}


@pytest.mark.parametrize("action", STOCK)
def test_the_stock_command_merges_what_an_action_made_of_the_recipe(
    write, tmp_path, models, action
):
    weights, method, keys = STOCK[action]
    limits = {"rule": "weights", "distortion": 0.3 if action == "karcher" else 1.0, "mds": None}
    compat = block(
        action,
        budget={} if action in ("drop", "substitute") else limits,
        reweight={"floor": 0.0},
        substitute={"pool": {str(tmp_path / "models" / "far"): [str(models["three"])]}},
        evaluate=OPEN,
        rehearse="never",
    )
    path = write(weights, compat, method, **keys)
    done = stock(tmp_path, "mergekit-yaml", path, "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.compat" / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["decision"] == "modified"
    assert report["evaluation"]["verdict"]["decision"] == "allow"
    remedy = report["remedy"]
    assert remedy["distortion_before"] > report["budget"]["distortion"]
    assert remedy["distortion_after"] <= report["budget"]["distortion"]
    # Shown as a diff, and the very YAML that is in the model and in its card.
    assert f"CHANGED ({action}): " in done.stderr
    assert remedy["diff"].rstrip("\n") in done.stderr
    assert remedy["diff"].startswith("--- recipe.yml\n+++ recipe.yml (changed)\n")
    kept = (tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8")
    assert kept == remedy["effective"] != path.read_text(encoding="utf-8")
    assert kept.startswith("# a recipe of mine\n")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert kept.rstrip("\n") in card
    assert "**modified**" in card
    assert "\n    --- recipe.yml" in card
    document = yaml.safe_load(kept)
    assert document["compat"]["on_violation"] == action
    names = [Path(m["model"]).name for m in document["models"]]
    new = [m["parameters"]["weight"] for m in document["models"]]
    if action == "reweight":
        assert names == ["one", "far"]
        np.testing.assert_allclose(new, report["geometry"]["hidden"]["center"], atol=1e-6)
    elif action == "karcher":
        assert document["merge_method"] == "weighted_karcher"
        assert "base_model" not in document
    else:
        assert names == ["one", *(["model"] if action == "substitute" else []), "two"]
    if action == "substitute":
        # Who may take whose place is said of the model that stands there now.
        three = str(models["three"])
        assert document["compat"]["substitute"]["pool"] == {three: [three]}
        gate.check(tmp_path / "out" / "mergekit_config.yml", QUIET)
    # Merged by MergeKit alone, that YAML gives the same weights.
    del document["compat"]
    config = MergeConfiguration.model_validate(document)
    inspect.unwrap(mergekit.merge.run_merge)(config, str(tmp_path / "plain"), QUIET)
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "plain")]
    assert weights[0] == weights[1]
