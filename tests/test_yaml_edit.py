"""Edited YAML texts: what did not change stays character by character, and nothing is corrupted."""

import itertools

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_collapse.recipe.members import with_replaced, without
from mergekit_collapse.recipe.other_method import with_method
from mergekit_collapse.recipe.reweighted import with_weights
from mergekit_collapse.recipe.yaml_edit import edit_yaml, yaml_diff
from mergekit_collapse.recipe.yaml_splice import spliced

RECIPE = """\
# My merge.
merge_method: ties  # of three
base_model: "./base"

models:
  # the good one
  - model: ./a   # sentiment
    parameters:
      density: 0.5
      weight: 1.0     # trusted
  - model: './b'
    parameters: {weight: 0.5, density: 0.3}  # in braces

  - parameters:
      weight:
        - 0.25
        - 0.75   # deeper, more
    model: ./c
# settings for all
parameters:
  normalize: true
  lambda: 0.9
compat:   # the gate
  budget: {distortion: 0.2}
  # nothing else
dtype: bfloat16
"""


def ref(name):
    return ModelReference.parse(name)


def read(text):
    document = yaml.safe_load(text)
    document.pop("compat", None)
    return MergeConfiguration.model_validate(document)


def edited(text, change, **block):
    before = read(text)
    after = change(before)
    result = edit_yaml(text, before, after, **block)
    assert read(result.text) == after
    return result


def changed_lines(before, after):
    kept = [line[1:] for line in yaml_diff(before, after).split("\n") if line[:1] in "+-"]
    return [line for line in kept if line[:1] not in "+-"]


def third(config):
    return with_weights(config, {ref("./a"): 0.25, ref("./b"): 0.5, ref("./c"): 0.25})


def test_new_weights_stand_where_the_old_ones_stood():
    result = edited(RECIPE, third)
    assert result.note is None
    assert changed_lines(RECIPE, result.text) == [
        "      weight: 1.0     # trusted",
        "      weight: 0.5     # trusted",
        "    parameters: {weight: 0.5, density: 0.3}  # in braces",
        "    parameters: {weight: 1.0, density: 0.3}  # in braces",
    ]
    assert edited(RECIPE, lambda config: config).text == RECIPE


def test_a_dropped_model_takes_its_lines_with_it():
    for gone, lines in (("./a", 4), ("./b", 2), ("./c", 5)):
        result = edited(RECIPE, lambda c, gone=gone: without(c, {ref(gone)}))
        assert result.note is None
        assert len(changed_lines(RECIPE, result.text)) == lines
        assert "# the good one" in result.text
        assert "# settings for all" in result.text


def test_a_replacement_keeps_quotes_and_comments():
    for old in ("./a", "./b", "./c"):
        result = edited(RECIPE, lambda c, old=old: with_replaced(c, ref(old), ref("./it's")))
        assert result.note is None
        assert len(changed_lines(RECIPE, result.text)) == 2
    result = edited(RECIPE, lambda c: with_replaced(c, ref("./b"), ref("./new")))
    assert "  - model: './new'\n" in result.text


def test_another_method_removes_what_it_does_not_know():
    result = edited(RECIPE, lambda c: with_method(c, "weighted_karcher"))
    assert result.note is None
    assert "merge_method: weighted_karcher  # of three\n\nmodels:" in result.text
    assert "    parameters: {weight: 0.5}  # in braces\n" in result.text
    assert "compat:   # the gate\n  budget: {distortion: 0.2}\n  # nothing else" in result.text
    for gone in ("density", "lambda", "normalize", "base_model"):
        assert gone not in result.text


def test_the_block_changes_with_the_recipe():
    block = {"budget": {"distortion": 0.2}, "cache": False}
    result = edited(RECIPE, lambda c: c, compat=block)
    assert result.note is None
    assert yaml.safe_load(result.text)["compat"] == block
    assert result.text.replace("  cache: false\n", "") == RECIPE
    bare = RECIPE.split("compat:", maxsplit=1)[0]
    result = edited(bare, lambda c: without(c, {ref("./c")}), compat=block)
    assert result.note is None
    assert yaml.safe_load(result.text)["compat"] == block


POOL = """\
compat:
  substitute:
    pool:  # who may stand where
      ./spam:  # of mine
        - ./a  # the first
        - ./b
      era: [./c, ./d]
      "./last": ./e
"""


@pytest.mark.parametrize(
    ("pool", "lines"),
    [
        ({"./new": ["./a", "./b"], "era": ["./c", "./d"], "./last": "./e"}, 2),
        ({"./spam": ["./a", "./b"], "era": ["./c", "./d"], "./it's": "./e"}, 2),
        ({"./new": ["../a", "./b"], "era": ["../c", "./d"], "./x": "./e"}, 8),
        ({"./spam": ["./a", "./b"], "./x": ["./y", "./z", "./w"], "./last": "./e"}, 2),
    ],
)
def test_a_key_gets_another_name_where_it_stands(pool, lines):
    text = spliced(POOL, {"compat": {"substitute": {"pool": pool}}})
    assert yaml.safe_load(text)["compat"]["substitute"]["pool"] == pool
    assert len(changed_lines(POOL, text)) == lines
    for comment in ("# who may stand where", "# of mine", "# the first"):
        assert comment in text
    assert ('"./last"' in text) == ("./last" in pool)
    # In braces, two keys that go and one that is renamed make the whole anew.
    wanted = {"x": 1, "y": 9, "z": 8}
    assert yaml.safe_load(spliced("{a: 1, b: 2, c: 3}", wanted)) == wanted


INHERITED = """\
merge_method: linear
models: # two
- model: a
- model: b   # last
  parameters:

# end
parameters: {weight: 1}"""


def test_weights_that_were_inherited_are_added():
    shares = {ref("a"): 0.25, ref("b"): 0.75}
    result = edited(INHERITED, lambda c: with_weights(c, shares))
    assert result.note is None
    assert (
        result.text
        == """\
merge_method: linear
models: # two
- model: a
  parameters:
    weight: 0.5
- model: b   # last
  parameters: {weight: 1.5}

# end
parameters: {weight: 1}"""
    )


def test_line_ends_stay_as_they_are():
    text = INHERITED.replace("\n", "\r\n")
    result = edited(text, lambda c: with_weights(c, {ref("a"): 0.25, ref("b"): 0.75}))
    assert result.note is None
    assert "\n" not in result.text.replace("\r\n", "")


SHARED = """\
merge_method: linear
models:
  - model: a
    parameters: &p  # shared
      weight: 1.0
  - model: b
    parameters: *p   # too
  - model: c
    parameters:
      <<: *p
"""


def test_an_alias_gives_way_to_a_value_of_its_own():
    result = edited(
        SHARED, lambda c: with_weights(c, {ref("a"): 1 / 3, ref("b"): 1 / 6, ref("c"): 0.5})
    )
    assert result.note is None
    assert "    parameters: {weight: 0.5}   # too\n" in result.text
    assert "      <<: *p\n      weight: 1.5\n" in result.text


def test_an_anchor_that_others_hold_to_is_not_changed_behind_their_back():
    result = edited(
        SHARED, lambda c: with_weights(c, {ref("a"): 0.5, ref("b"): 1 / 3, ref("c"): 1 / 6})
    )
    assert "&p" in result.text or result.note is not None
    found = {str(m.model): m.parameters["weight"] for m in read(result.text).models}
    assert found == pytest.approx({"a": 1.5, "b": 1.0, "c": 0.5})
    assert "would not be read" in result.note
    gone = edited(SHARED, lambda c: without(c, {ref("a")}))
    assert gone.note is not None
    assert "undefined alias" in gone.note


@pytest.mark.parametrize(
    "text",
    [
        "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, "
        "{model: b, parameters: {weight: 1}}, {model: c, parameters: {weight: 1}}]}",
        '{"merge_method": "linear",\n "models": [\n  {"model": "a"},\n  {"model": "b"},\n'
        '  {"model": "c"}],\n "parameters": {"weight": 1}}\n',
        "---\nmerge_method: linear\nmodels:\n    -   model: a\n    -   model: b\n    -   model: c\n"
        "parameters:\n    weight: [1, 1]\n...\n",
        "? merge_method\n: linear\nmodels:\n- {model: a}\n- {model: b}\n- {model: c}\n"
        "parameters: {weight: 1}\n",
        "parameters: {weight: 1}\nmerge_method: linear\nmodels:\n- model: a\n- model: b\n"
        "-\n  model: c\n",
    ],
)
def test_every_layout_gives_the_wanted_recipe(text):
    models = [ref(m) for m in "abc"]
    for wanted in ([0.5, 0.25, 0.25], [0.2, 0.5, 0.3]):
        shares = dict(zip(models, wanted, strict=True))
        assert edited(text, lambda c, s=shares: with_weights(c, s)).note is None
    for gone in models:
        result = edited(text, lambda c, gone=gone: without(c, {gone}))
        assert result.note is None or "\n-\n" in text
    assert edited(text, lambda c: with_method(c, "weighted_karcher")).note is None


SETTINGS = [
    0.1,
    [0.1, 0.2],
    [0.1, 0.2, 0.3],
    [{"filter": "m", "value": 0.5}, {"value": [0.1, 0.2]}],
    [{"filter": "m", "value": [1, 2, 3]}, {"filter": "n", "value": 1}, {"value": "a: b"}],
    [{"value": 1}],
    {"value": 1},
]


@pytest.mark.parametrize("flow", [True, False, None])
@pytest.mark.parametrize("old", SETTINGS)
@pytest.mark.parametrize("new", SETTINGS)
def test_any_setting_becomes_any_other_in_its_place(old, new, flow):
    def document(value):
        inner = {"models": [{"model": "a", "parameters": {"weight": value}}, {"model": "b"}]}
        return {**inner, "parameters": {"weight": value, "x": 1}, "last": {"weight": value}}

    text = yaml.safe_dump(document(old), sort_keys=False, default_flow_style=flow)
    assert yaml.safe_load(spliced(text, document(new))) == document(new)


PIECES = [
    "# a comment\n",
    "\n",
    "dtype: 'float32' # quoted\n",
    "chat_template: |\n  line\n\n  # no comment\n",
    'tokenizer_source:   "union"\n',
    "unknown: {a: [1, 2], b: é}\n",
    "out_dtype: float16",
]


@settings(max_examples=15, deadline=None)
@given(pieces=st.permutations(PIECES), indent=st.integers(0, 4), weights=st.integers(1, 9))
def test_only_the_lines_of_the_change_change(pieces, indent, weights):
    models = "models:\n" + "".join(
        f"{' ' * indent}- model: m{i}\n{' ' * (indent + 2)}parameters:  # p{i}\n"
        f"{' ' * (indent + 4)}weight: 1  # w{i}\n"
        for i in range(3)
    )
    parts = [*pieces, models, "merge_method: linear\n"]
    text = "".join(p if p.endswith("\n") else f"{p}\n" for p in parts)
    total = weights + 2
    wanted = {ref("m0"): weights / total, ref("m1"): 1 / total, ref("m2"): 1 / total}
    result = edited(text, lambda c: with_weights(c, wanted))
    assert result.note is None
    old, new = text.split("\n"), result.text.split("\n")
    assert len(old) == len(new)
    for before, after in zip(old, new, strict=True):
        assert before == after or "# w" in before
        assert before.partition("#")[2] == after.partition("#")[2]
    dropped = edited(text, lambda c: without(c, {ref("m2")}))
    assert dropped.note is None
    assert len(dropped.text.split("\n")) == len(old) - 3


def test_a_path_with_a_space_can_be_written():
    text = RECIPE.replace("./c", "./c d").replace("model: ./a ", "model: {model: {path: ./a@x}} ")
    result = edited(text, lambda c: without(c, {ref("./b")}))
    assert result.note is None
    before = read(text)
    anew = edit_yaml("a: 1\n---\nb: 2\n", before, before)
    assert read(anew.text) == before


def test_several_documents_are_written_anew():
    before = read(RECIPE)
    result = edit_yaml(f"{RECIPE}---\n{RECIPE}", before, third(before))
    assert "written anew" in result.note
    assert read(result.text) == third(before)


def test_a_block_survives_being_written_anew():
    text = SHARED + "compat:\n  budget: {mds: 2.0}\n"
    result = edited(text, lambda c: without(c, {ref("a")}))
    assert result.note is not None
    assert yaml.safe_load(result.text)["compat"] == {"budget": {"mds": 2.0}}


def bomb(levels):
    lines = ["unknown0: &b0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        lines.append(f"unknown{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]")
    return INHERITED + "\n" + "\n".join(lines) + "\n"


@pytest.mark.timeout(20)
def test_a_bomb_of_aliases_is_not_lit():
    shares = {ref("a"): 0.25, ref("b"): 0.75}
    result = edited(bomb(40), lambda c: with_weights(c, shares))
    assert "recipe's size" in result.note
    assert len(result.text) < 1000
    loop = INHERITED + "\nunknown: &l [*l]\n"
    assert edited(loop, lambda c: with_weights(c, shares)).note is not None


def test_no_tag_is_executed():
    text = INHERITED + "\nunknown: !!python/object/apply:os.system ['false']\n"
    before = read(INHERITED)
    result = edit_yaml(text, before, with_weights(before, {ref("a"): 0.25, ref("b"): 0.75}))
    assert "could not determine a constructor" in result.note


def test_a_diff_shows_the_change_and_cannot_steer_a_terminal():
    shown = yaml_diff("a: 1\nb: 2\n", "a: 1\nb: 3\n", "mine.yml")
    assert shown.split("\n") == [
        *("--- mine.yml", "+++ mine.yml (changed)", "@@ -1,2 +1,2 @@", " a: 1", "-b: 2", "+b: 3"),
    ]
    assert yaml_diff("a\n", "a\n") == ""
    hostile = yaml_diff("a\n", "a\x1b[2J\u202e\n", "x\x07.yml")
    assert all(line.isprintable() for line in hostile.split("\n"))


def test_a_change_of_one_place_after_another_is_the_change_of_both():
    """The pieces of a repair can be applied one by one or all at once."""
    steps = [
        lambda c: without(c, {ref("./c")}),
        lambda c: with_replaced(c, ref("./b"), ref("./d")),
        lambda c: with_method(c, "rescaled_mean"),
    ]
    for order in itertools.permutations(steps):
        text, config = RECIPE, read(RECIPE)
        for step in order:
            after = step(config)
            text, config = edit_yaml(text, config, after).text, after
        assert edit_yaml(RECIPE, read(RECIPE), config).text == text
