"""``on_violation: split``: a mergekit-multi file with one merge for each group of experts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import ConfigYamlDumper

from mergekit_collapse.assessment import Assessment
from mergekit_collapse.findings import printable
from mergekit_collapse.recipe.document_change import plain
from mergekit_collapse.recipe.members import without
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.remedy.group_reading import Group
from mergekit_collapse.remedy.splitting import Splitting, split
from mergekit_collapse.repair.change import NoRemedyError, deciding, usable_alpha
from mergekit_collapse.repair.changed_recipe import changed_recipe, written_block
from mergekit_collapse.repair.group_limits import group_limits
from mergekit_collapse.repair.moved_block import moved_block

SPLIT_FILE = "split.yml"


def split_recipes(assessment: Assessment, folder: Path) -> tuple[str, Splitting]:
    """The fewest merges that are all inside the limits, as documents for mergekit-multi.

    An expert that is alone in its group needs no merge and is named in a comment.

    Args:
        assessment: of the recipe.
        folder: where the file will lie, from which probe files are named.

    Raises:
        NoRemedyError: every expert would be alone.
        InvalidRecipeError: the recipe cannot be split so.
        EvaluationError: a distance is NaN, or the deciding reading is undefined.
    """
    report = assessment.report
    recipe, geometry = report.recipe, deciding(report)
    limits = group_limits(geometry, recipe.compat.budget, usable_alpha(report))
    found = split(limits, geometry.groups)
    if not found.inside:
        raise NoRemedyError(found.reason or "every expert would be alone")
    documents = list(_documents(recipe, found, folder))
    head = "".join(f"# {line}\n" for line in _comments(recipe, found))
    return head + "---\n".join(documents), found


def _documents(recipe: Recipe, found: Splitting, folder: Path) -> Iterator[str]:
    everyone = set(range(len(recipe.experts)))
    names = _free_names(recipe, sum(len(group) > 1 for group in found.groups))
    for group in found.groups:
        if len(group) < 2:
            continue
        apart = sorted(everyone - set(group))
        config = without(recipe.config, [recipe.experts[i] for i in apart])
        part = changed_recipe(recipe, config, apart).recipe
        block = moved_block(part, folder)
        # A folder for each merge, or one would write over another's report.
        block.pop("report", None)
        document = {"name": next(names), **plain(part.config), FIELD: block}
        yield str(yaml.dump(document, Dumper=ConfigYamlDumper, sort_keys=False, allow_unicode=True))


def _comments(recipe: Recipe, found: Splitting) -> Iterator[str]:
    yield "Each merge is inside the budget. mergekit-multi split.yml --intermediate-dir FOLDER"
    for group, value in zip(found.groups, found.values, strict=True):
        shown = " + ".join(printable(recipe.names[i]) for i in group)
        yield f"{shown}: {f'{value:.3g}' if len(group) > 1 else 'used as it is'}"


def _free_names(recipe: Recipe, count: int) -> Iterator[str]:
    """mergekit-multi takes any text of a document that equals a merge's name for that merge."""
    taken = set(_texts([plain(recipe.config), written_block(recipe)]))
    number, given = 1, 0
    while given < count:
        if (name := f"group-{number}") not in taken:
            given += 1
            yield name
        number += 1


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def shown(recipe: Recipe, groups: tuple[Group, ...]) -> str:
    """``one + two | far``."""
    return " | ".join(" + ".join(recipe.names[i] for i in group) for group in groups)
