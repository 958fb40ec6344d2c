"""Whether the code that a model brings lies in its own folder, where a plan sees it."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.preflight.model_source import LocalFolder, read_json

_NAMING_CODE = ("config.json", "tokenizer_config.json")


def require_own_code(folder: Path, names: Collection[str]) -> None:
    """Code that a model takes from another repository could change without a trace here.

    Args:
        names: of the folder's files.

    Raises:
        InvalidRecipeError: its configuration names such code.
        EvaluationError: its configuration cannot be read.
    """
    for name in _NAMING_CODE:
        if name not in names:
            continue
        classes = read_json(LocalFolder(folder), name).get("auto_map")
        if foreign := [text for text in _texts(classes) if "--" in text]:
            raise InvalidRecipeError(
                f"{folder / name}: takes code from another repository ({foreign[0]}), which a "
                "plan cannot hold fast; copy that code into the model's folder"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
