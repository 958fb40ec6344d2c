"""A recipe's YAML text after the gate changed the recipe: comments, order and quoting stay."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from mergekit.config import ConfigYamlDumper, MergeConfiguration

from mergekit_collapse.recipe.document_change import carried_over, plain
from mergekit_collapse.recipe.text import FIELD
from mergekit_collapse.recipe.yaml_layout import CannotSpliceError
from mergekit_collapse.recipe.yaml_splice import spliced

# Of values, each alias counted as often as it stands: a bomb has billions.
_LARGEST = 100_000

_AS_WRITTEN = object()


@dataclass(frozen=True)
class EditedText:
    """A recipe's new text, and what was lost in it, if anything was."""

    text: str
    note: str | None


def edit_yaml(
    text: str,
    before: MergeConfiguration,
    after: MergeConfiguration,
    compat: Any = _AS_WRITTEN,
) -> EditedText:
    """Apply the difference between two configurations to the text of the first.

    What did not change stays character by character. The result is read back; where it is not
    the wanted recipe (several documents, an anchor that others share, a program's own text),
    the recipe is written anew, without comments, and ``note`` says why.

    Args:
        text: the YAML that ``before`` was read from.
        before: the recipe as it was.
        after: the recipe as it shall be.
        compat: the new ``compat:`` block as plain data; the one in the text if not given.
    """
    try:
        written = yaml.safe_load(text)
        if not isinstance(written, dict) or _size(written) > _LARGEST:
            raise CannotSpliceError("it is not one mapping of a recipe's size")
        wanted = carried_over(written, plain(before), plain(after))
        if compat is not _AS_WRITTEN:
            wanted = {**wanted, FIELD: compat}
        edited = spliced(text, wanted)
        if not _reads_as(edited, wanted, after):
            raise CannotSpliceError("the edited text would not be read as the wanted recipe")
    except (CannotSpliceError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        note = f"the recipe was written anew, without its comments: {reason}"
        return EditedText(_anew(text, after, compat), note)
    return EditedText(edited, None)


def yaml_diff(before: str, after: str, name: str = "recipe.yml") -> str:
    """Unified diff of two texts, empty where they are equal; it cannot steer a terminal."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), name, f"{name} (changed)", lineterm=""
    )
    return "\n".join(_printable(line) for line in lines)


def _reads_as(text: str, wanted: Mapping[str, Any], after: MergeConfiguration) -> bool:
    read = yaml.safe_load(text)
    if read != wanted:
        return False
    read.pop(FIELD, None)
    try:
        return bool(plain(MergeConfiguration.model_validate(read)) == plain(after))
    except (ValueError, RuntimeError, TypeError):
        return False


def _anew(text: str, after: MergeConfiguration, compat: Any) -> str:
    """MergeKit's own dump, with the block."""
    dumped = plain(after)
    if compat is _AS_WRITTEN:
        compat = _block_of(text, after)
    if compat is not None:
        dumped[FIELD] = compat
    return str(yaml.dump(dumped, Dumper=ConfigYamlDumper, sort_keys=False, allow_unicode=True))


def _block_of(text: str, after: MergeConfiguration) -> Any:
    if (source := getattr(after, FIELD, None)) is not None:
        return source.value
    try:
        written = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return None
    return written.get(FIELD) if isinstance(written, dict) else None


def _size(value: Any) -> int:
    """How many values a document has when every alias is written out."""
    known: dict[int, int] = {}

    def size(each: Any) -> int:
        if not isinstance(each, dict | list):
            return 1
        if id(each) not in known:
            known[id(each)] = _LARGEST + 1  # what holds itself is larger than anything
            inner = each.values() if isinstance(each, dict) else each
            known[id(each)] = 1 + sum(map(size, inner))
        return known[id(each)]

    return size(value)


def _printable(line: str) -> str:
    return "".join(
        c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line
    )
