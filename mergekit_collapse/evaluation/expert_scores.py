"""Every expert's score on its own task, which merging loss divides by and stand-ins must reach."""

import logging
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.evaluation.own_scores import OwnScores, score_key
from mergekit_collapse.evaluation.scoring import Scorer, score_model
from mergekit_collapse.evaluation.scoring_set import ScoredTask, ScoringSet
from mergekit_collapse.states.forward import has_language_head
from mergekit_collapse.states.hidden_states import default_batch_tokens
from mergekit_collapse.states.loader import LoadOptions, each_model
from mergekit_collapse.states.streaming import Extra

LOG = logging.getLogger(__name__)

# Number of a model: the experts in whose place it could stand.
StandIns = Mapping[int, Collection[int]]
NOBODY: StandIns = MappingProxyType({})


class ExpertScores:
    """Gathered while the experts are in memory one after another; known ones are not run.

    Args:
        experts: in the order of the recipe.
        kept: the scores of earlier runs.
        stand_ins: of ``experts``, those that are to be scored on the tasks of others.

    Attributes:
        scores: of each task's owner, by the task's index in the probe set.
        of_stand_ins: of the others, by the model's number and the task's index.
    """

    def __init__(
        self,
        scoring: ScoringSet,
        experts: Sequence[ModelReference],
        options: LoadOptions,
        kept: OwnScores,
        stand_ins: StandIns = NOBODY,
    ) -> None:
        self._scoring, self._experts = scoring, experts
        self._options, self._kept = options, kept
        self.scores: dict[int, float] = {}
        self.of_stand_ins: dict[tuple[int, int], float] = {}
        self._wanted = [(task.owner, task) for task in scoring.tasks]
        for index, places in stand_ins.items():
            self._wanted += [(index, task) for task in scoring.tasks if task.owner in places]
        self._keys = {
            (index, task.task): score_key(
                experts[index], scoring, task.task, options, full=kept.full
            )
            for index, task in self._wanted
        }
        for index, task in self._wanted:
            if (score := kept.get(self._keys[index, task.task])) is not None:
                self._put(index, task, score)

    @property
    def lacking(self) -> tuple[tuple[int, ScoredTask], ...]:
        """Models with the tasks that they were not scored on yet."""
        return tuple(
            (index, task)
            for index, task in self._wanted
            if not (
                task.task in self.scores
                if index == task.owner
                else (index, task.task) in self.of_stand_ins
            )
        )

    def due(self, index: int) -> Scorer | None:
        """What the model of that number is still to be run for, None if nothing."""
        tasks = [task.task for task in self._due(index)]
        if not tasks:
            return None
        return Scorer(self._scoring, tasks, model=f"model {self._experts[index]}")

    def settle(self, index: int, extra: Extra) -> None:
        """Take the scores of a model that was run for all that was due."""
        assert isinstance(extra, Scorer)
        self._take(index, extra.scores())

    def visit(self, index: int, model: Any) -> None:
        """Score the model of that number, which is whole in memory, if it is lacking."""
        due = self._due(index)
        if not due:
            return
        if not has_language_head(model):
            LOG.warning("%s has no language head: no merging loss", self._experts[index])
            return
        tokens = default_batch_tokens(self._options.device)
        self._take(
            index, score_model(model, self._scoring, [t.task for t in due], max_tokens=tokens)
        )

    def _due(self, index: int) -> list[ScoredTask]:
        return [task for model, task in self.lacking if model == index]

    def _take(self, index: int, found: Mapping[int, float]) -> None:
        for task in self._due(index):
            self._put(index, task, score := found[task.task])
            name, key = str(self._experts[index]), self._keys[index, task.task]
            self._kept.put(key, score, model=name, task=task.name)

    def _put(self, index: int, task: ScoredTask, score: float) -> None:
        if index == task.owner:
            self.scores[task.task] = score
        else:
            self.of_stand_ins[index, task.task] = score

    def complete(self) -> dict[int, float]:
        """Load and score those that are lacking; a model without a head stays without."""
        models = sorted({index for index, _ in self.lacking})
        if models:
            references = [self._experts[index] for index in models]
            each_model(references, self._options, lambda i, model: self.visit(models[i], model))
        return self.scores
