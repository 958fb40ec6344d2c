"""The merged model on tasks of EleutherAI's lm-eval, where that is installed."""

import difflib
import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.evaluation.lm_eval_process import calm, in_folder, module
from mergekit_collapse.evaluation.lm_eval_tasks import (
    group_name,
    local_path,
    require_data_only,
    task_files,
)
from mergekit_collapse.foreign_errors import told_as_evaluation_error

INSTALL_HINT = "pip install 'mergekit-collapse[lm-eval]'"
BATCH_SIZE = 8


def require_lm_eval() -> None:
    """Raise if lm-eval cannot be imported.

    Raises:
        InvalidRecipeError: with the command that installs it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InvalidRecipeError(
            "compat.evaluate.lm_eval: lm-eval is not installed; install it with"
            f" {INSTALL_HINT}, or remove the key"
        )


def require_tasks(tasks: Sequence[str], folder: Path, trust_remote_code: bool) -> None:
    """Raise now what `run_lm_eval` would raise about these tasks after a merge.

    Files are only read, and lm-eval's own index, which takes seconds, is built only where a task
    is not a path. Nothing is fetched: data that cannot be had are not noticed.

    Args:
        tasks: entries of ``evaluate.lm_eval``.
        folder: what paths of task files are relative to.
        trust_remote_code: whether task files may name Python code.

    Raises:
        InvalidRecipeError: lm-eval is not installed, a path that is not there, a file that holds
            no YAML or names code, or a name that lm-eval does not know, with those near it.
    """
    require_lm_eval()
    paths = {task: local_path(task, folder) for task in tasks}
    for path in filter(None, paths.values()):
        _checked_group(path, trust_remote_code)
    if names := [task for task, path in paths.items() if path is None]:
        _known_names(names)


def run_lm_eval(
    tasks: Sequence[str],
    model_folder: Path,
    *,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    folder: Path | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of every task, as lm-eval computes them without a chat template.

    A task is a name of lm-eval's own (also a group, a tag or a pattern such as ``mmlu_*``,
    whose data come from the hub), a task file, or a folder of task files. Files that lie beside
    the recipe need no network; ``data_files`` in one are relative to its own folder. Unless
    ``trust_remote_code`` is given, such files may not name Python code, and templates run in
    Jinja's sandbox.

    Args:
        dtype: as torch names it, such as ``bfloat16``.
        folder: what paths of task files are relative to; the working directory by default.
        limit: most rows of each task; None for all.

    Returns:
        Per task (and per group that was asked for), each metric's value. A metric that goes
        through a filter is called ``metric,filter``.

    Raises:
        InvalidRecipeError: lm-eval is not installed, an unknown task, or one that names code.
        EvaluationError: data that cannot be had, a model that cannot be run, NaN.
    """
    require_lm_eval()
    # Task files are loaded from their own folder, where a relative path would mean another.
    model_folder = model_folder.resolve()
    paths = {task: local_path(task, folder or Path.cwd()) for task in tasks}
    with calm(trust_remote_code):
        loaded: list[Any] = []
        for path in filter(None, paths.values()):
            loaded += _local_tasks(path, trust_remote_code)
        names = [task for task, path in paths.items() if path is None]
        loaded += _known_tasks(names) if names else []
        mend = "check the model in transformers and the tasks in lm_eval by themselves"
        with told_as_evaluation_error(f"lm-eval on {model_folder}", mend):
            language_model = module("lm_eval.models.huggingface").HFLM(
                pretrained=str(model_folder),
                device=device,
                dtype=dtype,
                batch_size=BATCH_SIZE,
                trust_remote_code=trust_remote_code,
            )
            found = module("lm_eval").simple_evaluate(
                model=language_model,
                tasks=loaded,
                # All are loaded; an index of lm-eval's own would take seconds.
                task_manager=module("lm_eval.tasks").TaskManager(include_defaults=False),
                limit=limit,
                # Standard errors by resampling take longer than the tasks.
                bootstrap_iters=0,
                log_samples=False,
            )
    return _metrics(found["results"])


def _checked_group(path: Path, trusted: bool) -> str | None:
    """The group that a file defines, or None, once all that is loaded with it is checked."""
    group = group_name(path) if path.is_file() else None
    files = task_files(path if group is None else path.parent)
    if not trusted:
        # Filled when the metrics are imported.
        module("lm_eval.api.metrics")
        require_data_only(files, set(module("lm_eval.api.registry").metric_registry.keys()))
    return group


def _local_tasks(path: Path, trusted: bool) -> list[Any]:
    """The tasks of a file or a folder; a group brings its tasks with it."""
    group = _checked_group(path, trusted)
    root = path if path.is_dir() else path.parent
    manager_class = module("lm_eval.tasks").TaskManager
    where, mend = f"lm-eval task {path}", "try it with lm_eval by itself"
    with told_as_evaluation_error(where, mend), in_folder(root):
        if path.is_file() and group is None:
            return _load(manager_class(include_defaults=False), str(path))
        manager = manager_class(include_path=str(root), include_defaults=group is not None)
        names = manager.all_subtasks if group is None else [group]
        return [loaded for name in names for loaded in _load(manager, name)]


def _load(manager: Any, name: str) -> list[Any]:
    """One group, which holds its tasks, or tasks."""
    loaded = manager.load([name])
    group = loaded["groups"].get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


@functools.cache
def _own_manager() -> Any:
    """lm-eval's index of its own tasks, kept: it is needed before a merge and after it."""
    return module("lm_eval.tasks").TaskManager()


def _known_names(names: Sequence[str]) -> list[str]:
    """The tasks, groups and tags that names and patterns mean, each once."""
    manager, wanted = _own_manager(), list[str]()
    for name in names:
        matches = [name] if name in manager.all_tasks else manager.match_tasks([name])
        if not matches:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks`"
            raise InvalidRecipeError(
                f"compat.evaluate.lm_eval: lm-eval has no task {name!r}; {hint} A task of your own"
                " is the path of its .yaml file"
            )
        wanted += matches
    return list(dict.fromkeys(wanted))


def _known_tasks(names: Sequence[str]) -> list[Any]:
    mend = "its data come from the hub: check the network, or use a task file with data of its own"
    loaded: list[Any] = []
    for name in _known_names(names):
        with told_as_evaluation_error(f"lm-eval task {name!r}", mend):
            loaded += _load(_own_manager(), name)
    return loaded


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for task, values in results.items():
        metrics[task] = {}
        for key, value in values.items():
            # Names, counts and "N/A" stand beside the metrics, which alone have a comma.
            if "," not in key or "_stderr" in key or isinstance(value, (str, bool)):
                continue
            if not math.isfinite(float(value)):
                raise EvaluationError(
                    f"lm-eval task {task!r}: {key} is {value}; the model or the task is broken"
                )
            metrics[task][key.removesuffix(",none")] = float(value)
    return metrics
