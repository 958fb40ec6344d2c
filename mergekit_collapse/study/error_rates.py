"""What refusing some merges and allowing the others gets right and wrong."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Bool, Float64
from mergekit_collapse.study.cluster_resamples import RESAMPLES
from mergekit_collapse.study.share import Share, share


@dataclass(frozen=True)
class ErrorRates:
    """Of a yes or no about each row.

    Attributes:
        rows, collapsed, refused: how many there are.
        precision: of the refused, those that collapsed.
        recall: of the collapsed, those that were refused.
        false_refusal: of those that did not collapse, the refused.
        false_allow: of the collapsed, the allowed: 1 - recall.
    """

    rows: int
    collapsed: int
    refused: int
    precision: Share
    recall: Share
    false_refusal: Share
    false_allow: Share

    @property
    def balanced(self) -> float | None:
        """(recall + 1 - false refusals) / 2: the AUROC of the yes or no. ½ is a coin."""
        if self.recall.value is None or self.false_refusal.value is None:
            return None
        return (self.recall.value + 1 - self.false_refusal.value) / 2


def over(score: Float64[np.ndarray, " row"], limit: float) -> Bool[np.ndarray, " row"]:
    """Which rows a limit refuses, as the gate has it: a NaN never passes."""
    refused: Bool[np.ndarray, " row"] = ~(score <= limit)
    return refused


def error_rates(
    refused: Bool[np.ndarray, " row"],
    collapsed: Bool[np.ndarray, " row"],
    labels: Iterable[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ErrorRates:
    """The four rates, each with its intervals.

    Args:
        labels: of the cluster that each row is in.
    """
    labels = list(labels)

    def rate(hits: Bool[np.ndarray, " row"], of: Bool[np.ndarray, " row"]) -> Share:
        return share(hits, of, labels, resamples=resamples, seed=seed)

    return ErrorRates(
        rows=len(refused),
        collapsed=int(collapsed.sum()),
        refused=int(refused.sum()),
        precision=rate(collapsed, refused),
        recall=rate(refused, collapsed),
        false_refusal=rate(refused, ~collapsed),
        false_allow=rate(~refused, collapsed),
    )
