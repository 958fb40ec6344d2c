"""Tasks in MergeKit's graph that take a layer's merged tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mergekit.common import dtype_from_name
from mergekit.graph import Task
from mergekit.io.tasks import SaveTensor

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.watch.shelf import Shelf, Shelved

Step = Callable[[int, Mapping[str, torch.Tensor]], None]
GiveUp = Callable[[EvaluationError], None]


class _Own(Task[Any]):  # type: ignore[misc]  # MergeKit ships no types
    """Tasks of which no two are the same; hashing their fields would walk a whole chain of them."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class SetAside(_Own):
    """Hands a merged tensor to ``keep``, and what that gives to the stage."""

    stage: int
    save: SaveTensor
    keep: Callable[[int, torch.Tensor], torch.Tensor | Shelved | None]

    def arguments(self) -> dict[str, Task]:
        """The merged tensor."""
        return {"tensor": self.save.tensor_task}

    def execute(self, tensor: torch.Tensor | None) -> torch.Tensor | Shelved | None:
        """An optional tensor may have come to nothing."""
        return None if tensor is None else self.keep(self.stage, tensor)


class WatchLayer(_Own):
    """Hands the tensors of one stage, as they will be saved, to ``step``; gives the stage.

    Stages follow one another: 0 is the embeddings, k layer k, the last the norm and the head.
    """

    stage: int
    step: Step
    saves: tuple[SaveTensor, ...]
    aside: tuple[SetAside, ...] = ()
    before: "WatchLayer | None" = None

    def arguments(self) -> dict[str, Task]:
        """The merged tensors, and the stage before this one."""
        chain = {} if self.before is None else {"before": self.before}
        tensors = self.aside or [save.tensor_task for save in self.saves]
        names = [f"tensor {save.tensor_name}" for save in self.saves]
        return dict(zip(names, tensors, strict=True)) | chain

    def execute(self, **arguments: Any) -> int:
        """Run the stage on the probes."""
        tensors = {}
        for save in self.saves:
            tensor = arguments[f"tensor {save.tensor_name}"]
            if isinstance(tensor, Shelved):
                tensor = tensor.take()
            # An optional tensor may have come to nothing.
            if tensor is not None:
                dtype = dtype_from_name(save.dtype) if save.dtype else tensor.dtype
                tensors[save.tensor_name] = tensor.to(dtype)
        self.step(self.stage, tensors)
        return self.stage


class _Queue:
    """Runs the stages in order; the tensors of those that are not next wait on a shelf."""

    def __init__(self, step: Step, give_up: GiveUp) -> None:
        self._step, self._give_up = step, give_up
        self._next, self._shelf = 0, Shelf()
        self._over = False

    def run(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        if not self._over:
            self._step(stage, tensors)
        self._next = stage + 1

    def keep(self, stage: int, tensor: torch.Tensor) -> torch.Tensor | Shelved | None:
        if self._over or stage == self._next:
            return None if self._over else tensor
        try:
            return self._shelf.put(tensor)
        except EvaluationError as error:
            self._give_up(error)
            self._over = True
            return None


def watch_layers(
    saves: Sequence[SaveTensor],
    stage_of: Callable[[str], int | None],
    stages: int,
    step: Step,
    give_up: GiveUp,
    *,
    in_layer_order: bool = True,
) -> list[WatchLayer]:
    """One task a stage, each after the one before.

    Args:
        saves: of the whole plan.
        stage_of: the first stage that needs a tensor, None for a tensor that none needs.
        stages: how many there are.
        step: called with each stage and its tensors, in order.
        give_up: called where there is no room for those that wait; unless it raises, no further
            stage is run, and the merge goes on.
        in_layer_order: whether MergeKit makes the tensors in that order. Else those that are made
            before it is their turn wait on disk, so that no more than a layer is in memory.
    """
    tasks: list[WatchLayer] = []
    queue = _Queue(step, give_up)
    for stage in range(stages):
        own = tuple(save for save in saves if stage_of(save.tensor_name) == stage)
        aside: tuple[SetAside, ...] = ()
        if not in_layer_order:
            aside = tuple(SetAside(stage=stage, save=save, keep=queue.keep) for save in own)
        before = tasks[-1] if tasks else None
        tasks.append(WatchLayer(stage=stage, step=queue.run, saves=own, aside=aside, before=before))
    return tasks
