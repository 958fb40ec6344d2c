"""``on_violation: split``: a mergekit-multi file with one merge for each group of experts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from mergekit_collapse.repair.before_and_after import reading_of
from mergekit_collapse.repair.change import NoRemedyError, deciding, usable_alpha
from mergekit_collapse.repair.changed_recipe import changed_recipe, written_block
from mergekit_collapse.repair.group_limits import group_limits
from mergekit_collapse.repair.moved_block import moved_block
from mergekit_collapse.repair.remeasured import Assess, remeasured
from mergekit_collapse.report.report import Report

SPLIT_FILE = "split.yml"
# Each may run models again.
_ROUNDS = 5


@dataclass(frozen=True)
class SplitRecipes:
    """One merge for each group that has two experts or more.

    Attributes:
        text: documents for mergekit-multi.
        groups: of the experts, by index.
        notes: what else is to be known.
    """

    text: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def split_recipes(assessment: Assessment, assess: Assess, folder: Path) -> SplitRecipes:
    """The fewest merges that are all inside the limits, as documents for mergekit-multi.

    Every group is measured by itself, in its own scale and on its own probes, before it is said
    to be inside; one that is not makes way for other groups. An expert that is alone in its group
    needs no merge and is named in a comment.

    Args:
        assessment: of the recipe.
        assess: measures a recipe from the start.
        folder: where the file will lie, from which probe files are named.

    Raises:
        NoRemedyError: every expert would be alone.
        InvalidRecipeError: the recipe cannot be split so.
        EvaluationError: a distance is NaN, or the deciding reading is undefined.
    """
    report = assessment.report
    recipe, geometry = report.recipe, deciding(report)
    limits = group_limits(geometry, recipe.compat.budget, usable_alpha(report))
    parts: dict[Group, Report] = {}
    over: list[Group] = []
    for _ in range(_ROUNDS):
        found = split(limits, geometry.groups, over)
        if not found.inside:
            break
        for group in found.groups:
            if len(group) > 1 and group not in parts:
                parts[group] = remeasured(assessment, _part(recipe, group), assess).report
        bad = [g for g in found.groups if g in parts and parts[g].verdict.decision == "refuse"]
        if not bad:
            notes = [] if found.exact else ["fewer groups might do"]
            notes += [f"{shown(recipe, [g])} is over when measured by itself" for g in over]
            return SplitRecipes(_text(recipe, found, parts, folder), found.groups, tuple(notes))
        over += bad
    reason = found.reason or "no groups were found"
    if over:
        reason = f"{shown(recipe, over)} would be inside, but not when measured apart; {reason}"
    raise NoRemedyError(reason)


def _part(recipe: Recipe, group: Group) -> Recipe:
    apart = sorted(set(range(len(recipe.experts))) - set(group))
    config = without(recipe.config, [recipe.experts[i] for i in apart])
    return changed_recipe(recipe, config, apart).recipe


def _text(recipe: Recipe, found: Splitting, parts: Mapping[Group, Report], folder: Path) -> str:
    head = "".join(f"# {line}\n" for line in _comments(recipe, found, parts))
    merged = [parts[group].recipe for group in found.groups if group in parts]
    names = _free_names(recipe, len(merged))
    return head + "---\n".join(_document(part, next(names), folder) for part in merged)


def _document(part: Recipe, name: str, folder: Path) -> str:
    block = moved_block(part, folder)
    # A folder for each merge, or one would write over another's report.
    block.pop("report", None)
    document = {"name": name, **plain(part.config), FIELD: block}
    return str(yaml.dump(document, Dumper=ConfigYamlDumper, sort_keys=False, allow_unicode=True))


def _comments(recipe: Recipe, found: Splitting, parts: Mapping[Group, Report]) -> Iterator[str]:
    yield "Each merge is inside the budget. mergekit-multi split.yml --intermediate-dir FOLDER"
    for group in found.groups:
        names = " + ".join(printable(recipe.names[i]) for i in group)
        value = reading_of(parts[group]) if group in parts else None
        told = "inside" if value is None else f"{value:.3g}"
        yield f"{names}: {told if group in parts else 'used as it is'}"


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


def shown(recipe: Recipe, groups: Sequence[Group]) -> str:
    """``one + two | far``."""
    return " | ".join(" + ".join(recipe.names[i] for i in group) for group in groups)
