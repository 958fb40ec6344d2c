"""A ``compat:`` value made into its record, or told every mistake in it."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
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


def parse_compat(value: Any) -> CompatBlock:
    """Validate the value of a recipe's ``compat`` key; null counts as ``{}``.

    Raises:
        InvalidRecipeError: every mistake in one message, each with its path in the YAML.
    """
    try:
        return CompatBlock.model_validate({} if value is None else value)
    except ValidationError as error:
        lines = "\n".join(mistakes(error, CompatBlock, _BLOCK_OF, root="compat"))
        raise InvalidRecipeError(f"the compat block is invalid:\n{lines}") from None


def mistakes(
    error: ValidationError,
    whole: type[BaseModel],
    parts: Mapping[str | int, type[BaseModel]],
    *,
    root: str = "",
) -> list[str]:
    """Every mistake in a line of its own, with its path in the YAML.

    Args:
        whole: what the YAML should be.
        parts: what is below a key, for the keys that have such.
        root: the key that the whole stands under, if any.
    """
    lines = (_describe(detail, whole, parts, root) for detail in error.errors())
    return list(dict.fromkeys(lines))


def _describe(
    detail: ErrorDetails,
    whole: type[BaseModel],
    parts: Mapping[str | int, type[BaseModel]],
    root: str,
) -> str:
    """``compat.probes.sampels: unknown key; did you mean 'samples'?``"""
    path = root
    keys: type[BaseModel] | None = whole
    for part in detail["loc"][:-1] if detail["type"] == "extra_forbidden" else detail["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif keys is not None and part in keys.model_fields:
            path += f".{part}" if path else f"{part}"
            keys = parts.get(part)
        # Anything else is the name of a union's branch, which no YAML contains.
    if detail["type"] == "extra_forbidden":
        # Quoted where it would break the line or steer the terminal.
        name = str(detail["loc"][-1])
        shown = name if name.isprintable() else repr(name)
        known = list(keys.model_fields) if keys is not None else []
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        where = f"{path}.{shown}" if path else shown
        return f"  {where}: unknown key; {guess}Known here: {', '.join(known)}"
    message = _INSTANCE.sub("", detail["msg"].removeprefix("Value error, "))
    for pythonic, plain in _YAML_WORDS.items():
        message = message.replace(pythonic, plain)
    # Our own messages name what they got; pydantic's do not.
    tell = detail["type"] not in ("value_error", "missing")
    got = f" (got {_in_yaml(detail['input'])})" if tell else ""
    return f"  {path or 'the file'}: {message[0].lower()}{message[1:]}{got}"


def _in_yaml(value: Any) -> str:
    """A wrong value as its author wrote it, as far as one line has room."""
    if isinstance(value, dict | list | tuple | set):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


_INSTANCE = re.compile(r" or instance of \w+$")
_YAML_WORDS = {
    **{"dictionary": "mapping", "tuple": "list", "Tuple": "List"},
    "Field required": "this key is missing",
}
_BLOCK_OF: dict[str | int, type[BaseModel]] = {
    "probes": ProbesBlock,
    "tasks": TaskBlock,
    "budget": BudgetBlock,
    "monitor": MonitorBlock,
    "cache": CacheBlock,
    "evaluate": EvaluateBlock,
    "reweight": ReweightBlock,
    "drop": DropBlock,
    "substitute": SubstituteBlock,
}
