"""What the compat block accepts, and what a mistake in it is told."""

import math

import pytest

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.recipe.validation import parse_compat


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_block_is_the_default_block(empty):
    block = parse_compat(empty)
    assert block == CompatBlock()
    assert (block.budget.distortion, block.budget.mds) == (0.3, 3.0)
    assert block.space == ("hidden", "predictive")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"probes": {"sampels": 3}}, "compat.probes.sampels: unknown key; did you mean 'samples'?"),
        ({"budjet": {}}, "compat.budjet: unknown key; did you mean 'budget'?"),
        (
            {"probes": {"tasks": [{"name": "a", "data": "a.txt", "modle": "m"}]}},
            "compat.probes.tasks[0].modle: unknown key; did you mean 'model'?",
        ),
        ({"probes": {"samples": "many"}}, "compat.probes.samples: input should be a valid integer"),
        ({"probes": {"samples": 1}}, "compat.probes.samples"),
        ({"probes": {"builtin": False}}, "builtin: false leaves no probes"),
        (
            {"probes": {"tasks": [{"name": "a"}]}},
            "compat.probes.tasks[0].data: this key is missing",
        ),
        ({"probes": {"tasks": [{"name": "builtin", "data": "a.txt"}]}}, "shipped probes"),
        (
            {"budget": {"distortion": math.nan}},
            "compat.budget.distortion: input should be a finite",
        ),
        ({"budget": {"mds": math.inf}}, "compat.budget.mds: input should be a finite"),
        ({"budget": {"mds": 0.5}}, "compat.budget.mds"),
        ({"budget": {"distortion": True}}, "compat.budget.distortion: a number is expected"),
        ({"budget": {"distortion": None, "mds": None}}, "nothing decides"),
        (
            {"budget": {"over": "own_task", "rule": "corollary"}},
            "corollary bounds pooled probes only",
        ),
        ({"budget": {"over": "own_task"}}, "needs probes.tasks with model:"),
        ({"space": "hidden", "budget": {"space": "predictive"}}, "does not measure"),
        ({"layer": "lst"}, "compat.layer: last, all, a layer's number"),
        ({"layer": [1, 1]}, "a layer stands twice"),
        ({"on_violation": "abrot"}, "compat.on_violation: input should be 'abort' or 'warn'"),
        ("strict", "compat: input should be a valid mapping"),
        ([1], "compat: input should be a valid mapping"),
        ({1: 2}, "compat"),
        ({"budget": None}, "compat.budget: input should be a valid mapping (got null)"),
        ({"budget": []}, "compat.budget: input should be a valid mapping (got a list)"),
        ({"budget": {"distortion": 10**400}}, "000…)"),
        ({"bud\n\x1b[31mget": 1}, r"compat.'bud\n\x1b[31mget': unknown key"),
        ({"probes": {"seed": -1}}, "compat.probes.seed: input should be greater than or equal"),
        ({"report": "a\0b"}, "compat.report: holds a NUL character"),
    ],
)
def test_a_mistake_is_told_with_its_path(value, told):
    with pytest.raises(InvalidRecipeError) as caught:
        parse_compat(value)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "{review"}, "text: a single brace in '{review'"),
        ({"target": "label}"}, "target: a single brace"),
        ({"text": "the same"}, "text: 'the same' has no field"),
        ({"text": "{{review}}"}, "text: '{{review}}' has no field"),
        ({"text": "{}"}, "text: '{}' has no field"),
        ({"model": ""}, "model: string should have at least 1 character"),
        ({"data": "a\0.txt"}, "data: holds a NUL character"),
    ],
)
def test_a_task_that_cannot_be_read_is_told(change, told):
    task = {"name": "a", "data": "a.txt", **change}
    with pytest.raises(InvalidRecipeError) as caught:
        parse_compat({"probes": {"tasks": [task]}})
    assert f"compat.probes.tasks[0].{told}" in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(InvalidRecipeError, match=r"(?s)sampels.*layer"):
        parse_compat({"probes": {"sampels": 3}, "layer": "lst"})


def test_two_tasks_of_one_name_are_refused():
    task = {"name": "a", "data": "a.txt"}
    with pytest.raises(InvalidRecipeError, match="two tasks have the name 'a'"):
        parse_compat({"probes": {"tasks": [task, task]}})


def test_one_space_may_stand_without_brackets():
    assert parse_compat({"space": "hidden"}).space == ("hidden",)
