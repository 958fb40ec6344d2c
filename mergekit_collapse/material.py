"""What the experts answered, kept until the merged model has been held against it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mergekit_collapse.evaluation.expert_scores import ExpertScores
from mergekit_collapse.evaluation.merging_loss import TaskLoss, merging_losses
from mergekit_collapse.evaluation.scoring_set import ScoringSet
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.layer_reading import LayerReading, LayerStates, read_layer
from mergekit_collapse.geometry.measured import Measured, measured_distortion
from mergekit_collapse.probes.probes import ProbeSet
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.recipe.source_layers import source_layers
from mergekit_collapse.shapes import Float32
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.states import LayerStatistics, ModelLayers, States


@dataclass(frozen=True)
class Material:
    """A measured recipe with its states.

    Attributes:
        options: how the experts were loaded, and how the merged model is to be.
        states: of all models of the recipe.
        hidden, predictive: measured from them.
        scoring: the tasks that have targets and an owner.
        own_scores: each expert's on its own task, as far as they are known yet.
        unlayered: why these models cannot be run layer by layer; None if they can.
    """

    recipe: Recipe
    options: LoadOptions
    probe_set: ProbeSet
    probes: TokenizedProbes
    states: States
    hidden: Geometry
    predictive: Geometry | None
    scoring: ScoringSet
    own_scores: ExpertScores
    unlayered: str | None

    def distortion(self, merged: States) -> tuple[Measured, Measured | None, str | None]:
        """The merged model in hidden space and, or why not, in predictive space.

        Args:
            merged: of the merged model alone, on the same probes.
        """
        tasks = self.probes.task_of_probe
        hidden = measured_distortion(self.states.hidden, merged.hidden, self.hidden, tasks)
        if self.states.predictive is None or self.predictive is None:
            return hidden, None, self.states.predictive_reason
        if merged.predictive is None:
            return hidden, None, merged.predictive_reason
        predictive = measured_distortion(
            self.states.predictive, merged.predictive, self.predictive, tasks
        )
        return hidden, predictive, None

    def reading(
        self,
        layer: int,
        depth: int,
        pooled: Float32[np.ndarray, "probe feature"],
        statistics: LayerStatistics,
    ) -> LayerReading:
        """One layer of a merged model of ``depth`` layers against the experts at theirs."""
        experts = self.states.layers
        of_expert = source_layers(self.recipe, [len(m.pooled) - 1 for m in experts], depth)[layer]
        return read_layer(
            layer,
            LayerStates(pooled, statistics.variance, statistics.effective_rank),
            [
                None if k is None else _states_after(expert, k)
                for expert, k in zip(experts, of_expert, strict=True)
            ],
        )

    @property
    def unscored(self) -> tuple[str, ...]:
        """What is to be said of tasks that have targets, and no owner to be held against."""
        rows = self.probe_set.probes
        aimed = {probe.task for probe in rows if probe.target is not None}
        return tuple(
            f"task {task.name} has targets but no model, so that it has no merging loss"
            for index, task in enumerate(self.probe_set.tasks)
            if index in aimed and task.owner is None
        )

    def losses(self, merged_scores: Mapping[int, float]) -> tuple[TaskLoss, ...]:
        """Merging loss of every task whose owner was scored.

        Args:
            merged_scores: of the merged model, by the task's index in the probe set.
        """
        known = self.own_scores.scores
        tasks = tuple(task for task in self.scoring.tasks if task.task in known)
        return merging_losses(replace(self.scoring, tasks=tasks), known, merged_scores)


def _states_after(model: ModelLayers, layer: int) -> LayerStates:
    statistics = model.statistics[layer]
    return LayerStates(model.pooled[layer], statistics.variance, statistics.effective_rank)
