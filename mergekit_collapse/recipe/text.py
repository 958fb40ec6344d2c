"""What only the text of a recipe tells: keys that MergeKit drops without a word."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mergekit_collapse.errors import InvalidRecipeError

FIELD = "compat"


def read_text(path: Path, *, newline: str | None = None) -> str:
    """The text of a recipe's file.

    Args:
        newline: as for ``open``; "" keeps the file's own line ends.

    Raises:
        InvalidRecipeError: unreadable, or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InvalidRecipeError(
            f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    except OSError as error:
        raise InvalidRecipeError(f"{path}: cannot be read: {error.strerror}") from None


def lost_block(document: Mapping[Any, Any]) -> str | None:
    """What is wrong with a ``compat`` key that MergeKit would drop: empty, or misspelt."""
    if FIELD in document:
        empty = f"`{FIELD}:` is empty; write `{FIELD}: {{}}` to gate with the defaults"
        return f"{empty}, or remove the line" if document[FIELD] is None else None
    if (key := misspelt_block(document)) is None:
        return None
    return f"the key {key!r} means nothing to MergeKit; did you mean {FIELD!r}? Rename or remove it"


def misspelt_block(document: Mapping[Any, Any]) -> str | None:
    """A top-level key whose author most likely meant ``compat``, and which MergeKit ignores."""
    for key in map(str, document):
        if key != FIELD and difflib.get_close_matches(key.lower(), [FIELD], cutoff=0.8):
            return key
    return None


def require_distinct_keys(text: str, where: object) -> None:
    """Of two equal keys YAML keeps the last, so that the stricter of two budgets would be lost.

    Raises:
        InvalidRecipeError: names the key and its line.
    """
    try:
        twice = next(_repeated(text), None)
    except (yaml.YAMLError, RecursionError):
        return  # a program's own text; MergeKit has the configuration that was made of it
    if twice is not None:
        raise InvalidRecipeError(
            f"{where}: line {twice.start_mark.line + 1}: the key {twice.value!r} stands twice in "
            "one mapping, and only the last would count; remove one"
        )


def _repeated(text: str) -> Iterator[yaml.ScalarNode]:
    """Keys that their mapping has already."""
    waiting = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        # An alias is the very node that its anchor names, and may lie inside itself.
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            names = [(key.tag, key.value) for key in keys]
            yield from (key for i, key in enumerate(keys) if names[i] in names[:i])
            waiting += [value for _, value in node.value]
