"""Equal values of a list, summed under many weightings of its rows at once."""

from dataclasses import dataclass

import numpy as np

from mergekit_collapse.shapes import Float64, Int64


@dataclass(frozen=True)
class TiedGroups:
    """The distinct values of a list.

    Attributes:
        values: ascending.
        group: which of them each row has.
        order: of the rows, by value.
        starts: where each group begins in that order.
    """

    values: Float64[np.ndarray, " group"]
    group: Int64[np.ndarray, " row"]
    order: Int64[np.ndarray, " row"]
    starts: Int64[np.ndarray, " group"]

    def sums(
        self, weights: Float64[np.ndarray, "resample row"]
    ) -> Float64[np.ndarray, "resample group"]:
        """Weight of each group."""
        found: Float64[np.ndarray, "resample group"] = np.add.reduceat(
            weights[:, self.order], self.starts, axis=1
        )
        return found

    def midranks(
        self, weights: Float64[np.ndarray, "resample row"]
    ) -> Float64[np.ndarray, "resample row"]:
        """Rank of each row where every row is there ``weights`` times; ties share their mean."""
        sums = self.sums(weights)
        ranks = np.cumsum(sums, axis=1) - sums + (sums + 1) / 2
        by_row: Float64[np.ndarray, "resample row"] = ranks[:, self.group]
        return by_row


def tied_groups(values: Float64[np.ndarray, " row"], what: str = "score") -> TiedGroups:
    """Groups of equal values; infinity is a value above all others.

    Raises:
        ValueError: there are no rows, or one is NaN or minus infinity.
    """
    undefined = int((np.isnan(values) | np.isneginf(values)).sum())
    if undefined or not len(values):
        raise ValueError(
            f"{undefined} of {len(values)} rows have no {what}; leave them out, or give them "
            "infinity, which is over every limit"
        )
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    return TiedGroups(distinct, group.astype(np.int64), order, starts.astype(np.int64))
