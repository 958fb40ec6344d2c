"""Which models a recipe merges, in which order, and which recipes make no sense."""

import textwrap

import pytest

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.recipe import read_recipe


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return read_recipe(path)


def experts(read):
    return [str(model) for model in read.experts]


def test_task_vector_methods_leave_their_base_apart(tmp_path):
    read = recipe(
        tmp_path,
        """
        merge_method: ties
        base_model: org/base
        models:
          - {model: org/zeta, parameters: {weight: 1}}
          - {model: org/base}
          - {model: org/alpha, parameters: {weight: 1}}
        """,
    )
    assert experts(read) == ["org/zeta", "org/alpha"]
    assert read.names == ("zeta", "alpha")
    assert str(read.base) == "org/base"
    assert read.model_names == ("zeta", "alpha", "base")


def test_slerp_merges_its_base(tmp_path):
    read = recipe(
        tmp_path,
        """
        merge_method: slerp
        base_model: org/a
        models: [{model: org/b}, {model: org/a}]
        parameters: {t: 0.5}
        """,
    )
    assert experts(read) == ["org/b", "org/a"]
    assert read.base is None


def test_a_method_that_ignores_its_base_merges_it(tmp_path):
    """MergeKit adds an unlisted base to the inputs, and linear weighs it like any other."""
    read = recipe(
        tmp_path,
        """
        merge_method: linear
        base_model: org/base
        models: [{model: org/a}, {model: org/b}]
        parameters: {weight: 1}
        """,
    )
    assert experts(read) == ["org/a", "org/b", "org/base"]


def test_experts_of_slices_come_in_the_order_of_the_yaml(tmp_path):
    read = recipe(
        tmp_path,
        """
        merge_method: linear
        slices:
          - sources: [{model: org/c, layer_range: [0, 2]}]
          - sources:
              - {model: org/b, layer_range: [0, 2]}
              - {model: org/a, layer_range: [0, 2]}
        parameters: {weight: 1}
        """,
    )
    assert experts(read) == ["org/b", "org/a"]
    assert not read.merges_nothing
    assert [g.label for g in read.groups] == ["slices[0]", "slices[1]"]


def test_a_stack_of_slices_merges_nothing(tmp_path):
    read = recipe(
        tmp_path,
        """
        merge_method: passthrough
        slices:
          - sources: [{model: org/a, layer_range: [0, 2]}]
          - sources: [{model: org/b, layer_range: [1, 3]}]
        """,
    )
    assert read.merges_nothing
    assert read.experts == ()


def test_modules_are_read(tmp_path):
    read = recipe(
        tmp_path,
        """
        merge_method: linear
        modules:
          text:
            models: [{model: org/a}, {model: org/b}]
        parameters: {weight: 1}
        """,
    )
    assert experts(read) == ["org/a", "org/b"]
    assert read.groups[0].label == "modules.text.models"


def test_names_grow_until_they_differ(tmp_path):
    read = recipe(
        tmp_path,
        """
        merge_method: linear
        models: [{model: x/model}, {model: y/model}, {model: "base+x/lora"}]
        parameters: {weight: 1}
        """,
    )
    assert read.names == ("x/model", "y/model", "x/lora")


def test_an_owner_may_be_spelled_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "experts" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "experts")
    read = recipe(
        tmp_path,
        """
        merge_method: linear
        models: [{model: ./a}, {model: org/b}]
        parameters: {weight: 1}
        compat:
          probes:
            tasks:
              - {name: first, data: p.txt, model: a/}
              - {name: second, data: p.txt, model: experts/a}
              - {name: third, data: p.txt, model: org/b}
              - {name: nobody's, data: p.txt}
        """,
    )
    assert read.owners == (0, 0, 1, None)


BASE = "merge_method: linear\nparameters: {weight: 1}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BASE, "Exactly one of 'models', 'slices', or 'modules'"),
        ("models: [{model: a}, {model: b}]", "merge_method"),
        ("[1, 2]", "a MergeKit recipe is a mapping"),
        ("", "a MergeKit recipe is a mapping"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "run mergekit-multi"),
        (BASE + "models: [{model: a}, {model: b}]\ncompat:\n", "write `compat: {}` to gate"),
        (
            BASE + "models: [{model: a}, {model: b}]\ncompat: {probes: {tasks: "
            "[{name: t, data: t.txt, model: c}]}}",
            "compat.probes.tasks[0].model: c is not merged by this recipe; its experts are a, b",
        ),
    ],
)
def test_a_recipe_that_makes_no_sense_is_told_why(tmp_path, text, told):
    with pytest.raises(InvalidRecipeError) as caught:
        recipe(tmp_path, text)
    assert told in str(caught.value)


def test_a_recipe_that_is_not_utf8_is_told_where(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_bytes(b"merge_method: \xff")
    with pytest.raises(InvalidRecipeError, match="not UTF-8 at byte 14"):
        read_recipe(path)


def test_a_missing_recipe_is_told(tmp_path):
    with pytest.raises(InvalidRecipeError, match="No such file"):
        read_recipe(tmp_path / "none.yml")


PLAIN = """
    merge_method: linear
    models: [{model: org/a}, {model: org/b}]
    parameters: {weight: 1}
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PLAIN + "    compat: {budget: {mds: 2}, budget: {mds: 9}}", "'budget' stands twice"),
        (PLAIN + "    compat: {}\n    compat: {}", "line 6: the key 'compat' stands twice"),
        (PLAIN + "    comapt: {}", "the key 'comapt' means nothing to MergeKit"),
        (PLAIN + "    compat: " + "[" * 3000, "not valid YAML"),
        (PLAIN + "    compat: {}\n    dtype: float99", "dtype: MergeKit has no 'float99'"),
    ],
)
def test_what_yaml_or_mergekit_would_drop_is_told(tmp_path, text, told):
    with pytest.raises(InvalidRecipeError, match=told):
        recipe(tmp_path, text)


def test_anchors_and_merge_keys_are_no_twins(tmp_path):
    block = "    compat:\n      probes: &p {samples: 4}\n      budget: {<<: {mds: 2}, mds: 3}\n"
    assert recipe(tmp_path, PLAIN + block).compat.budget.mds == 3
