"""The arrays of states, put together from the models' own records."""

from collections.abc import Sequence

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.shapes import Float32, Int64
from mergekit_collapse.states import storage
from mergekit_collapse.states.model_states import ModelStates, answer_rows, probe_of_row
from mergekit_collapse.states.pooling import Pooling
from mergekit_collapse.states.states import ModelLayers, SpaceStates, States


class StateArrays:
    """Where the records of all models come together; each is copied, so it need not be kept.

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
        self._depth, self._predictive = depth, predictive
        self._reasons: dict[int, str] = {}
        self._hidden: dict[int, np.ndarray] = {}
        self._answers: np.ndarray | None = None
        self._first: int | None = None
        self._hidden_rows: Int64[np.ndarray, " probe"] = np.zeros(0, dtype=np.int64)
        self._profiles: dict[int, ModelLayers] = {}
        self._unlayered = False

    def put(self, index: int, found: ModelStates) -> None:
        """Take one model's record; they come in any order.

        Raises:
            EvaluationError: its states are as wide as in no other model, or are of other tokens.
        """
        self._require_same_rows(index, found.rows_per_probe)
        for place, values in enumerate(found.hidden):
            self._put_hidden(index, place, values)
        if self._predictive and found.answers is not None:
            self._put_answers(index, found.answers)
        elif self._predictive:
            # All models must be able to give answers.
            self._reasons[index] = f"{self._names[index]} {found.answers_reason}"
            self._answers = None
        if found.layers is not None:
            self._profiles[index] = found.layers
        self._unlayered |= found.unlayered

    def states(self, expert_count: int, device: str, dtype: torch.dtype, *, engine: str) -> States:
        """The finished record, after every model was put in."""
        hidden = SpaceStates(
            space="hidden",
            pooling=self._pooling,
            layers=self._layers,
            values=tuple(self._hidden[place] for place in range(len(self._layers))),
            probe_of_row=probe_of_row(self._hidden_rows),
        )
        predictive = None
        if self._answers is not None:
            predictive = SpaceStates(
                space="predictive",
                pooling="answer",
                layers=(self._depth,),
                values=(self._answers,),
                probe_of_row=probe_of_row(answer_rows(self._probes)),
            )
        reason = None if self._predictive else "it was not asked for"
        layers = () if self._unlayered else tuple(p for _, p in sorted(self._profiles.items()))
        return States(
            models=tuple(self._names),
            expert_count=expert_count,
            hidden=hidden,
            predictive=predictive,
            predictive_reason=self._reasons[min(self._reasons)] if self._reasons else reason,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            engine=engine,
            layers=layers,
        )

    def _require_same_rows(self, index: int, counts: Int64[np.ndarray, " probe"]) -> None:
        if self._first is None:
            self._first, self._hidden_rows = index, counts
        elif not np.array_equal(counts, self._hidden_rows):
            raise EvaluationError(
                f"{self._names[index]} and {self._names[self._first]} do not read the same tokens"
                " of a probe (an encoder-decoder and a model without a decoder?); such models"
                " cannot be merged"
            )

    def _put_hidden(
        self, index: int, place: int, values: Float32[np.ndarray, "row feature"]
    ) -> None:
        if place not in self._hidden:
            shape = (len(self._names), *values.shape)
            self._hidden[place] = storage.zeros(shape, "the hidden states of all models")
        if values.shape[1] != self._hidden[place].shape[2]:
            assert self._first is not None
            raise EvaluationError(
                f"{self._names[index]} has hidden states of width {values.shape[1]}, but"
                f" {self._names[self._first]} of {self._hidden[place].shape[2]}; models of"
                " different widths cannot be merged"
            )
        self._hidden[place][index] = values

    def _put_answers(self, index: int, answers: Float32[np.ndarray, "answer token"]) -> None:
        if self._reasons:
            return
        vocabulary = answers.shape[1]
        if self._answers is None or vocabulary > self._answers.shape[2]:
            shape = (len(self._names), *answers.shape)
            wider = storage.zeros(shape, "the next-token distributions of all models")
            if self._answers is not None:
                # A token that a model does not have has probability 0 there.
                wider[:, :, : self._answers.shape[2]] = self._answers
            self._answers = wider
        self._answers[index, :, :vocabulary] = answers
