"""What one model answered on all probes: the record that is kept, and put together with others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.shapes import Float32, Int64
from mergekit_collapse.states import storage
from mergekit_collapse.states.batching import Batch, Side, answer_count
from mergekit_collapse.states.forward import Outputs, has_language_head
from mergekit_collapse.states.pooling import Pooling, pool
from mergekit_collapse.states.states import ModelLayers

NOT_ASKED = "was not asked for answers"


@dataclass(frozen=True)
class ModelRequest:
    """What is wanted of one model.

    Attributes:
        layers: numbers of the wanted layers, from 0 (the embeddings) to ``depth``.
        depth: L, the layers that the model has.
        predictive: whether answer distributions are wanted, as far as the model gives any.
        profile: whether its states and their spread after every layer are wanted.
        max_tokens: of a forward pass, padding included.
        side: where batches are padded.
    """

    layers: tuple[int, ...]
    depth: int
    pooling: Pooling
    predictive: bool
    profile: bool
    max_tokens: int
    side: Side


@dataclass(frozen=True)
class ModelStates:
    """One model on all probes; rows in the order of the probes, those of a probe together.

    Attributes:
        hidden: for each wanted layer, in the model's own units.
        rows_per_probe: how many rows of ``hidden`` each probe has.
        answers: ψ = √p, a row for each answer position; None where there are none.
        answers_reason: why there are none, to follow the model's name; None if there are.
        layers: after every layer, where that was wanted and the model tells them apart.
        unlayered: whether the model was found not to tell its layers apart.
    """

    hidden: tuple[Float32[np.ndarray, "row feature"], ...]
    rows_per_probe: Int64[np.ndarray, " probe"]
    answers: Float32[np.ndarray, "answer token"] | None
    answers_reason: str | None
    layers: ModelLayers | None = None
    unlayered: bool = False


class ModelRecorder:
    """Fills up a ``ModelStates``; layers and batches come in any order.

    Args:
        name: what to call the model in messages.
        layers: numbers of the wanted layers.
        batches: all that are to come, which fix each probe's number of rows.
        answers_reason: why no answers are to come; None if they are.
    """

    def __init__(
        self,
        name: str,
        probes: TokenizedProbes,
        batches: Sequence[Batch],
        *,
        layers: tuple[int, ...],
        pooling: Pooling,
        answers_reason: str | None,
    ) -> None:
        self._name, self._probes, self._layers, self._pooling = name, probes, layers, pooling
        self._reason = answers_reason
        self._hidden: dict[int, Float32[np.ndarray, "row feature"]] = {}
        self._answers: Float32[np.ndarray, "answer token"] | None = None
        self._hidden_rows = np.ones(len(probes.probes), dtype=np.int64)
        self._answer_rows = answer_rows(probes)
        for batch in batches:
            if pooling == "tokens":
                self._hidden_rows[list(batch.probes)] = batch.pooled.sum(dim=1).numpy()
                for other, one in batch.repeats:
                    self._hidden_rows[other] = self._hidden_rows[one]

    def add(self, batch: Batch, outputs: Outputs) -> None:
        """Pool one batch's outputs and put them in their rows.

        Args:
            outputs: the hidden states of exactly the wanted layers.

        Raises:
            EvaluationError: a state is NaN or infinite.
        """
        for place, states in enumerate(outputs.hidden):
            self.add_hidden(batch, place, states)
        if outputs.answers is not None:
            self.add_answers(batch, outputs.answers)

    def add_hidden(self, batch: Batch, place: int, states: Any) -> None:
        """The same for one layer, given by its place among those that are wanted."""
        rows = _rows_of(batch.probes, self._hidden_rows)
        states = states.float()
        pooled = pool(states, batch.pooled.to(states.device), self._pooling).cpu().numpy()
        what = f"hidden state after layer {self._layers[place]}"
        self._require_finite(pooled, rows, self._hidden_rows, what)
        if place not in self._hidden:
            shape = (int(self._hidden_rows.sum()), pooled.shape[1])
            self._hidden[place] = storage.zeros(shape, "the hidden states of a model")
        self._hidden[place][rows] = pooled
        _repeat(self._hidden[place], batch, self._hidden_rows)

    def add_answers(
        self, batch: Batch, log_probabilities: Float32[torch.Tensor, "answer token"]
    ) -> None:
        """The same for the answers of one batch."""
        # ψ = √p, so that each row has norm 1.
        answers = log_probabilities.mul(0.5).exp_().cpu().numpy()
        rows = _rows_of(batch.probes, self._answer_rows)
        self._require_finite(answers, rows, self._answer_rows, "next-token distribution")
        if self._answers is None:
            shape = (int(self._answer_rows.sum()), answers.shape[1])
            self._answers = storage.zeros(shape, "the next-token distributions of a model")
        self._answers[rows] = answers
        _repeat(self._answers, batch, self._answer_rows)

    def states(self, layers: ModelLayers | None = None, *, unlayered: bool = False) -> ModelStates:
        """The finished record, after every batch was added."""
        return ModelStates(
            hidden=tuple(self._hidden[place] for place in range(len(self._layers))),
            rows_per_probe=self._hidden_rows,
            answers=self._answers,
            answers_reason=self._reason,
            layers=layers,
            unlayered=unlayered,
        )

    def _require_finite(
        self,
        values: Float32[np.ndarray, "row feature"],
        rows: Int64[np.ndarray, " row"],
        rows_per_probe: Int64[np.ndarray, " probe"],
        what: str,
    ) -> None:
        # A sum of numbers that are not all finite is not either; two infinities cannot cancel.
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(values.sum(axis=1, dtype=np.float64))
        if not finite.all():
            probe = probe_of_row(rows_per_probe)[rows[~finite][0]]
            raise EvaluationError(
                f"{self._name}: the {what} is NaN or infinite on probe {probe} (task"
                f" {self._probes.task_of_probe[probe]}); the model overflows or is broken, try it"
                " in transformers in float32"
            )


def no_head(model: Any) -> str | None:
    """Why a model gives no distribution of the next token, to follow its name; None if it does."""
    if has_language_head(model):
        return None
    return f"({type(model).__name__}) has no head that predicts a next token"


def require_known_tokens(name: str, model: Any, probes: TokenizedProbes) -> None:
    """Raise where the model has no embedding of a token, or of a position.

    Args:
        model: of transformers; its weights are not read.

    Raises:
        EvaluationError: names the token or the length.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = max(max(p.prompt + p.target) for p in probes.probes)
    if largest >= rows:
        raise EvaluationError(
            f"model {name}: the probes' tokenizer gives token {largest}, but the model has"
            f" embeddings for {rows} tokens only; merge models that share one tokenizer"
        )
    longest = max(len(p.prompt) + len(p.target) for p in probes.probes)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise EvaluationError(
            f"model {name}: a probe has {longest} tokens, but the model has {positions}"
            " positions; lower probes.max_tokens in the compat block"
        )


def answer_rows(probes: TokenizedProbes) -> Int64[np.ndarray, " probe"]:
    """How many answer positions each probe has."""
    return np.array([answer_count(p) for p in probes.probes], dtype=np.int64)


def probe_of_row(rows_per_probe: Int64[np.ndarray, " probe"]) -> Int64[np.ndarray, " row"]:
    """Index of each row's probe."""
    return np.repeat(np.arange(len(rows_per_probe), dtype=np.int64), rows_per_probe)


def _repeat(
    values: Float32[np.ndarray, "row feature"],
    batch: Batch,
    rows_per_probe: Int64[np.ndarray, " probe"],
) -> None:
    """Give probes that were not run the rows of the equal one that was."""
    if batch.repeats:
        others, ones = zip(*batch.repeats, strict=True)
        values[_rows_of(others, rows_per_probe)] = values[_rows_of(ones, rows_per_probe)]


def _rows_of(
    probes: Sequence[int], rows_per_probe: Int64[np.ndarray, " probe"]
) -> Int64[np.ndarray, " row"]:
    """Row numbers of some probes, in the order in which the probes are given."""
    ends = np.cumsum(rows_per_probe)
    return np.concatenate([np.arange(ends[p] - rows_per_probe[p], ends[p]) for p in probes])
