"""Models run as tasks of a Ray cluster."""

import importlib
import importlib.util
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from mergekit_collapse.errors import CompatError, EvaluationError, InvalidRecipeError
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.states.devices import take
from mergekit_collapse.states.parts import (
    Part,
    PartStates,
    Work,
    absolute,
    deal,
    on_device,
    prepare,
    run_part,
)
from mergekit_collapse.states.run_models import Run
from mergekit_collapse.states.state_store import StateStore

# A part whose worker is lost is begun anew so many times.
_RETRIES = 3

# Ray's own settings, unless the user has others: it sends no statistics, and gives up a task
# that memory is never enough for.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(_RETRIES)}


def require_ray() -> None:
    """Say that Ray is missing before anything is measured.

    Raises:
        InvalidRecipeError: it is not installed.
    """
    try:
        found = importlib.util.find_spec("ray") is not None
    except ValueError:  # it was put out of reach
        found = False
    if not found:
        raise InvalidRecipeError(
            "--ray: ray is not installed here; install it with "
            "`pip install 'mergekit-collapse[ray]'`, or leave --ray out"
        )


class OnRay:
    """Deals parts to the workers of a cluster; see ``RunModels``.

    Every worker has this package, in the same version, and finds the models by the same paths,
    as on a shared file system. A worker that is lost is replaced; an error is not tried again.
    Every number is the one that this machine would give: workers use as many threads, and one
    with another processor, GPU or version of a package refuses.

    Args:
        address: of a cluster; "" for the one that the program is in or that ``RAY_ADDRESS``
            names, else a cluster on this machine alone, for as long as it is needed.
        store: of earlier results, which workers use too where they have its folder.
        task: what a worker does.
    """

    def __init__(
        self,
        address: str,
        store: StateStore,
        task: Callable[[Part, Work], PartStates] = run_part,
    ) -> None:
        self._address, self._store, self._task = address, store, task

    def __call__(self, run: Run) -> Mapping[int, str]:
        """As ``run_models``; workers bring models into memory in their own way."""
        if not run.models:
            return {}
        placed = replace(run, models=absolute(run.models))
        work = prepare(placed, self._store)
        gpu = torch.device(run.options.device).type == "cuda"
        if gpu:
            # Ray shows a worker its own GPU alone.
            work = on_device(work, replace(work.options, device="cuda"))
        asked = {one.index: one for one in run.models}
        reasons: dict[int, str] = {}
        with (
            _cluster(self._address) as ray,
            tqdm(total=len(run.models), unit="model", disable=not run.options.progress) as bar,
        ):
            each_task, places = _resources(ray, work.threads, gpu)
            remote = ray.remote(**each_task, max_retries=_RETRIES)(self._task)
            shared = ray.put(work)
            parts = deal(placed.models, places, run.beside)
            waiting = {remote.remote(part, shared): part for part in parts}
            try:
                while waiting:
                    (ready, *_), _rest = ray.wait(list(waiting), num_returns=1)
                    found = _result(ray, ready, waiting.pop(ready))
                    take(found, asked, run.beside, run.put)
                    reasons |= found.reasons
                    bar.update(len(found.states))
            finally:
                for task in waiting:
                    ray.cancel(task, force=True)
        return dict(sorted(reasons.items()))


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected; what was connected before stays so."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    # Of a cluster that runs already, these are its own.
    own: dict[str, Any] = {"include_dashboard": False} if where == "local" else {}
    try:
        if place := re.fullmatch(r"(?:ray://)?\[?([^\[\]]+)\]?:(\d{1,5})", where):
            # Ray itself would try for minutes.
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        ray.init(address=where, logging_level="warning", **own)
    except Exception as error:  # of many families, by what could not be reached
        raise InvalidRecipeError(
            f"--ray {where}: no cluster: {first_line(error)}; name the address of one that was "
            "begun by `ray start --head`, or leave it out to use this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _resources(ray: Any, threads: int, gpu: bool) -> tuple[dict[str, int], int]:
    """What each task takes, and how many of them the cluster runs at once.

    Raises:
        EvaluationError: no node has a GPU, and tasks would wait for one forever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpu:
        places = sum(int(node.get("GPU", 0)) for node in nodes)
        if not places:
            raise EvaluationError(
                "--cuda: no node of the Ray cluster has a GPU; add one, or leave --cuda out"
            )
        return {"num_gpus": 1, "num_cpus": 0}, places
    # A node with fewer processors than threads runs them all the same, a task at a time.
    cpus = min(threads, max(int(node.get("CPU", 0)) for node in nodes))
    places = sum(int(node.get("CPU", 0)) // cpus for node in nodes) if cpus else 1
    return {"num_cpus": cpus}, places


def _result(ray: Any, task: Any, part: Part) -> PartStates:
    try:
        found = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CompatError):
            raise error.cause from None
        raise EvaluationError(
            f"{part.names}: a Ray worker failed: {first_line(error.cause)}; check that every node "
            "has the same mergekit-collapse and the packages that it needs"
        ) from error
    except ray.exceptions.RayError as error:
        raise EvaluationError(
            f"{part.names}: the Ray worker was lost {_RETRIES + 1} times "
            f"({type(error).__name__}: {first_line(error)}); it may need more memory than its "
            "node has: use nodes with more, or lower probes.samples"
        ) from error
    assert isinstance(found, PartStates)
    return found
