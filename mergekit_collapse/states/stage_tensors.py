"""The tensors of one stage of one model: from its files, with what an adapter adds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.states.lora_update import LoraAdapter, LoraUpdate
from mergekit_collapse.states.tensor_files import TensorFiles
from mergekit_collapse.states.weights import require_finite

StagesOf = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class StagedFiles:
    """A checkpoint whose tensors are sorted by stage.

    Attributes:
        where: which model, the beginning of every message.
        files: of the model.
        stages: per stage the names of its tensors in the files.
    """

    where: str
    files: TensorFiles
    stages: tuple[tuple[str, ...], ...]

    def load(self, stage: int) -> dict[str, torch.Tensor]:
        """One stage in its stored precision.

        Raises:
            EvaluationError: a file cannot be read, or a weight is NaN or infinite.
        """
        tensors = {name: self.files.read(name) for name in self.stages[stage]}
        require_finite(self.where, tensors.items())
        return tensors

    def equals(self, other: "StagedFiles", stage: int) -> bool:
        """Whether one stage of another checkpoint is the same bit for bit."""
        # A few bytes of each tell nearly all models apart.
        return self.may_equal(other, stage) and all(
            self.files.equal(n, other.files, n) for n in self.stages[stage]
        )

    def may_equal(self, other: "StagedFiles", stage: int) -> bool:
        """Whether one stage agrees in names, shapes and a few bytes of every tensor."""
        mine, its = self.stages[stage], other.stages[stage]
        return mine == its and all(self.files.may_equal(n, other.files, n) for n in mine)


def sort_by_stage(
    where: str, files: TensorFiles, stages_of: StagesOf, stage_count: int
) -> StagedFiles:
    """Sort a checkpoint's tensors by the stages that need them.

    Args:
        stages_of: of ``LayeredModel``; a tensor of no stage is left out.
    """
    stages: list[list[str]] = [[] for _ in range(stage_count)]
    for name in sorted(files.names):
        for stage in stages_of(name):
            stages[stage].append(name)
    return StagedFiles(where, files, tuple(map(tuple, stages)))


def adapted(
    tensors: Mapping[str, torch.Tensor], adapter: LoraAdapter, device: torch.device
) -> dict[str, torch.Tensor]:
    """A stage with the adapter merged into it, the changed tensors in float32 on ``device``.

        θ' = θ + scaling · B · A        or the adapter's own tensor in the place of θ

    That is what MergeKit merges, which adds an adapter to its base before anything else.

    Args:
        tensors: by the checkpoint's names, in stored precision.

    Raises:
        EvaluationError: the adapter does not fit, or is NaN or infinite.
    """
    changed: dict[str, torch.Tensor] = dict(tensors)
    for name in adapter.changed & tensors.keys():
        weight, whole = tensors[name], adapter.whole(name)
        update = adapter.update(name, weight.shape)
        if whole is not None:
            if whole.shape != weight.shape:
                raise EvaluationError(
                    f"{adapter.where}: its {name} is {list(whole.shape)}, but in the base it is"
                    f" {list(weight.shape)}; check that the adapter was trained on this base"
                )
            require_finite(adapter.where, [(name, whole)])
            weight = changed[name] = whole
        if update is not None:
            factors = [(f"{name} (lora_A)", update.down), (f"{name} (lora_B)", update.up)]
            require_finite(adapter.where, factors)
            changed[name] = _plus(weight.to(device), update)
    return changed


def _plus(weight: torch.Tensor, update: LoraUpdate) -> torch.Tensor:
    exact = torch.promote_types(weight.dtype, torch.float32)
    down, up = update.down.to(weight.device, exact), update.up.to(weight.device, exact)
    left, right = (down.T, up.T) if update.transposed else (up, down)
    return torch.addmm(weight.to(exact), left, right, alpha=update.scaling)


def common_starts(models: Sequence[StagedFiles]) -> list[list[int]]:
    """For every model and stage, the first model that is the same up to that stage.

    Args:
        models: of one configuration.
    """
    starts: list[list[int]] = []
    for place, model in enumerate(models):
        first = [place] * len(model.stages)
        alike = list(range(place))
        for stage in range(len(model.stages)):
            # One of those that are the same stands for all of them.
            others = dict.fromkeys(starts[other][stage] for other in alike)
            found = next((o for o in others if model.equals(models[o], stage)), None)
            if found is None:
                break
            first[stage] = found
            alike = [other for other in alike if starts[other][stage] == found]
        starts.append(first)
    return starts
