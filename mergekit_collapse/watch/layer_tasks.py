"""Tasks in MergeKit's graph that take a layer's merged tensors, and the order they need."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mergekit.common import dtype_from_name
from mergekit.graph import ExecutionSchedule, Executor, Task, TaskHandle, build_schedule
from mergekit.io.tasks import FinalizeModel, SaveTensor, TensorWriterTask

Step = Callable[[int, Mapping[str, torch.Tensor]], None]


class WatchLayer(Task[int]):  # type: ignore[misc]  # MergeKit ships no types
    """Hands the tensors of one stage, as they will be saved, to ``step``; gives the stage.

    Stages follow one another: 0 is the embeddings, k layer k, the last the norm and the head.
    """

    stage: int
    step: Step
    saves: tuple[SaveTensor, ...]
    before: "WatchLayer | None" = None

    # Two stages are never the same task, and hashing `before` would walk the whole chain.
    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def arguments(self) -> dict[str, Task]:
        """The merged tensors, and the stage before this one."""
        chain = {} if self.before is None else {"before": self.before}
        return {f"tensor {save.tensor_name}": save.tensor_task for save in self.saves} | chain

    def execute(self, **arguments: Any) -> int:
        """Run the stage on the probes."""
        tensors = {}
        for save in self.saves:
            # An optional tensor may have come to nothing.
            if (tensor := arguments[f"tensor {save.tensor_name}"]) is not None:
                dtype = dtype_from_name(save.dtype) if save.dtype else tensor.dtype
                tensors[save.tensor_name] = tensor.to(dtype)
        self.step(self.stage, tensors)
        return self.stage


def watch_layers(
    saves: Sequence[SaveTensor], stage_of: Callable[[str], int | None], stages: int, step: Step
) -> list[WatchLayer]:
    """One task a stage, each after the one before.

    Args:
        saves: of the whole plan.
        stage_of: the stage that needs a tensor, None for a tensor that none needs.
        stages: how many there are.
        step: called with each stage and its tensors, in order.
    """
    tasks: list[WatchLayer] = []
    for stage in range(stages):
        own = tuple(save for save in saves if stage_of(save.tensor_name) == stage)
        before = tasks[-1] if tasks else None
        tasks.append(WatchLayer(stage=stage, step=step, saves=own, before=before))
    return tasks


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
    done: dict[TaskHandle, None] = {}
    # Of its own targets alone: with more of them it would break ties another way.
    for handle in build_schedule(own, cached_values={}).tasks:
        done[handle] = None
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
