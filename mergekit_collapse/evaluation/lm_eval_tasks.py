"""Task files for EleutherAI's lm-eval that lie beside a recipe: found, and seen to be mere data.

A task file of lm-eval can name Python code in several ways. Such a file comes with a recipe,
perhaps a stranger's, so that what runs code needs the same consent as a model's own code.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from mergekit_collapse.errors import InvalidRecipeError

_PLAIN = "tag:yaml.org,2002:"
# The very parser that lm-eval uses: another could see other keys in the same bytes.
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_PLAIN_TAGS = frozenset(
    _PLAIN + kind
    for kind in ("bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp")
)
# Keys under which lm-eval or datasets run code whatever the value is.
_CODE_KEYS = frozenset({"class", "custom_dataset", "trust_remote_code"})
_CONSENT = "read what it names, and give --trust-remote-code if you trust it"


def local_path(task: str, folder: Path) -> Path | None:
    """The task file or folder that an entry means; None where it is a name of lm-eval's own.

    Args:
        task: an entry of ``evaluate.lm_eval``.
        folder: what relative paths are relative to.

    Raises:
        InvalidRecipeError: it can only be a path, and nothing is there.
    """
    path = folder / os.path.expanduser(task)
    meant = task.endswith((".yaml", ".yml")) or task.startswith((".", "/", "~"))
    if meant or ("/" in task and path.exists()) or path.is_dir():
        if not path.exists():
            raise InvalidRecipeError(
                f"compat.evaluate.lm_eval: {task}: no such task file or folder ({path}); paths are"
                " relative to the folder of the recipe"
            )
        return path.resolve()
    return None


def task_files(path: Path) -> list[Path]:
    """The task files of a folder, sorted, or the one file.

    Raises:
        InvalidRecipeError: a folder without any.
    """
    if path.is_file():
        return [path]
    # lm-eval looks for this suffix alone.
    if not (files := sorted(path.rglob("*.yaml"))):
        raise InvalidRecipeError(
            f"compat.evaluate.lm_eval: {path} holds no task file; their names end in .yaml"
        )
    return files


def require_data_only(files: Collection[Path], metrics: Collection[str]) -> None:
    """Refuse task files that would run code when lm-eval reads or runs them.

    That is a tag such as ``!function``, a ``class:``, a data set with a script of its own or in
    pickles, and a metric that lm-eval does not have, since it would fetch that as a script. What
    a file includes is read too: at the root, under a merge key (``<<``) and anywhere else.

    Args:
        metrics: the names of those that lm-eval has.

    Raises:
        InvalidRecipeError: names the file, the line and what would run.
    """
    for path, nodes in _with_included(files):
        for node in nodes:
            _check_node(path, node, metrics)


def files_read(files: Collection[Path]) -> set[Path]:
    """The task files, what they include, and the local files of data that they name.

    Raises:
        InvalidRecipeError: a task file cannot be read.
    """
    found = set()
    for path, nodes in _with_included(files):
        named = [node.value for top in nodes for node in _nodes(_value(top, "data_files"))]
        data = {path.parent / name for name in named if isinstance(name, str)}
        found |= {path} | {each for each in data if each.is_file()}
    return found


def _with_included(files: Collection[Path]) -> Iterator[tuple[Path, list[yaml.Node]]]:
    """Every task file once, with its nodes."""
    waiting, seen = list(files), set[Path]()
    while waiting:
        path = _resolved(waiting.pop())
        if path in seen:
            continue
        seen.add(path)
        nodes = list(_nodes(_read(path)))
        yield path, nodes
        # Relative to the file that a link leads to, and "~" is a folder of that name: these
        # are the files that lm-eval reads.
        waiting += [path.parent / i for node in nodes for i in _values(node, "include")]


def group_name(path: Path) -> str | None:
    """The name of a group, which gathers tasks that are defined elsewhere; None for a task."""
    return next(_values(_read(path), "group"), None)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # Links in a circle, or a name with a null byte.
        raise InvalidRecipeError(
            f"compat.evaluate.lm_eval: {str(path)!r} cannot be read: {error}; check the path"
        ) from error


def _read(path: Path) -> yaml.Node | None:
    where = f"compat.evaluate.lm_eval: {path}"
    try:
        # Nodes with their tags; nothing is constructed from them.
        return yaml.compose(path.read_bytes(), Loader=_LOADER)
    except OSError as error:
        raise InvalidRecipeError(
            f"{where}: cannot be read: {error.strerror or error}; check the path"
        ) from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise InvalidRecipeError(f"{where}: not YAML: {error}; mend the file") from error


def _check_node(path: Path, node: yaml.Node, metrics: Collection[str]) -> None:
    where = f"compat.evaluate.lm_eval: {path}: line {node.start_mark.line + 1}"
    if node.tag not in _PLAIN_TAGS:
        raise InvalidRecipeError(
            f"{where}: {node.tag} {node.value if isinstance(node.value, str) else ''} would run"
            f" Python code; {_CONSENT}"
        )
    for key in _keys(node, *_CODE_KEYS):
        raise InvalidRecipeError(f"{where}: the key {key!r} would run Python code; {_CONSENT}")
    for script in _values(node, "dataset_path"):
        if script.endswith(".py"):
            raise InvalidRecipeError(f"{where}: the data set {script} is a script; {_CONSENT}")
        if script == "pandas":
            raise InvalidRecipeError(f"{where}: {script} reads pickles, which run code; {_CONSENT}")
    for key, flag in _pairs(node):
        # Anything but a false boolean may be true to Python, a quoted "false" too.
        off = flag.tag == _PLAIN + "bool" and flag.value.lower() in ("false", "no", "off")
        if key.value == "hf_evaluate" and not off:
            raise InvalidRecipeError(f"{where}: hf_evaluate fetches a script; {_CONSENT}")
    for metric in _values(node, "metric"):
        if metric not in metrics:
            raise InvalidRecipeError(
                f"{where}: lm-eval has no metric {metric!r} and would look for a script of that"
                f" name; correct it, or {_CONSENT}"
            )


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node once; an alias is the very node that its anchor names."""
    waiting, seen = [root] if root is not None else [], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]


def _pairs(node: yaml.Node | None) -> list[tuple[Any, Any]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _keys(node: yaml.Node | None, *names: str) -> Iterator[str]:
    yield from (key.value for key, _ in _pairs(node) if key.value in names)


def _value(node: yaml.Node | None, name: str) -> yaml.Node | None:
    return next((value for key, value in _pairs(node) if key.value == name), None)


def _values(node: yaml.Node | None, name: str) -> Iterator[str]:
    """The scalars that stand under a key, alone or in a list."""
    for key, value in _pairs(node):
        if key.value == name:
            listed = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (n.value for n in listed if isinstance(n, yaml.ScalarNode))
