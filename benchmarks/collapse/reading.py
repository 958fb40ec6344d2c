"""What one model answers on the zoo's tasks: scores on held-out rows, states on probes."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import read
from transformers import AutoTokenizer, LlamaForCausalLM

from mergekit_collapse.evaluation.scoring import Scorer
from mergekit_collapse.evaluation.scoring_set import ScoringSet, scoring_set
from mergekit_collapse.probes.probes import Probe, ProbeSet, ProbeTask, builtin_rows
from mergekit_collapse.probes.tokens import ProbeEncoder, TokenizedProbe
from mergekit_collapse.states.batching import Batch, make_batches
from mergekit_collapse.states.forward import forward
from mergekit_collapse.states.pooling import pool

BATCH_TOKENS = 1024
MOST_TOKENS = 96


@dataclass(frozen=True)
class Answered:
    """One model's states on some probes, in the order of the probes.

    Attributes:
        mean, last: per layer, in the model's own units.
        answer: square roots of the probabilities of the token after the prompt.
    """

    layers: tuple[int, ...]
    mean: np.ndarray
    last: np.ndarray
    answer: np.ndarray


def part_of(found: Answered, probes: slice) -> Answered:
    """Of some of the probes."""
    return Answered(
        found.layers, found.mean[:, probes], found.last[:, probes], found.answer[probes]
    )


class SharedStart(torch.nn.Module):
    """The first layers of the base, in the place of the embeddings of a model that has them too.

    A model whose lower layers are the base's bit for bit has their states as well: they are
    computed once for every batch, and models of the zoo are run from there on.
    """

    def __init__(self, base: Any, depth: int) -> None:
        super().__init__()
        self.weight = base.get_input_embeddings().weight
        self.lower = base.model
        self.lower.layers = self.lower.layers[:depth]
        self.lower.norm = torch.nn.Identity()
        self.lower.config.num_hidden_layers = depth
        self.known: dict[bytes, torch.Tensor] = {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """States after the shared layers. Padding on the right never reaches what counts."""
        key = np.asarray(ids).tobytes() + bytes(ids.shape[1:])
        if key not in self.known:
            self.known[key] = self.lower(ids, use_cache=False).last_hidden_state.clone()
        return self.known[key]


class Overwritten:
    """One model in memory whose tensors are replaced by those of others."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._places = dict(model.named_parameters())
        self._own = {name: place.detach().clone() for name, place in self._places.items()}

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The model with these tensors, and its own in all other places."""
        if unknown := tensors.keys() - self._places.keys():
            raise ValueError(f"the base has no tensor {sorted(unknown)[:3]}")
        with torch.no_grad():
            for name, place in self._places.items():
                place.copy_(tensors.get(name, self._own[name]))
        return self.model


class Reader:
    """Asks models of one base the same questions.

    Args:
        folder: the zoo's.
        shared: layers that models which start as the base does have in common with it.
        probes: how many of every task are read.
    """

    def __init__(self, folder: Path, *, shared: int, probes: int) -> None:
        self.folder, self.shared, self.count = folder, shared, probes
        base = folder / "base"
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._encode = ProbeEncoder(self._tokenizer, MOST_TOKENS, encoder_decoder=False)
        self._choices = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
        self._whole, self._rest = Overwritten(load(base)), Overwritten(load(base))
        # A model apart for each: transformers looks for the layers to watch once.
        rest = self._rest.model
        rest.model.layers = rest.model.layers[shared:]
        rest.config.num_hidden_layers -= shared
        rest.model.embed_tokens = SharedStart(load(base), shared)
        self._scoring: dict[str, ScoringSet] = {}
        self._probes: dict[tuple[str, int], list[TokenizedProbe]] = {}

    def model(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, int]:
        """The base with some tensors replaced, and how many layers were left out as shared.

        Models are kept and overwritten: what was returned before is no longer valid.
        """
        if min(map(_layer, tensors), default=self.shared) >= self.shared:
            return self._rest.with_tensors(tensors), self.shared
        return self._whole.with_tensors(tensors), 0

    def score(self, model: Any, task: str) -> float:
        """Accuracy or likelihood on the held-out rows."""
        if task not in self._scoring:
            self._scoring[task] = self._scoring_set(task)
        scorer = Scorer(self._scoring[task])
        last = model.config.num_hidden_layers
        for batch in scorer.batches(decoder_start=None, max_tokens=BATCH_TOKENS):
            scorer.add(batch, forward(model, batch, (last,), last, answers=True))
        return scorer.scores()[0]

    def _scoring_set(self, task: str) -> ScoringSet:
        rows = read(self.folder / "tasks", task, "held_out")
        probe_task = ProbeTask(task, 0, "held out", len(rows))
        probes = tuple(Probe(0, row.prompt, row.answer) for row in rows)
        offered = self._choices[task]["choices"]
        return scoring_set(
            ProbeSet((probe_task,), probes, ""),
            [tuple(offered) if offered else None],
            self._tokenizer,
            MOST_TOKENS,
            encoder_decoder=False,
        )

    def answered(
        self, model: Any, left_out: int, prompts: Sequence[str], *, every_layer: bool
    ) -> Answered:
        """States on prompts.

        Args:
            left_out: as ``model`` said.
            every_layer: from the first that is not shared on, or the last alone.
        """
        probes = [self._encode(Probe(0, prompt, None)) for prompt in prompts]
        last = model.config.num_hidden_layers
        first = self.shared - left_out + 1
        layers = tuple(range(first, last + 1)) if every_layer else (last,)
        width, vocabulary = model.config.hidden_size, model.config.vocab_size
        mean = np.zeros((len(layers), len(probes), width), np.float32)
        final = np.zeros_like(mean)
        answer = np.zeros((len(probes), vocabulary), np.float32)
        batches = make_batches(probes, answers=True, decoder_start=None, max_tokens=BATCH_TOKENS)
        for batch in batches:
            found = forward(model, batch, layers, last, answers=True)
            for place, hidden in enumerate(found.hidden):
                for pooling, into in (("mean", mean), ("last_token", final)):
                    pooled = pool(hidden.float(), batch.pooled, pooling)  # type: ignore[arg-type]
                    _put(into[place], batch, pooled.numpy())
            assert found.answers is not None
            _put(answer, batch, (found.answers / 2).exp().numpy())
        return Answered(tuple(layer + left_out for layer in layers), mean, final, answer)

    def tokens(self, model: Any, prompts: Sequence[str]) -> np.ndarray:
        """The last layer's state of every token of some prompts, in their order."""
        probes = [self._encode(Probe(0, prompt, None)) for prompt in prompts]
        last = model.config.num_hidden_layers
        found: dict[int, np.ndarray] = {}
        batches = make_batches(probes, answers=False, decoder_start=None, max_tokens=BATCH_TOKENS)
        for batch in batches:
            hidden = forward(model, batch, (last,), last, answers=False).hidden[0]
            rows = pool(hidden.float(), batch.pooled, "tokens")  # type: ignore[arg-type]
            ends = np.cumsum(batch.pooled.sum(dim=1).numpy())[:-1]
            found |= dict(zip(batch.probes, np.split(rows.numpy(), ends), strict=True))
            found |= {probe: found[equal] for probe, equal in batch.repeats}
        return np.concatenate([found[probe] for probe in range(len(probes))])

    def first_tokens(self, task: str, count: int) -> tuple[list[int], list[int] | None]:
        """Of the first probes' right answers, and of the choices; None where there are none.

        Raises:
            ValueError: two choices begin alike, or an answer begins as none of them does.
        """
        rows = read(self.folder / "tasks", task, "probes")[:count]
        right = [self._encode.with_each(r.prompt, [r.answer])[0].target[0] for r in rows]
        offered = self._choices[task]["choices"]
        if not offered:
            return right, None
        firsts = [probe.target[0] for probe in self._encode.with_each(rows[0].prompt, offered)]
        if len(set(firsts)) < len(firsts):
            raise ValueError(f"task {task}: two choices begin with the same token")
        if set(right) - set(firsts):
            raise ValueError(f"task {task}: after some prompts a choice begins with another token")
        return right, firsts

    def prompts(self, task: str) -> list[str]:
        """Of the probes of a task, or the shipped ones."""
        if task == "builtin":
            texts = [row["text"] for row in builtin_rows()]
            return random.Random(0).sample(texts, self.count)
        rows = read(self.folder / "tasks", task, "probes")
        return [row.prompt for row in rows[: self.count]]


def load(path: Path) -> Any:
    """A model in bfloat16, as the gate runs it."""
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.eval()
    return model


def _layer(name: str) -> int:
    """The layer that a tensor belongs to, counted from 0; the embeddings' is -1."""
    parts = name.split(".")
    if "layers" in parts:
        return int(parts[parts.index("layers") + 1])
    return -1 if "embed_tokens" in name else 10**6


def _put(into: np.ndarray, batch: Batch, rows: np.ndarray) -> None:
    into[list(batch.probes)] = rows
    for probe, equal in batch.repeats:
        into[probe] = into[equal]
