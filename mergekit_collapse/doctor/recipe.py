"""Which command a recipe is for, and whether that command honours a ``compat:`` block."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mergekit_collapse.doctor.symptom import Symptom
from mergekit_collapse.recipe.text import FIELD, misspelt_block

# A key that only this command's file has. None of these hands the block to `run_merge`: they read
# the file into a configuration of their own, which drops what it does not know.
_OTHER_COMMANDS = {
    "genome": "mergekit-evolve",
    "experts": "mergekit-moe",
    "gate_mode": "mergekit-moe",
    "layer_slices": "bakllama",
}
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def examine_recipe(path: Path) -> list[Symptom]:
    """What would become of the block in ``path``; a problem wherever it would be ignored."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeError) as error:
        return [Symptom("problem", "recipe", f"{path} cannot be read: {error}")]
    except (yaml.YAMLError, RecursionError) as error:
        return [Symptom("problem", "recipe", f"{path} is not YAML: {error}")]
    documents = [each for each in documents if each is not None]
    if not documents:
        return [Symptom("problem", "recipe", f"{path} is empty")]
    return [
        finding
        for number, document in enumerate(documents, start=1)
        for finding in _examine(document, _where(path, document, number, len(documents)))
    ]


def _where(path: Path, document: Any, number: int, total: int) -> str:
    if total == 1:
        return str(path)
    name = document.get("name") if isinstance(document, dict) else None
    return f"{path}, document {number}" + (f" ({name})" if name else "")


def _examine(document: Any, where: str) -> Iterator[Symptom]:
    if not isinstance(document, dict):
        got = type(document).__name__
        yield Symptom("problem", "recipe", f"{where}: a mapping is expected, got {got}")
        return
    yield from _misplaced(document, where)
    if FIELD not in document:
        yield Symptom("note", "recipe", f"{where}: no `{FIELD}:` block, so nothing is gated")
    elif document[FIELD] is None:
        yield Symptom(
            "problem",
            "recipe",
            f"{where}: `{FIELD}:` is empty; write `{FIELD}: {{}}` to gate with the defaults",
        )
    elif command := _command_that_ignores(document):
        yield Symptom(
            "problem",
            "recipe",
            f"{where}: this is a file for {command}, which ignores `{FIELD}:`; only "
            "mergekit-yaml, mergekit-multi and programs that call run_merge honour it",
        )
    else:
        command = "mergekit-multi" if "name" in document else "mergekit-yaml or mergekit-multi"
        yield Symptom(
            "ok",
            "recipe",
            f"{where}: {command} honours its `{FIELD}:` block (mergekit-pytorch would ignore it)",
        )


def _command_that_ignores(document: dict[Any, Any]) -> str | None:
    for key, command in _OTHER_COMMANDS.items():
        if key in document:
            return command
    models = document.get("models")
    if isinstance(models, list) and any(_is_weight_file(each) for each in models):
        return "mergekit-pytorch"
    return None


def _is_weight_file(entry: Any) -> bool:
    """mergekit-pytorch merges files of weights; in every other command a model is a folder."""
    return isinstance(entry, dict) and str(entry.get("model")).endswith(_WEIGHT_FILES)


def _misplaced(document: dict[Any, Any], where: str) -> Iterator[Symptom]:
    """MergeKit ignores keys that it does not know: a block one letter off would gate nothing."""
    if (key := misspelt_block(document)) is not None:
        yield Symptom(
            "problem",
            "recipe",
            f"{where}: the key `{key}:` means nothing to MergeKit; did you mean `{FIELD}:`?",
        )
    parameters = document.get("parameters")
    if isinstance(parameters, dict) and FIELD in parameters:
        yield Symptom(
            "problem",
            "recipe",
            f"{where}: `{FIELD}:` stands under `parameters:`; move it to the top level",
        )
