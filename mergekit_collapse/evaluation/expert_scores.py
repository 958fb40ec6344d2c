"""Every expert's score on its own task, which merging loss divides by."""

import logging
from collections.abc import Mapping, Sequence
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


class ExpertScores:
    """Gathered while the experts are in memory one after another; known ones are not run.

    Args:
        experts: in the order of the recipe.
        kept: the scores of earlier runs.

    Attributes:
        scores: by the task's index in the probe set.
    """

    def __init__(
        self,
        scoring: ScoringSet,
        experts: Sequence[ModelReference],
        options: LoadOptions,
        kept: OwnScores,
    ) -> None:
        self._scoring, self._experts = scoring, experts
        self._options, self._kept = options, kept
        self.scores: dict[int, float] = {}
        self._keys = {
            task.task: score_key(experts[task.owner], scoring, task.task, options, full=kept.full)
            for task in scoring.tasks
        }
        for task, key in self._keys.items():
            if (score := kept.get(key)) is not None:
                self.scores[task] = score

    @property
    def lacking(self) -> tuple[ScoredTask, ...]:
        """Tasks whose owner was not scored yet."""
        return tuple(task for task in self._scoring.tasks if task.task not in self.scores)

    def due(self, index: int) -> Scorer | None:
        """What the expert of that number is still to be run for, None if nothing."""
        tasks = [task.task for task in self._due(index)]
        if not tasks:
            return None
        return Scorer(self._scoring, tasks, model=f"model {self._experts[index]}")

    def settle(self, index: int, extra: Extra) -> None:
        """Take the scores of an expert that was run for all that was due."""
        assert isinstance(extra, Scorer)
        self._take(index, extra.scores())

    def visit(self, index: int, model: Any) -> None:
        """Score the expert of that number, which is whole in memory, if it is lacking."""
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
        return [task for task in self.lacking if task.owner == index]

    def _take(self, index: int, found: Mapping[int, float]) -> None:
        for task in self._due(index):
            self.scores[task.task] = found[task.task]
            name = str(self._experts[index])
            self._kept.put(self._keys[task.task], found[task.task], model=name, task=task.name)

    def complete(self) -> dict[int, float]:
        """Load and score those that are lacking; an expert without a head stays without."""
        owners = sorted({task.owner for task in self.lacking})
        if owners:
            references = [self._experts[owner] for owner in owners]
            each_model(references, self._options, lambda i, model: self.visit(owners[i], model))
        return self.scores
