"""The arrays of states, filled up model by model and batch by batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.shapes import Float32, Int64
from mergekit_collapse.states import storage
from mergekit_collapse.states.batching import Batch, answer_count
from mergekit_collapse.states.forward import Outputs, has_language_head
from mergekit_collapse.states.pooling import Pooling, pool
from mergekit_collapse.states.states import ModelLayers, SpaceStates, States

ENGINE = "whole-model"


class StateArrays:
    """Where the outputs of all models come together, each row at its probe's own place.

    Args:
        names: the models, in the order of the result.
        layers: numbers of the layers that every model is asked for.
        depth: number of the layer that the language heads read.
        predictive: whether answer distributions are wanted.
    """

    def __init__(
        self,
        names: Sequence[str],
        probes: TokenizedProbes,
        *,
        layers: tuple[int, ...],
        depth: int,
        pooling: Pooling,
        predictive: bool,
    ) -> None:
        self._names, self._probes, self._layers, self._pooling = names, probes, layers, pooling
        self._depth = depth
        self._reason = None if predictive else "it was not asked for"
        self._hidden: dict[int, np.ndarray] = {}
        self._answers: np.ndarray | None = None
        self._first: int | None = None
        self._hidden_rows: Int64[np.ndarray, " probe"] = np.zeros(0, dtype=np.int64)
        self._answer_rows = np.array([answer_count(p) for p in probes.probes], dtype=np.int64)

    def expects_answers(self, index: int, model: Any) -> bool:
        """Whether to ask this model for answers: all models must be able to give them."""
        if self._reason is None and not has_language_head(model):
            self._reason = (
                f"{self._names[index]} ({type(model).__name__}) has no head that predicts a"
                " next token"
            )
            self._answers = None
        return self._reason is None

    def expect_rows(self, index: int, batches: Sequence[Batch]) -> None:
        """Fix each probe's number of rows, the same for every model.

        Raises:
            EvaluationError: a model pools other tokens than the first one did.
        """
        counts = np.ones(len(self._probes.probes), dtype=np.int64)
        for batch in batches:
            if self._pooling == "tokens":
                counts[list(batch.probes)] = batch.pooled.sum(dim=1).numpy()
        if self._first is None:
            self._first, self._hidden_rows = index, counts
        elif not np.array_equal(counts, self._hidden_rows):
            raise EvaluationError(
                f"{self._names[index]} and {self._names[self._first]} do not read the same tokens"
                " of a probe (an encoder-decoder and a model without a decoder?); such models"
                " cannot be merged"
            )

    def add(self, index: int, batch: Batch, outputs: Outputs) -> None:
        """Pool one batch's outputs of one model and put them in their rows.

        Args:
            outputs: the hidden states of exactly the layers that were asked for.

        Raises:
            EvaluationError: a state is NaN or infinite, or as wide as in no other model.
        """
        for place, states in enumerate(outputs.hidden):
            self.add_hidden(index, batch, place, states)
        if outputs.answers is not None:
            self.add_answers(index, batch, outputs.answers)

    def add_hidden(self, index: int, batch: Batch, place: int, states: Any) -> None:
        """The same for one layer, given by its place among those that were asked for."""
        rows = _rows_of(batch.probes, self._hidden_rows)
        states = states.float()
        pooled = pool(states, batch.pooled.to(states.device), self._pooling).cpu().numpy()
        what = f"hidden state after layer {self._layers[place]}"
        self._require_finite(index, pooled, rows, self._hidden_rows, what)
        if place not in self._hidden:
            shape = (len(self._names), int(self._hidden_rows.sum()), pooled.shape[1])
            self._hidden[place] = storage.zeros(shape, "the hidden states of all models")
        if pooled.shape[1] != self._hidden[place].shape[2]:
            assert self._first is not None
            raise EvaluationError(
                f"{self._names[index]} has hidden states of width {pooled.shape[1]}, but"
                f" {self._names[self._first]} of {self._hidden[place].shape[2]}; models of"
                " different widths cannot be merged"
            )
        self._hidden[place][index, rows] = pooled

    def states(
        self,
        expert_count: int,
        device: str,
        dtype: torch.dtype,
        *,
        engine: str = ENGINE,
        layers: tuple[ModelLayers, ...] = (),
    ) -> States:
        """The finished record, after every model was added."""
        hidden = SpaceStates(
            space="hidden",
            pooling=self._pooling,
            layers=self._layers,
            values=tuple(self._hidden[place] for place in range(len(self._layers))),
            probe_of_row=_probe_of_row(self._hidden_rows),
        )
        predictive = None
        if self._answers is not None:
            predictive = SpaceStates(
                space="predictive",
                pooling="answer",
                layers=(self._depth,),
                values=(self._answers,),
                probe_of_row=_probe_of_row(self._answer_rows),
            )
        return States(
            models=tuple(self._names),
            expert_count=expert_count,
            hidden=hidden,
            predictive=predictive,
            predictive_reason=self._reason,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            engine=engine,
            layers=layers,
        )

    def add_answers(
        self, index: int, batch: Batch, log_probabilities: Float32[torch.Tensor, "answer token"]
    ) -> None:
        """The same for the answers of one batch."""
        # ψ = √p, so that each row has norm 1.
        answers = log_probabilities.mul(0.5).exp_().cpu().numpy()
        rows = _rows_of(batch.probes, self._answer_rows)
        self._require_finite(index, answers, rows, self._answer_rows, "next-token distribution")
        vocabulary = answers.shape[1]
        if self._answers is None or vocabulary > self._answers.shape[2]:
            shape = (len(self._names), int(self._answer_rows.sum()), vocabulary)
            wider = storage.zeros(shape, "the next-token distributions of all models")
            if self._answers is not None:
                # A token that a model does not have has probability 0 there.
                wider[:, :, : self._answers.shape[2]] = self._answers
            self._answers = wider
        self._answers[index, rows, :vocabulary] = answers

    def _require_finite(
        self,
        index: int,
        values: Float32[np.ndarray, "row feature"],
        rows: Int64[np.ndarray, " row"],
        rows_per_probe: Int64[np.ndarray, " probe"],
        what: str,
    ) -> None:
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            probe = _probe_of_row(rows_per_probe)[rows[~finite][0]]
            raise EvaluationError(
                f"{self._names[index]}: the {what} is NaN or infinite on probe {probe} (task"
                f" {self._probes.task_of_probe[probe]}); the model overflows or is broken, try it"
                " in transformers in float32"
            )


def _probe_of_row(rows_per_probe: Int64[np.ndarray, " probe"]) -> Int64[np.ndarray, " row"]:
    return np.repeat(np.arange(len(rows_per_probe), dtype=np.int64), rows_per_probe)


def _rows_of(
    probes: Sequence[int], rows_per_probe: Int64[np.ndarray, " probe"]
) -> Int64[np.ndarray, " row"]:
    """Row numbers of some probes, in the order in which the probes are given."""
    ends = np.cumsum(rows_per_probe)
    return np.concatenate([np.arange(ends[p] - rows_per_probe[p], ends[p]) for p in probes])
