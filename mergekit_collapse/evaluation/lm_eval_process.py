"""lm-eval inside this process: found, kept quiet, and fenced in."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError


def module(name: str) -> Any:
    """Part of lm-eval, or of what comes with it: no dependency of this package."""
    return importlib.import_module(name)


@contextlib.contextmanager
def calm(trusted: bool) -> Iterator[None]:
    """lm-eval without its log, and with no way to run Python that a task brings with it.

    Unless the tasks are trusted, a ``!function`` means something only in lm-eval's own files,
    whatever a check of the task files has seen, and templates run in Jinja's sandbox.

    Raises:
        EvaluationError: this version of lm-eval cannot be fenced in.
        InvalidRecipeError: from inside, where a file that is not lm-eval's own names a function.
    """
    utils, evaluator = module("lm_eval.utils"), module("lm_eval.evaluator")
    # It asks git and pip for what no metric depends on, and git complains on the terminal.
    asked = {"get_git_commit_hash": str, "add_env_info": _nothing}
    parts: dict[tuple[Any, str], Any] = {
        (evaluator, name): part for name, part in asked.items() if hasattr(evaluator, name)
    }
    if not trusted:
        try:
            loader = module("lm_eval.tasks._yaml_loader")
            parts[loader, "_import_func_in_yml"] = _own_only(loader._import_func_in_yml)
            templates = utils.env
        except (AttributeError, ImportError) as error:
            raise EvaluationError(
                "this version of lm-eval keeps its templates and functions where they cannot be"
                " fenced in; install lm-eval 0.4.13, or give --trust-remote-code if you trust"
                " the tasks"
            ) from error
        jinja, sandboxed = module("jinja2"), module("jinja2.sandbox")
        sandbox = sandboxed.SandboxedEnvironment(
            undefined=jinja.StrictUndefined, keep_trailing_newline=True
        )
        sandbox.filters.update(templates.filters)
        parts[utils, "env"] = sandbox
    before = {key: getattr(*key) for key in parts}
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for (part_of, name), part in parts.items():
            setattr(part_of, name, part)
        yield
    finally:
        for (part_of, name), part in before.items():
            setattr(part_of, name, part)
        logger.setLevel(level)


def _nothing(_results: Any) -> None:
    """In the place of what lm-eval adds to its results."""


def _own_only(find: Callable[[str, Path], Any]) -> Callable[[str, Path], Any]:
    """What finds the function that ``!function`` names, for lm-eval's own task files alone."""
    own = Path(module("lm_eval.tasks").__file__).resolve().parent

    def find_own(name: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(own):
            raise InvalidRecipeError(
                f"compat.evaluate.lm_eval: {folder}: !function {name} would run Python code; read"
                " what it names, and give --trust-remote-code if you trust it"
            )
        return find(name, folder)

    return find_own


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """datasets takes relative data files from here, and nothing else can be told to it.

    Modules are still found where they were before: a ``json.py`` beside the data is not code
    that somebody asked for.
    """
    before, path = os.getcwd(), sys.path[:]
    # An empty entry, as in a notebook, means whatever folder is the present one.
    sys.path[:] = [before if entry in ("", os.curdir) else entry for entry in path]
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
