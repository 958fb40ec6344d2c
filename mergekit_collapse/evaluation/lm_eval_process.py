"""lm-eval inside this process: found, kept quiet, and fenced in."""

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError


def module(name: str) -> Any:
    """Part of lm-eval, or of what comes with it: no dependency of this package."""
    return importlib.import_module(name)


@contextlib.contextmanager
def calm(trusted: bool) -> Iterator[None]:
    """lm-eval without its log, and with templates that cannot reach Python's insides.

    Raises:
        EvaluationError: templates cannot be fenced in in this version.
    """
    utils, evaluator = module("lm_eval.utils"), module("lm_eval.evaluator")
    # It asks git and pip for what no metric depends on, and git complains on the terminal.
    asked = {"get_git_commit_hash": str, "add_env_info": _nothing}
    parts: dict[tuple[Any, str], Any] = {
        (evaluator, name): part for name, part in asked.items() if hasattr(evaluator, name)
    }
    if not trusted:
        if not hasattr(utils, "env"):
            raise EvaluationError(
                "this version of lm-eval keeps its templates where they cannot be fenced in;"
                " install lm-eval 0.4.13, or give --trust-remote-code if you trust the tasks"
            )
        jinja, sandboxed = module("jinja2"), module("jinja2.sandbox")
        sandbox = sandboxed.SandboxedEnvironment(
            undefined=jinja.StrictUndefined, keep_trailing_newline=True
        )
        sandbox.filters.update(utils.env.filters)
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


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """datasets takes relative data files from here, and nothing else can be told to it."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
