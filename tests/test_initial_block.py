"""The block that `init` writes: valid, the default, and nothing around it touched."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import mergekit_collapse
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.initial_block import add_block
from mergekit_collapse.recipe.recipe import read_recipe
from mergekit_collapse.recipe.schema import CompatBlock

PLAIN = """\
# mine
models:
  - model: ./experts/sentiment
  - model: ./experts/topic
merge_method: linear   # a mean
parameters:
  weight: 1
"""


def read(text, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_bytes(text.encode())
    return read_recipe(path)


def test_the_block_is_the_default_block_and_stands_at_the_end(tmp_path):
    text = add_block(PLAIN)
    assert text.startswith(PLAIN + "\ncompat:  # ")
    recipe = read(text, tmp_path)
    assert recipe.compat == CompatBlock()
    assert recipe.config == read(PLAIN, tmp_path).config
    assert max(map(len, text.split("\n"))) <= 100


def test_every_default_that_it_shows_is_the_schemas():
    written = yaml.safe_load(add_block(PLAIN))["compat"]
    default = CompatBlock().model_dump()
    for key, value in written.items():
        shown = value if isinstance(value, dict) else {None: value}
        for inner, each in shown.items():
            assert each == (default[key] if inner is None else default[key][inner])


def test_the_tasks_are_valid_once_their_hash_is_removed(tmp_path):
    text = re.sub(r"^    # ", "    ", add_block(PLAIN), flags=re.MULTILINE)
    recipe = read(text, tmp_path)
    assert [task.name for task in recipe.compat.probes.tasks] == ["sentiment", "topic"]
    assert recipe.owners == (0, 1)
    assert recipe.compat.probes.tasks[0].data == "probes/sentiment.jsonl"


@pytest.mark.parametrize(
    "name",
    ["a b", "null", "1", "x: y", "it's", 'q"', "a\nb", "a\x85b", "a\u2028b", "é", "#", "builtin"],
)
def test_no_name_ends_the_comment_that_it_stands_in(name, tmp_path):
    document = {
        "models": [{"model": {"model": {"path": f"./{name}"}}}, {"model": "./other"}],
        "merge_method": "linear",
        "parameters": {"weight": 1},
    }
    text = add_block(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    assert read(text, tmp_path).compat == CompatBlock()
    opened = re.sub(r"^    # ", "    ", text, flags=re.MULTILINE)
    assert read(opened, tmp_path).owners == (0, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PLAIN + "compat: {}\n", "a `compat:` block already"),
        (PLAIN + "compat: false\n", "a `compat:` block already"),
        (PLAIN + "compat:\n", "is empty"),
        (PLAIN + "compta: {}\n", "did you mean 'compat'"),
        (f"{PLAIN}---\n{PLAIN}", "holds 2 documents, a mergekit-multi file"),
        ("", "mapping of keys"),
        ("- a\n", "mapping of keys"),
        ("a: [", "not valid YAML"),
        ("title: no recipe\n", "MergeKit does not accept"),
        (PLAIN + "merge_method: ties\n", "stands twice"),
        ("{merge_method: linear, models: [{model: a}]}\n", "written in braces"),
        (PLAIN + "x: !!python/object/apply:os.system ['false']\n", "not valid YAML"),
        ("[" * 1500, "not valid YAML"),
    ],
)
def test_what_gets_no_block(text, told):
    with pytest.raises(InvalidRecipeError, match=told):
        add_block(text)


def test_a_second_block_is_refused():
    with pytest.raises(InvalidRecipeError, match="already"):
        add_block(add_block(PLAIN))


LAST = [
    "",
    "dtype: float32",
    "# the end",
    "\n\n# far away\n\n",
    "chat_template: |\n  one\n  two",
    "chat_template: |+\n  one\n\n\n",
    "chat_template: >-\n  folded\n   text\n",
    "out_dtype: 'float32'\n...\n",
    "...\n# after the dots\n",
    "unknown: {a: 1,\n  b: 2}",
]


@settings(max_examples=25, deadline=None)
@given(last=st.sampled_from(LAST), indent=st.sampled_from(["", "  "]), crlf=st.booleans())
@pytest.mark.parametrize("start", ["", "---\n", "%YAML 1.1\n---\n", "\ufeff"])
def test_nothing_else_changes(start, last, indent, crlf):
    body = "".join(
        indent + line if line.strip() else line for line in (PLAIN + last).splitlines(True)
    )
    text = start + body.replace(f"{indent}...", "...")
    if crlf:
        text = text.replace("\n", "\r\n")
    added = add_block(text)
    before, after = yaml.safe_load(text), yaml.safe_load(added)
    assert after.pop("compat") is not None
    assert after == before
    block = re.search(r"(\r?\n){0,2}^ *compat:.*?on_collapse[^\n]*\n(\r?\n)?", added, re.M | re.S)
    left, right = added[: block.start()], added[block.end() :]
    # Every character of the old text, in one piece on either side of the block.
    assert text.startswith(left)
    assert text.endswith(right)
    assert len(left) + len(right) >= len(text) - 4
    if crlf:
        assert "\n" not in added.replace("\r\n", "")


def test_the_demos_recipes_can_be_begun_anew(tmp_path):
    for path in sorted((Path(mergekit_collapse.__file__).parent / "demo/recipes").glob("*.yml")):
        bare = re.split(r"^compat:", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
        assert read(add_block(bare), tmp_path).compat == CompatBlock()


def test_the_limits_that_it_tells_are_those_in_force_before_and_after_the_tasks(tmp_path):
    text = add_block(PLAIN)
    for key, without, with_tasks in (("distortion", 0.25, 0.45), ("max_distortion", 0.7, 1.0)):
        (line,) = re.findall(rf"^    # {key}: .*$", text, flags=re.MULTILINE)
        assert line.startswith(f"    # {key}: {without}  # ")
        assert line.endswith(f"; {with_tasks} with tasks")
    assert "\n  # refuses 2 of 5 collapses and 1 of 6 good merges (docs/evidence.md)," in text
    limits = read(text, tmp_path).compat
    assert (limits.budget.distortion, limits.evaluate.max_distortion) == (0.25, 0.7)
    # Whoever takes the tasks in has theirs, and no more than that.
    opened = re.sub(r"^    # (tasks:|  )", r"    \1", text, flags=re.MULTILINE)
    limits = read(opened, tmp_path).compat
    assert limits.probes.tasks[0].target == "{label}"
    assert (limits.budget.distortion, limits.evaluate.max_distortion) == (0.45, 1.0)
    assert not limits.evaluate.wrote("max_own_distortion")
