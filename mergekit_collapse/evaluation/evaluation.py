"""What was measured on a merged model: rehearsed, watched as it was made, or read from disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mergekit_collapse.evaluation.merging_loss import TaskLoss
from mergekit_collapse.evaluation.smoke import Check
from mergekit_collapse.geometry.layer_reading import LayerReading
from mergekit_collapse.geometry.measured import Measured
from mergekit_collapse.verdict import ALLOW, Verdict

Source = Literal["rehearsal", "monitor", "merged"]


@dataclass(frozen=True)
class Evaluation:
    """One merged model, measured.

    Attributes:
        source: ``rehearsal`` and ``monitor`` saw the tensors as MergeKit made them, ``merged``
            read the finished folder.
        model: the folder, where there is one.
        hidden: None where the merge was stopped, or the checks failed, before it was known.
        predictive: None with ``predictive_reason``.
        layers: from 1 to L, or as far as the merge came; empty with ``layers_reason``.
        tasks: merging loss of each task that has targets and an owner.
        checks: of the finished folder.
        lm_eval: results of EleutherAI's harness by task and metric, where it was asked for.
        stopped_at: the layer at which the merge was ended.
        notes: what the reader must know to read the numbers right.
        verdict: the merged model against the limits of ``evaluate``.
        seconds: what it took.
    """

    source: Source
    model: str | None
    hidden: Measured | None = None
    predictive: Measured | None = None
    predictive_reason: str | None = None
    layers: tuple[LayerReading, ...] = ()
    layers_reason: str | None = None
    tasks: tuple[TaskLoss, ...] = ()
    checks: tuple[Check, ...] = ()
    lm_eval: Mapping[str, Mapping[str, float]] | None = None
    stopped_at: int | None = None
    notes: tuple[str, ...] = ()
    verdict: Verdict = ALLOW
    seconds: float = 0.0
