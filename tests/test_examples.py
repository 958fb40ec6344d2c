"""The recipes under examples/ are valid, and the commented one shows the defaults."""

import re
from pathlib import Path

import pytest
import yaml
from mergekit.config import MergeConfiguration

from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
from mergekit_collapse.recipe.recipe import build_recipe, read_recipe
from mergekit_collapse.recipe.schema import (
    CacheBlock,
    CompatBlock,
    DropBlock,
    MonitorBlock,
    ProbesBlock,
    ReweightBlock,
    SubstituteBlock,
    TaskBlock,
)

EXAMPLES = Path(__file__).parent.parent / "examples" / "yaml"


@pytest.mark.parametrize("name", ["minimal", "own-tasks", "every-key"])
def test_an_example_is_a_valid_recipe(name):
    assert len(read_recipe(EXAMPLES / f"{name}.yml").experts) == 2


def test_every_document_of_the_multi_example_is_valid():
    documents = list(yaml.safe_load_all((EXAMPLES / "multi.yml").read_text(encoding="utf-8")))
    for document in documents:
        block = document.pop("compat")
        document.pop("name", None)
        read = build_recipe(MergeConfiguration.model_validate(document), block)
        assert len(read.experts) == 2


def test_the_commented_example_shows_every_key_with_its_default():
    text = (EXAMPLES / "every-key.yml").read_text(encoding="utf-8")
    block = yaml.safe_load(text)["compat"]
    assert read_recipe(EXAMPLES / "every-key.yml").compat == CompatBlock()
    for keys, model in (
        (block, CompatBlock),
        (block["probes"], ProbesBlock),
        ({}, TaskBlock),
        (block["budget"], BudgetBlock),
        (block["monitor"], MonitorBlock),
        (block["evaluate"], EvaluateBlock),
        (block["reweight"], ReweightBlock),
        (block["drop"], DropBlock),
        (block["substitute"], SubstituteBlock),
        (block["cache"], CacheBlock),
    ):
        for key in model.model_fields:
            assert key in keys or re.search(rf"^ *# +(- )?{key}:", text, re.MULTILINE), key
