"""Each expert's score on its own task, kept on disk so that it is measured once."""

from dataclasses import dataclass

from mergekit.common import ModelReference

from mergekit_collapse.evaluation.scoring_set import ScoringSet
from mergekit_collapse.kept_values import KeptValues
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_identity import conditions, digest, model_identity


@dataclass(frozen=True)
class OwnScores:
    """The scores on disk.

    Attributes:
        full: whether a model is known by all of its weights.
    """

    values: KeptValues
    full: bool = False

    def get(self, key: str | None) -> float | None:
        """The score kept under a key; None if there is none, or no score to be trusted."""
        kept = self.values.get(key)
        score = kept.get("score") if kept is not None else None
        return score if type(score) is float and 0 <= score <= 1 else None

    def put(self, key: str | None, score: float, *, model: str, task: str) -> None:
        """Keep a score; its model and task are there for whoever lists the cache."""
        if 0 <= score <= 1:
            self.values.put(key, {"score": float(score), "model": model, "what": f"task {task}"})


def score_key(
    reference: ModelReference,
    scoring: ScoringSet,
    task: int,
    options: LoadOptions,
    *,
    full: bool = False,
) -> str | None:
    """Digest of all that an expert's score on a task depends on; None if it is not to be kept.

    That is the model, as ``model_identity`` tells it, what is asked, and what computes.

    Raises:
        EvaluationError: the expert's files are not there.
    """
    model = model_identity(reference, options, full=full)
    if model is None:
        return None
    return digest("score", model, scoring.digest(task), conditions(options))
