"""From a pool file to a recipe, on tiny models."""

import json
import shutil

import numpy as np
import pytest
import yaml
from mergekit.options import MergeOptions
from tiny_models import make_adapter

from mergekit_collapse import gate
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.pool import pool_states
from mergekit_collapse.pool.chosen_text import recipe_text
from mergekit_collapse.pool.selection import select
from mergekit_collapse.pool.selection_report import selection_json, selection_text
from mergekit_collapse.states.arrays import StateArrays

pytestmark = pytest.mark.slow

QUIET = MergeOptions(quiet=True)
FAST = {"probes": {"samples": 6, "max_tokens": 16}, "cache": False}


@pytest.fixture(scope="module")
def models(tiny_model, variant):
    base = tiny_model("llama")
    near = {f"near{i}": variant(base, 0.02, i) for i in (1, 2, 3)}
    return {"base": base, **near, "off": variant(base, 0.4, 4), "far": variant(base, 3.0, 5)}


@pytest.fixture
def write(tmp_path, models):
    """Write a pool of models, by name or as they are written, and return its path."""

    def write(*names, compat=FAST, folder=tmp_path, **keys):
        candidates = [
            {"model": str(models[name]), "name": name} if str(name) in models else name
            for name in names
        ]
        document = {"candidates": candidates, "dtype": "float32", "compat": compat, **keys}
        path = folder / "pool.yml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    return write


def chosen(selection):
    return list(selection.recipe.names)


def test_the_nearest_are_chosen_and_every_candidate_has_a_score(write):
    found = select(write("far", "near1", "off", "near2", "near3"), QUIET, count=3)
    assert chosen(found) == ["near1", "near2", "near3"]
    assert (found.verdict.decision, found.choice.exact) == ("allow", True)
    scores = dict(zip(found.candidates.recipe.names, found.scores, strict=True))
    assert scores["near1"].score == 1
    assert 1 > scores["off"].score > scores["far"].score > 0
    text = selection_text(found)
    assert "3 of 5 candidates chosen" in text
    assert "ALLOWED" in text
    order = [text.index(f"  {name} ") for name in ("near1", "off", "far")]
    assert order == sorted(order)
    document = json.loads(selection_json(found))
    assert document["chosen"]["members"] == ["near1", "near2", "near3"]
    assert document["chosen"]["method"] == "exact"
    assert [c["chosen"] for c in document["candidates"]] == [False, True, False, True, True]
    assert document["candidates"][0]["removed_radius_squared"] is None
    assert document["candidates"][0]["removed_radius_squared_reason"] == "it was not chosen"
    assert document["verdict"]["exit_code"] == 0
    assert len(document["squared_distance"]) == 5


def test_a_pool_is_measured_on_all_probes_there_may_be(write):
    compat = FAST | {"probes": {"samples": "auto", "max_tokens": 8}}
    found = select(write("near1", "near2", "far", compat=compat), QUIET, count=2)
    assert chosen(found) == ["near1", "near2"]
    assert json.loads(selection_json(found))["probes"]["rows"] == 128


def test_without_a_number_the_largest_set_inside_the_budget_is_chosen(write):
    compat = FAST | {"budget": {"distortion": 0.05, "mds": None}}
    found = select(write("near1", "far", "near2", "off", "near3", compat=compat), QUIET)
    assert chosen(found) == ["near1", "near2", "near3"]
    assert not found.choice.largest  # the pool's scale is not that of these three
    assert found.verdict.decision == "allow"
    assert [v.decision for count, v in found.tried if count > 3] == ["refuse"]
    wide = FAST | {"budget": {"distortion": 50.0, "mds": None}}
    every = select(write("near1", "far", "off", compat=wide), QUIET)
    assert (len(chosen(every)), every.choice.largest) == (3, True)


def test_a_limit_of_the_merging_difficulty_score_counts(write):
    compat = FAST | {"budget": {"distortion": None, "mds": 1.2}}
    found = select(write("far", "near1", "near2", compat=compat), QUIET, count=2)
    assert chosen(found) == ["near1", "near2"]
    refused = select(
        write("far", "near1", compat=compat, choose={"must_have": ["far"]}), QUIET, count=2
    )
    assert {reason.rule for reason in refused.verdict.reasons} == {"mds"}


def test_nothing_inside_the_budget_is_a_refusal_with_the_best_there_is(write):
    compat = FAST | {"budget": {"distortion": 1e-9, "mds": None}}
    found = select(write("near1", "far", "near2", compat=compat), QUIET)
    assert chosen(found) == ["near1", "near2"]
    assert (found.verdict.decision, found.verdict.exit_code) == ("refuse", 3)
    assert "REFUSED" in selection_text(found)
    warned = select(
        write("near1", "far", compat=compat | {"on_violation": "warn"}, choose=2), QUIET
    )
    assert warned.verdict.exit_code == 0


def test_the_verdict_is_what_check_says_of_the_recipe(write, models, tmp_path):
    """Tasks of candidates that are left out are gone, and so are their probes and their scale."""
    (tmp_path / "probes").mkdir()
    for name in ("near1", "near2", "far"):
        rows = [f"{name} asks whether {i} is more than {i * i}" for i in range(5)]
        (tmp_path / "probes" / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    tasks = [
        {"name": name, "model": str(models[name]), "data": f"probes/{name}.txt"}
        for name in ("far", "near1", "near2")
    ]
    compat = {"probes": {"samples": 5, "max_tokens": 16, "tasks": tasks}, "cache": False}
    path = write(
        "far", "near1", "off", "near2", compat=compat, base_model=str(models["base"]), choose=2
    )
    found = select(path, QUIET)
    assert chosen(found) == ["near1", "near2"]
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere" / "merge.yml"
    out.write_text(recipe_text(found, out.parent), encoding="utf-8")
    text = out.read_text(encoding="utf-8")
    assert "# Chosen from pool.yml: 2 of 4 candidates." in text
    document = yaml.safe_load(text)
    assert document["merge_method"] == "task_arithmetic"
    assert [t["data"] for t in document["compat"]["probes"]["tasks"]] == [
        "../probes/near1.txt",
        "../probes/near2.txt",
    ]
    report = gate.check(out, QUIET)
    assert report.verdict == found.verdict
    np.testing.assert_allclose(
        report.deciding.squared, found.geometry.squared, rtol=1e-3, atol=1e-9
    )
    assert report.deciding.scale_squared == pytest.approx(found.geometry.scale_squared, rel=1e-3)
    np.testing.assert_allclose(report.deciding.predicted, found.geometry.predicted, rtol=1e-3)
    assert [t.owner for t in report.deciding.own_task.tasks] == [None, 0, 1]


@pytest.mark.parametrize("limit", [None, 0.3])
def test_the_budget_that_is_shown_is_the_one_that_judged(write, models, tmp_path, limit):
    """The only task is of a candidate that is left out, and with it goes its default limit."""
    (tmp_path / "rows.txt").write_text("One row\nTwo rows\nThree rows", encoding="utf-8")
    tasks = [{"name": "far", "model": str(models["far"]), "data": "rows.txt"}]
    compat = {"probes": {"samples": 3, "max_tokens": 16, "tasks": tasks}, "cache": False}
    compat |= {} if limit is None else {"budget": {"distortion": limit}}
    found = select(write("far", "near1", "near2", compat=compat), QUIET, count=2)
    assert chosen(found) == ["near1", "near2"]
    document, text = json.loads(selection_json(found)), selection_text(found)
    judged, sought = (document[key]["distortion"] for key in ("budget", "pool_budget"))
    assert (judged, sought) == ((0.25, 0.45) if limit is None else (limit, limit))
    told = "sought by the default limit of a block with tasks, distortion 0.45; none of them has"
    assert (told in text) == (limit is None)
    # With the task's model among the chosen there is one limit.
    every = select(write("far", "near1", "near2", compat=compat), QUIET, count=3)
    document = json.loads(selection_json(every))
    assert document["budget"] == document["pool_budget"]
    assert "sought by" not in selection_text(every)


def test_what_lies_beside_the_pool_is_named_from_the_recipe(write, tmp_path):
    for name in ("own.yaml", "alt"):
        (tmp_path / name).touch()
    compat = FAST | {"evaluate": {"lm_eval": ["own.yaml", "hellaswag"]}}
    compat |= {"substitute": {"pool": ["./alt", "hub/model"]}}
    found = select(write("near1", "near2", "far", compat=compat), QUIET, count=2)
    moved = yaml.safe_load(recipe_text(found, tmp_path / "elsewhere"))["compat"]
    assert moved["evaluate"]["lm_eval"] == ["../own.yaml", "hellaswag"]
    assert moved["substitute"]["pool"] == ["../alt", "hub/model"]
    assert yaml.safe_load(recipe_text(found))["compat"] == compat
    assert yaml.safe_load(recipe_text(found, tmp_path))["compat"] == compat


def test_near_copies_among_the_chosen_are_named(write, models, variant):
    copy = {"model": str(variant(models["off"], 1e-3, 6)), "name": "copy"}
    found = select(write("off", copy, "far"), QUIET, count=2)
    notes = [line for line in selection_text(found).splitlines() if "nearly the same" in line]
    assert len(notes) == 1
    assert "off and copy are nearly the same model" in notes[0]
    assert "must_not_have" in notes[0]
    apart = select(write("near1", "off", "far"), QUIET, count=2)
    assert "nearly the same" not in selection_text(apart)


def test_answers_may_decide(write):
    compat = FAST | {"space": ["predictive"], "budget": {"space": "predictive", "mds": None}}
    found = select(write("far", "near1", "near2", compat=compat), QUIET, count=2)
    assert found.geometry.space == "predictive"
    assert chosen(found) == ["near1", "near2"]


def test_adapters_of_one_base_are_run_once_each(write, models, tmp_path, monkeypatch):
    base = models["base"]
    sizes = (0.05, 1.0, 0.05, 0.05)
    pool = [
        f"{base}+{make_adapter(base, tmp_path / f'lora{i}', i, size)}"
        for i, size in enumerate(sizes)
    ]
    collected = []
    put = StateArrays.put

    def counted(arrays, index, found):
        collected.append(arrays._names[index])
        put(arrays, index, found)

    monkeypatch.setattr(StateArrays, "put", counted)
    found = select(write(*pool, base_model=str(base), choose={"count": 2}), QUIET)
    assert sorted(collected) == ["base", "lora0", "lora1", "lora2", "lora3"]
    assert "lora1" not in chosen(found)
    models_of = yaml.safe_load(recipe_text(found))["models"]
    assert all(str(m["model"]).startswith(f"{base}+") for m in models_of)
    assert [m["parameters"] for m in models_of] == [{"weight": 0.5}] * 2


def test_8_of_64_adapters_are_the_proven_best(write, models, tmp_path):
    """As many as the paper's pool: eight that hardly move their base among 56 that do."""
    base, still = models["base"], set(range(3, 64, 8))
    pool = [
        f"{base}+{make_adapter(base, tmp_path / f'lora{i}', i, 0.02 if i in still else 0.5)}"
        for i in range(64)
    ]
    found = select(write(*pool, base_model=str(base), choose={"count": 8}), QUIET)
    assert set(chosen(found)) == {f"lora{i}" for i in still}
    assert (found.choice.exact, found.choice.gap) == (True, 0.0)
    assert len(found.scores) == 64
    assert min(s.score for i, s in enumerate(found.scores) if i in still) == 1
    assert max(s.score for i, s in enumerate(found.scores) if i not in still) < 1
    out = tmp_path / "merge.yml"
    out.write_text(recipe_text(found, tmp_path), encoding="utf-8")
    assert "--lora-merge-cache" in out.read_text(encoding="utf-8")
    report = gate.check(out, QUIET)
    assert report.verdict == found.verdict
    assert len(report.recipe.experts) == 8


def test_must_have_and_must_not_have(write, models):
    names = ("near1", "near2", "near3", "off")
    choose = {"count": 2, "must_have": ["off"], "must_not_have": [str(models["near1"])]}
    found = select(write(*names, choose=choose), QUIET)
    assert chosen(found)[1] == "off"
    assert "near1" not in chosen(found)
    why = {c["name"]: c["why"] for c in json.loads(selection_json(found))["candidates"]}
    assert (why["off"], why["near1"]) == ("must_have", "must_not_have")
    both = select(write(*names, choose={"must_have": ["off", "near1"]}), QUIET, count=2)
    assert both.scores[1].score is None
    assert "every member is in must_have" in selection_text(both)


@pytest.fixture(scope="module")
def misfits(tiny_model, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("misfits")
    shutil.copytree(models["near1"], folder / "torn")
    (folder / "torn" / "config.json").write_text("{", encoding="utf-8")
    return [str(tiny_model("qwen2")), "./no/such/model", str(folder / "torn")]


def test_broken_candidates_are_all_named(write, misfits):
    with pytest.raises(InvalidRecipeError) as told:
        select(write("near1", *misfits, "near2"), QUIET, count=2)
    text = str(told.value)
    assert "3 of 5 candidates cannot be merged with the rest" in text
    assert all(model in text for model in misfits)
    assert "skip_broken: true" in text


@pytest.mark.parametrize("with_base", [True, False])
def test_broken_candidates_can_be_left_out_whatever_comes_first(write, models, misfits, with_base):
    base = {"base_model": str(models["base"])} if with_base else {}
    choose = {"count": 2, "skip_broken": True}
    path = write(
        misfits[1], misfits[0], misfits[2], "near1", "near2", "near3", "far", choose=choose, **base
    )
    found = select(path, QUIET)
    assert set(chosen(found)) < {"near1", "near2", "near3"}
    assert {str(model) for model in found.candidates.broken} == set(misfits)
    assert all(model in selection_text(found) for model in misfits)
    document = json.loads(selection_json(found))
    assert "architecture" in document["left_out"][1]["reason"]
    with pytest.raises(InvalidRecipeError, match=r"must_have: .* cannot be merged with the rest"):
        select(
            write(*misfits, "near1", "near2", choose=choose | {"must_have": [misfits[1]]}, **base),
            QUIET,
        )
    with pytest.raises(InvalidRecipeError, match=r"2 are to be chosen, but of 4 .* 1 are left"):
        select(write("near1", *misfits, choose=choose, **base), QUIET)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"choose": {"count": 1}}, r"choose.count: input should be greater than or equal to 2"),
        ({"choose": 3}, "choose.count is 3, but there are 2 candidates"),
        ({"choose": {"cuont": 2}}, r"choose.cuont: unknown key; did you mean 'count'\?"),
        ({"chose": 2}, r"  chose: unknown key; did you mean 'choose'\?"),
        ({"choose": {"must_have": ["none"]}}, "choose.must_have: none is no candidate; there are"),
        (
            {"choose": {"must_have": ["near1"], "must_not_have": ["near1"]}},
            "near1 is in must_have and in must_not_have",
        ),
        ({"choose": {"must_not_have": ["near1"]}}, "2 are to be chosen"),
        ({"compat": {"budjet": {}}}, "compat.budjet: unknown key"),
        ({"compat": {"budget": {"distortion": None, "mds": 3}}}, "nothing says how many to choose"),
        ({"merge_method": "linaer"}, "there is no method 'linaer'; did you mean linear"),
        ({"merge_method": "ties"}, "needs base_model"),
        ({"dtype": "float1"}, "MergeKit has no 'float1'"),
        ({"candidates": ["a"]}, "candidates: list should have at least 2 items"),
        ({"candidates": [{"modle": "a"}, "b"]}, r"candidates\[0\].modle: unknown key; did you"),
        ({"candidates": [{"name": "a"}, "b"]}, r"candidates\[0\].model: this key is missing"),
        ({"candidates": ["a", "b", "a"]}, r"candidates\[2\]: a is the same model as a"),
        ({"candidates": "a"}, "candidates: input should be a valid list"),
    ],
)
def test_bad_pools_are_told_what_is_wrong(write, keys, told):
    names = ("near1", "near2")
    with pytest.raises(InvalidRecipeError, match=told):
        select(write(*names, **keys), QUIET)


def test_one_model_in_two_spellings_and_the_base_among_the_candidates(write, models, tmp_path):
    link = tmp_path / "again"
    link.symlink_to(models["near1"])
    with pytest.raises(InvalidRecipeError, match="is the same model as"):
        select(write("near1", "near2", str(link)), QUIET)
    with pytest.raises(InvalidRecipeError, match="is the base_model itself"):
        select(write("near1", "near2", "base", base_model=str(models["base"])), QUIET)


def test_a_base_that_is_missing_is_told_as_such(write):
    with pytest.raises(InvalidRecipeError, match=r"base_model: \./none: there is no such folder"):
        select(write("near1", "near2", base_model="./none"), QUIET)


def test_a_count_from_outside_is_checked_too(write):
    with pytest.raises(InvalidRecipeError, match="--count 1"):
        select(write("near1", "near2"), QUIET, count=1)
    names = ("near1", "near2", "near3")
    with pytest.raises(InvalidRecipeError, match="must_have names 3 candidates, but count is 2"):
        select(write(*names, choose={"must_have": list(names)}), QUIET, count=2)


def test_chance_distances_in_blocks_are_those_of_all_at_once(write, monkeypatch):
    compat = {**FAST, "budget": {"mds": 3.0}}
    path = write("near1", "near2", "off", "far", "near3", compat=compat)
    whole = select(path, QUIET, count=2)
    monkeypatch.setattr(pool_states, "_BLOCK", 2)
    parts = select(path, QUIET, count=2)
    np.testing.assert_allclose(parts.states.chance, whole.states.chance, rtol=1e-9)
    assert parts.choice == whole.choice
