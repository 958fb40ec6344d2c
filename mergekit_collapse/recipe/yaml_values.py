"""Plain data as YAML that fits where it is put."""

import json
from typing import Any

import yaml
from mergekit.config import ConfigYamlDumper

_ONE_LINE = 10**9


def equal(old: Any, new: Any) -> bool:
    """Equal, and of one type: 1 and true are the same number in Python."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(equal(old[k], new[k]) for k in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(equal, old, new))
    return isinstance(old, bool) == isinstance(new, bool) and bool(old == new)


def flow(value: Any) -> str:
    """On one line, as it can stand anywhere."""
    # Within a list, plain words that a list could not hold are quoted.
    written = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, width=_ONE_LINE, allow_unicode=True
    )
    return str(written).strip()[1:-1]


def like(node: Any, value: Any) -> str:
    """On one line, in the quotes of the scalar that it replaces."""
    if isinstance(value, str) and value.isprintable():
        if getattr(node, "style", None) == '"':
            return json.dumps(value, ensure_ascii=False)
        if getattr(node, "style", None) == "'":
            return "'" + value.replace("'", "''") + "'"
    return flow(value)


def block(value: Any, column: int) -> list[str]:
    """Line by line, as MergeKit writes a recipe: lists of numbers on one line."""
    written = yaml.dump(
        value,
        Dumper=ConfigYamlDumper,
        default_flow_style=False,
        sort_keys=False,
        width=_ONE_LINE,
        allow_unicode=True,
    )
    return [" " * column + line for line in written.rstrip("\n").split("\n")]
