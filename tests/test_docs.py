"""What the README shows is valid, exists and agrees with the code."""

import re
from pathlib import Path

import pytest
import yaml
from mergekit.config import MergeConfiguration

from mergekit_collapse import errors
from mergekit_collapse.cli import main
from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.recipe.validation import parse_compat

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_block_shown_is_valid():
    (block,) = blocks("yaml")
    assert parse_compat(yaml.safe_load(block)["compat"]).probes.tasks[0].name == "sentiment"


def test_the_recipe_shown_is_valid_before_and_after():
    (diff,) = blocks("diff")
    after = yaml.safe_load("".join(line[1:] for line in diff.splitlines(keepends=True)))
    block = after.pop("compat")
    assert len(build_recipe(MergeConfiguration.model_validate(after), block).experts) == 2


def test_every_command_shown_exists():
    shown = set(re.findall(r"mergekit-collapse ([a-z]+)\b(?! --)", README))
    assert {"check", "run", "evaluate", "report", "doctor", "demo"} <= shown
    assert shown - set(main.commands) == set()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("EvaluationError", 1),
        ("InvalidRecipeError", 2),
        ("MergeRefusedError", 3),
        ("MergeRejectedError", 4),
    ],
)
def test_the_exit_codes_are_those_of_the_errors(error, code):
    assert getattr(errors, error).exit_code == code
    assert f"| {code} |" in README


def test_links_lead_somewhere():
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target
