"""The rows of some probes, read in blocks of float64 that stay small however wide they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry.pair_squares import ModelRow
from mergekit_collapse.shapes import Float64, Int64
from mergekit_collapse.states.states import SpaceStates

BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class StateRows:
    """States restricted to some probes, which are numbered anew from 0.

    Attributes:
        states: all the states, read only where a block asks for them.
        rows: the rows of ``states`` that belong to the probes.
        probe_of_row: probe of each entry of ``rows``, ascending from 0.
        probe_count: number of probes, P.
        unit: each row is divided by its norm when read.
        models: names for messages, in the order of the model axis.
    """

    states: SpaceStates
    rows: Int64[np.ndarray, " row"]
    probe_of_row: Int64[np.ndarray, " row"]
    probe_count: int
    unit: bool
    models: tuple[str, ...]

    @property
    def row_weight(self) -> Float64[np.ndarray, " row"]:
        """1 / (rows of the row's probe): a sum over rows with it is a sum over probe means."""
        rows_of_probe = np.bincount(self.probe_of_row, minlength=self.probe_count)
        weight: Float64[np.ndarray, " row"] = 1.0 / rows_of_probe[self.probe_of_row]
        return weight

    def blocks(
        self, layer: int, models: Sequence[int], rows_per_block: int | None = None
    ) -> Iterator[tuple[slice, Float64[np.ndarray, "model row feature"]]]:
        """Yield (slice of ``rows``, states of ``models`` there), in order.

        Args:
            layer: position in ``states.values``.
            models: indices of the model axis.
            rows_per_block: rows at a time; chosen by ``BLOCK_BYTES`` if None.

        Raises:
            EvaluationError: a state is NaN or infinite, or 0 where it must have norm 1.
        """
        values = self.states.values[layer]
        size = rows_per_block or max(1, BLOCK_BYTES // (8 * len(models) * values.shape[2]))
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            block = np.stack([values[m][self.rows[part]] for m in models]).astype(np.float64)
            # A float64 sum of float32 cannot overflow, so it is finite iff every state is.
            with np.errstate(invalid="ignore"):
                finite = np.isfinite(block.sum(axis=(1, 2)))
            self._refuse(models, finite, "NaN or infinite", "repair or replace this model", layer)
            if self.unit:
                norms = np.linalg.norm(block, axis=2, keepdims=True)
                self._refuse(
                    models, (norms > 0).all(axis=(1, 2)), "zero", "use scale: variance", layer
                )
                block /= norms
            yield part, block

    def model_row(self, layer: int, row: int) -> ModelRow:
        """One row of all models, unread; unchecked, but that norms of 0 are refused."""
        values = self.states.values[layer][:, self.rows[row]]
        if not self.unit:
            return ModelRow(values)
        norms = np.sqrt(np.einsum("mf,mf->m", values, values, dtype=np.float64))
        self._refuse(range(len(norms)), norms != 0, "zero", "use scale: variance", layer)
        return ModelRow(values, norms)

    def refuse_row(self, layer: int, row: int) -> None:
        """Raise with the names of the models whose states are NaN or infinite there.

        Raises:
            EvaluationError: always, unless all are finite.
        """
        values = self.states.values[layer][:, self.rows[row]]
        finite = np.isfinite(values).all(axis=1)
        models = range(len(finite))
        self._refuse(models, finite, "NaN or infinite", "repair or replace this model", layer)

    def _refuse(
        self, models: Sequence[int], fine: np.ndarray, what: str, advice: str, layer: int
    ) -> None:
        if not fine.all():
            bad = [self.models[m] for m, good in zip(models, fine, strict=True) if not good]
            raise EvaluationError(
                f"{self.states.space} states of {', '.join(bad)} are {what} "
                f"(layer {self.states.layers[layer]}): {advice}"
            )


def select_probes(
    states: SpaceStates,
    probes: Int64[np.ndarray, " probe"],
    *,
    unit: bool = False,
    models: Sequence[str] | None = None,
) -> StateRows:
    """The rows of ``probes`` (ascending indices); models without names are ``model 0``, ....

    Raises:
        EvaluationError: a probe has no row.
    """
    place = np.searchsorted(probes, states.probe_of_row)
    inside = place < len(probes)
    inside[inside] = probes[place[inside]] == states.probe_of_row[inside]
    rows = np.flatnonzero(inside).astype(np.int64)
    local = place[rows].astype(np.int64)
    empty = np.flatnonzero(np.bincount(local, minlength=len(probes)) == 0)
    if len(empty):
        raise EvaluationError(
            f"probes {probes[empty].tolist()} have no {states.space} states: remove those probes"
        )
    names = models or [f"model {m}" for m in range(len(states.values[0]))]
    return StateRows(states, rows, local, len(probes), unit, tuple(names))
