"""For the length of one merge, a planner and an executor of ours stand in MergeKit's place."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mergekit.merge
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.io.tasks import SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

from mergekit_collapse.watch.layer_tasks import WatchedExecutor

# From the output's configuration and the planned tensors to what else is to be done.
Plan = Callable[[Any, Sequence[SaveTensor]], Sequence[Task]]

# One merge at a time; a merge in another thread, which is not ours, keeps its own plan.
_lock = threading.RLock()
_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)

# They draw from one stream of random numbers, in the order in which tensors are merged.
_RANDOM = frozenset({"arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear"})


class WatchedPlanner(MergePlanner):  # type: ignore[misc]  # MergeKit ships no types
    """MergeKit's plan with further targets."""

    def plan_to_disk(self, out_path: str) -> list[Task]:
        """The same tasks, then those of the watch."""
        targets = list(super().plan_to_disk(out_path))
        if (plan := _plan.get()) is None:
            return targets
        saves = [task for task in targets if isinstance(task, SaveTensor)]
        return [*targets, *plan(self.out_model_config, saves)]


def may_reorder(config: MergeConfiguration, options: MergeOptions) -> bool:
    """Whether the order of the layers makes no difference to the weights."""
    return options.random_seed is None or config.merge_method not in _RANDOM


@contextmanager
def planned_with(plan: Plan, *, saving: bool = True, in_layer_order: bool = True) -> Iterator[None]:
    """Within the block, this thread's merges run with further tasks.

    Args:
        plan: gives the further tasks.
        saving: whether the merged tensors are written.
        in_layer_order: whether the layers are merged in the order of their numbers.
    """
    with _lock:
        module = mergekit.merge
        planner, executor = module.MergePlanner, module.Executor
        token = _plan.set(plan)
        module.MergePlanner = WatchedPlanner
        module.Executor = functools.partial(
            WatchedExecutor, saving=saving, in_layer_order=in_layer_order
        )
        try:
            yield
        finally:
            module.MergePlanner, module.Executor = planner, executor
            _plan.reset(token)
