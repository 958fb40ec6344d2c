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

from mergekit_collapse.watch.layer_order import WatchedExecutor

# From the output's configuration, the planned tensors and whether the layers come in order, to
# what else is to be done.
Plan = Callable[[Any, Sequence[SaveTensor], bool], Sequence[Task]]

# One merge at a time; a merge in another thread, which is not ours, keeps its own plan.
_lock = threading.RLock()
_plan: ContextVar[tuple[Plan, bool] | None] = ContextVar("plan", default=None)

# Of these it is known that they draw no random numbers. The others may draw from one stream, in
# the order in which tensors are merged.
_DETERMINISTIC = frozenset(
    {
        *("breadcrumbs", "breadcrumbs_ties", "karcher", "linear", "model_stock", "multislerp"),
        *("nearswap", "nuslerp", "passthrough", "rescaled_mean", "sce", "slerp"),
        *("task_arithmetic", "ties", "weighted_karcher"),
    }
)


class WatchedPlanner(MergePlanner):  # type: ignore[misc]  # MergeKit ships no types
    """MergeKit's plan with further targets."""

    def plan_to_disk(self, out_path: str) -> list[Task]:
        """The same tasks, then those of the watch."""
        targets = list(super().plan_to_disk(out_path))
        if (set_plan := _plan.get()) is None:
            return targets
        plan, in_layer_order = set_plan
        saves = [task for task in targets if isinstance(task, SaveTensor)]
        return [*targets, *plan(self.out_model_config, saves, in_layer_order)]


def may_reorder(config: MergeConfiguration, options: MergeOptions) -> bool:
    """Whether the order of the layers makes no difference to the weights."""
    return options.random_seed is None or not may_draw(config)


def may_draw(config: MergeConfiguration) -> bool:
    """Whether the method may draw random numbers, so that two merges differ without a seed."""
    return config.merge_method not in _DETERMINISTIC


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
        token = _plan.set((plan, in_layer_order))
        module.MergePlanner = WatchedPlanner
        module.Executor = functools.partial(
            WatchedExecutor, saving=saving, in_layer_order=in_layer_order
        )
        try:
            yield
        finally:
            module.MergePlanner, module.Executor = planner, executor
            _plan.reset(token)
