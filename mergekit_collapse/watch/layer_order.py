"""The order in which MergeKit's tasks run, so that each layer is watched when it is there."""

from collections.abc import Sequence
from typing import Any

from mergekit.graph import ExecutionSchedule, Executor, TaskHandle, build_schedule
from mergekit.io.tasks import FinalizeModel, SaveTensor, TensorWriterTask

from mergekit_collapse.watch.layer_tasks import SetAside, WatchLayer


class WatchedExecutor(Executor):  # type: ignore[misc]  # MergeKit ships no types
    """Runs a plan that has stages in an order that suits them; any other as MergeKit does.

    Args:
        saving: whether what is merged is written.
        in_layer_order: whether the layers are merged in the order of their numbers.
    """

    def __init__(
        self,
        targets: Any,
        *arguments: Any,
        saving: bool = True,
        in_layer_order: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__(targets, *arguments, **keywords)
        stages = [h for h in self.targets if isinstance(h.task(), WatchLayer)]
        if stages:
            arranged = (layer_order if in_layer_order else stock_order)(self.targets, stages)
            if not saving:
                arranged = [h for h in arranged if not isinstance(h.task(), _WRITING)]
            self.schedule = _with_lifetimes(arranged)


_WRITING = (SaveTensor, FinalizeModel, TensorWriterTask)


def layer_order(targets: Sequence[TaskHandle], stages: Sequence[TaskHandle]) -> list[TaskHandle]:
    """MergeKit's schedule of each stage, one after the other, then that of what is left.

    MergeKit's own order is that of the tensors' names as text (0, 1, 10, 11, ..., 2, 20, ...), so
    that what a watch holds would grow to most of the model. Here the tensors of one stage are
    made, saved, watched and let go of before those of the next.
    """
    saves: dict[TaskHandle, TaskHandle] = {
        handle.arguments()["tensor"]: handle
        for handle in targets
        if isinstance(handle.task(), SaveTensor)
    }
    parts = [
        [*(saves[dep] for dep in stage.arguments().values() if dep in saves), stage]
        for stage in stages
    ]
    done: dict[TaskHandle, None] = {}
    for part in [*parts, list(targets)]:
        left = [handle for handle in part if handle not in done]
        done |= dict.fromkeys(build_schedule(left, cached_values=dict(done)).tasks)
    return list(done)


def stock_order(targets: Sequence[TaskHandle], stages: Sequence[TaskHandle]) -> list[TaskHandle]:
    """MergeKit's own schedule, each stage put in where its tensors are there."""
    own, due = [handle for handle in targets if handle not in stages], list(stages)
    aside: dict[TaskHandle, list[TaskHandle]] = {}
    for stage in stages:
        for handle in stage.arguments().values():
            if isinstance(handle.task(), SetAside):
                aside.setdefault(handle.arguments()["tensor"], []).append(handle)
    done: dict[TaskHandle, None] = {}
    # Of its own targets alone: with more of them it would break ties another way.
    for handle in build_schedule(own, cached_values={}).tasks:
        done |= dict.fromkeys([handle, *aside.get(handle, ())])
        while due and done.keys() >= set(due[0].arguments().values()):
            done[due.pop(0)] = None
    return list(done)


def _with_lifetimes(tasks: list[TaskHandle]) -> ExecutionSchedule:
    """A value is let go of after the last task that takes it."""
    last_use = {}
    for index, task in enumerate(tasks):
        last_use[task] = index
        last_use |= dict.fromkeys(task.arguments().values(), index)
    return ExecutionSchedule(tasks=tasks, last_use_index=last_use)
