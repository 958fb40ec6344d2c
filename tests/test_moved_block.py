"""Paths of a block as they have to read in another folder."""

import pytest
import yaml
from mergekit.config import MergeConfiguration

from mergekit_collapse.recipe.members import without
from mergekit_collapse.recipe.recipe import build_recipe, parse_recipe
from mergekit_collapse.repair.changed_recipe import changed_recipe
from mergekit_collapse.repair.moved_block import moved_block


@pytest.fixture
def moved(tmp_path):
    """The block of a recipe in ``here``, as it reads in ``there/deep``."""
    for folder in ("here/pool/alt", "here/lora", "here/base", "here/tasks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "here" / "own.yaml").touch()

    def moved(compat, folder="there/deep", models=("./a", "./b")):
        models = [{"model": m, "parameters": {"weight": 1.0}} for m in models]
        recipe = build_recipe(
            MergeConfiguration.model_validate({"merge_method": "linear", "models": models}),
            compat,
            source=yaml.safe_dump({"compat": compat}),
            path=tmp_path / "here" / "recipe.yml",
        )
        return moved_block(recipe, tmp_path / folder)

    return moved


TASKS = {
    "probes": {
        "tasks": [
            {"name": "mine", "data": "rows.txt", "model": "./b"},
            {"name": "hub", "data": "someone/dataset"},
            {"name": "far", "data": "/data/rows.csv"},
        ]
    }
}


def test_probe_files_are_named_from_there_and_data_sets_are_not(moved):
    tasks = moved(TASKS)["probes"]["tasks"]
    assert [t["data"] for t in tasks] == [
        *("../../here/rows.txt", "someone/dataset", "/data/rows.csv"),
    ]
    assert tasks[0]["model"] == "./b"


def test_models_of_the_pool_and_their_adapters_are_named_from_there(moved):
    pool = ["./pool/alt", "base+./lora", "base+hub/lora", "hub/model", "/models/x", "a+b+c"]
    found = moved({"substitute": {"pool": pool}})["substitute"]["pool"]
    assert found == [
        *("../../here/pool/alt", "../../here/base+../../here/lora", "../../here/base+hub/lora"),
        *("hub/model", "/models/x", "a+b+c"),
    ]


def test_the_experts_of_a_pool_are_named_as_the_recipe_names_them(moved, tmp_path):
    pool = {"mine": "./pool/alt", "a": ["hub/model", "./pool/alt"], "gone": ["/models/x"]}
    found = moved({**TASKS, "substitute": {"pool": pool}})["substitute"]["pool"]
    alt = "../../here/pool/alt"
    assert found == {"mine": [alt], "a": ["hub/model", alt], "gone": ["/models/x"]}
    # From there, this would be no way to the expert.
    lora = str(tmp_path / "here" / "lora")
    beside = {"substitute": {"pool": {"././lora": "hub/model"}}}
    found = moved(beside, models=("./a", lora))["substitute"]["pool"]
    assert found == {lora: ["hub/model"]}


def test_tasks_of_lm_eval_are_named_from_there_where_they_are_files(moved):
    found = moved({"evaluate": {"lm_eval": ["own.yaml", "./tasks", "hellaswag"]}})
    assert found["evaluate"]["lm_eval"] == ["../../here/own.yaml", "../../here/tasks", "hellaswag"]
    # Up one folder, a name alone would be taken for one of lm-eval's own.
    found = moved({"evaluate": {"lm_eval": ["own.yaml"]}}, ".")
    assert found["evaluate"]["lm_eval"] == ["./here/own.yaml"]
    assert moved({"evaluate": False}) == {"evaluate": False}


def test_at_home_the_block_is_as_it_was_written(moved):
    compat = {**TASKS, "substitute": {"pool": "./pool/alt"}}
    assert moved(compat, "here") == compat


@pytest.mark.parametrize("written", [None, 0.3])
def test_without_its_tasks_a_recipe_has_the_limits_that_its_new_text_has(written, tmp_path):
    """The record of a dropped expert's recipe and its YAML must not part."""
    block = {"probes": {"tasks": [{"name": "own", "data": "rows.txt", "model": "./odd"}]}}
    if written is not None:
        block["budget"] = {"distortion": written}
    models = [{"model": f"./{name}", "parameters": {"weight": 1}} for name in ("a", "b", "odd")]
    document = {"merge_method": "linear", "models": models, "compat": block}
    recipe = parse_recipe(yaml.safe_dump(document), tmp_path / "recipe.yml")
    assert recipe.compat.budget.distortion == (written or 0.45)
    rest = without(recipe.config, [recipe.experts[2]])
    changed = changed_recipe(recipe, rest, [2]).recipe
    again = parse_recipe(changed.source, tmp_path / "recipe.yml")
    assert changed.compat == again.compat
    assert again.compat.budget.distortion == (written or 0.25)
    assert again.compat.evaluate.max_distortion == 0.7
