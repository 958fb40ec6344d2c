"""How good one model is at the tasks: accuracy by likelihood, or likelihood itself."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.evaluation.scoring_set import Ending, ScoredTask, ScoringSet
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.states.batching import Batch, answer_count, make_batches
from mergekit_collapse.states.forward import (
    Outputs,
    decoder_start,
    depth,
    forward,
    has_language_head,
    reads_decoder_inputs,
)


class Scorer:
    """One model's scores, gathered batch by batch.

        score of an answer = Σ_k log p(token k | prompt, tokens before k), in nats
        accuracy           = share of rows whose right answer alone has the highest score
        likelihood         = exp(mean of log p over all tokens of the task's targets)
                           = 1 / perplexity

    Both lie between 0 and 1, and higher is better. An answer's score is not divided by its
    length: as it stands it is the log-probability that the model gives this answer, and
    per token a long word whose first piece gives the rest away would win for its length. A
    tie is not right, since a model that tells nothing apart has decided nothing.

    Args:
        only: the tasks to score, by their index in the probe set; None for all.
        model: what to call the model in messages.
    """

    def __init__(
        self, scoring: ScoringSet, only: Collection[int] | None = None, *, model: str = "the model"
    ) -> None:
        self._tasks = [t for t in scoring.tasks if only is None or t.task in only]
        self._scoring, self._model = scoring, model
        wanted = {t.task for t in self._tasks}
        self._endings: dict[int, list[tuple[int, Ending]]] = {}
        for place, ending in enumerate(scoring.endings):
            if ending.task in wanted:
                self._endings.setdefault(ending.sequence, []).append((place, ending))
        # Where no score has come in, none may be read.
        self._scores = np.full(len(scoring.endings), np.nan)

    def batches(self, *, decoder_start: int | None, max_tokens: int) -> list[Batch]:
        """Every sequence that the tasks need; ``Batch.probes`` index ``scoring.sequences``.

        Args:
            decoder_start: the first token of an encoder-decoder's decoder, else None.
            max_tokens: most tokens of a batch, padding included.
        """
        wanted = sorted(self._endings)
        batches = make_batches(
            [self._scoring.sequences[i] for i in wanted],
            answers=True,
            decoder_start=decoder_start,
            max_tokens=max_tokens,
        )
        return [dataclasses.replace(b, probes=tuple(wanted[i] for i in b.probes)) for b in batches]

    def add(self, batch: Batch, outputs: Outputs) -> None:
        """Look up one batch's answers.

        Args:
            outputs: ``answers`` are log-probabilities in nats, a row per answer position.

        Raises:
            EvaluationError: an answer is NaN, or has a token that the model does not have.
        """
        if outputs.answers is None:
            raise ValueError("the forward pass was not asked for answers")
        rows: list[int] = []
        tokens: list[int] = []
        found: list[tuple[int, Ending]] = []
        first = 0
        for sequence in batch.probes:
            for place, ending in self._endings[sequence]:
                found.append((place, ending))
                rows.extend(range(first, first + len(ending.tokens)))
                tokens.extend(ending.tokens)
            first += answer_count(self._scoring.sequences[sequence])
        if max(tokens) >= outputs.answers.shape[1]:
            raise EvaluationError(
                f"{self._model}: an answer has the token {max(tokens)}, but the model knows"
                f" {outputs.answers.shape[1]} tokens only; its tokenizer is not its own"
            )
        # One copy from the device, not one for every token.
        values = outputs.answers[torch.tensor(rows), torch.tensor(tokens)].double().cpu().numpy()
        start = 0
        for place, ending in found:
            end = start + len(ending.tokens)
            score = float(values[start:end].sum())
            if math.isnan(score):
                name = next(t.name for t in self._tasks if t.task == ending.task)
                raise EvaluationError(
                    f"{self._model}: the probability of an answer of the task {name!r} is NaN; the"
                    " model overflows or is broken, try it in transformers in float32"
                )
            self._scores[place] = score
            start = end

    def scores(self) -> dict[int, float]:
        """Each task's score, by the task's index in the probe set.

        Raises:
            ValueError: not every batch was added.
        """
        return {task.task: self._score(task) for task in self._tasks}

    def _score(self, task: ScoredTask) -> float:
        places = [i for i, e in enumerate(self._scoring.endings) if e.task == task.task]
        if np.isnan(self._scores[places]).any():
            raise ValueError(f"task {task.name!r} was not read to its end")
        if task.metric == "likelihood":
            length = sum(len(self._scoring.endings[i].tokens) for i in places)
            return float(np.exp(self._scores[places].sum() / length))
        right, wrong = np.full((2, task.rows), -np.inf)
        for i in places:
            ending = self._scoring.endings[i]
            scores = right if ending.right else wrong
            scores[ending.row] = max(scores[ending.row], self._scores[i])
        return float((right > wrong).mean())


def score_model(
    model: Any, scoring: ScoringSet, only: Collection[int] | None, *, max_tokens: int
) -> dict[int, float]:
    """Scores of a model that is whole in memory, by the tasks' indices in the probe set.

    Args:
        only: the tasks to score; None for all.
        max_tokens: most tokens of a forward pass, padding included.

    Raises:
        EvaluationError: the model has no language head, cannot be run or answers NaN.
    """
    name = f"model {model.config.name_or_path}"
    if not has_language_head(model):
        raise EvaluationError(
            f"{name} ({type(model).__name__}) has no head that predicts a next token, so that its"
            " tasks cannot be scored; remove target: from the tasks"
        )
    scorer = Scorer(scoring, only, model=name)
    with told_as_evaluation_error(name, "check that the model runs in transformers by itself"):
        start = decoder_start(model) if reads_decoder_inputs(model) else None
        last = depth(model.config)
        for batch in scorer.batches(decoder_start=start, max_tokens=max_tokens):
            scorer.add(batch, forward(model, batch, (last,), last, answers=True))
    return scorer.scores()
