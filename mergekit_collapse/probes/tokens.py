"""Probes as token ids, the same for every model of one recipe."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.probes import Probe, ProbeSet
from mergekit_collapse.shapes import Int64


@dataclass(frozen=True)
class TokenizedProbe:
    """Token ids of one probe: the prompt, and the target that follows it, or ()."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class TokenizedProbes:
    """All probes in the order of the probe set, and a digest of their ids.

    Attributes:
        rounds: how many probes there are after each round; empty where they come all at once.
    """

    probes: tuple[TokenizedProbe, ...]
    task_of_probe: Int64[np.ndarray, " probe"]
    digest: str
    rounds: tuple[int, ...] = ()

    def first(self, rounds: int) -> "TokenizedProbes":
        """What there is after so many rounds, or after all where there are fewer."""
        if len(self.rounds) <= rounds:
            return self
        return replace(self._part(0, self.rounds[rounds - 1]), rounds=self.rounds[:rounds])

    def added(self, number: int) -> "TokenizedProbes":
        """What one round adds, by its number from 0; all where there are no rounds."""
        if not self.rounds:
            return self
        return self._part(self.rounds[number - 1] if number else 0, self.rounds[number])

    def _part(self, start: int, end: int) -> "TokenizedProbes":
        probes = self.probes[start:end]
        return TokenizedProbes(probes, self.task_of_probe[start:end], digest_of(probes))


def tokenize(
    probe_set: ProbeSet, tokenizer: Any, max_tokens: int, *, encoder_decoder: bool
) -> TokenizedProbes:
    """Encode every probe as its tokenizer does, cut to ``max_tokens`` in all.

    A target takes at most half of ``max_tokens``. A prompt that is too long loses its
    beginning, since the answer follows its end; special tokens around it stay. Where a
    target follows in the same sequence, the prompt has no closing special token.

    Args:
        probe_set: prompts and targets.
        tokenizer: of the models, as transformers loads it.
        max_tokens: at least 2.
        encoder_decoder: prompt and target are two sequences, not one.

    Raises:
        EvaluationError: a probe has no tokens.
    """
    encode = ProbeEncoder(tokenizer, max_tokens, encoder_decoder)
    probes = []
    for probe in probe_set.probes:
        encoded = encode(probe)
        if not encoded.prompt:
            name = probe_set.tasks[probe.task].name
            raise EvaluationError(
                f"probe task {name!r}: the tokenizer gives no token for {probe.prompt!r}; "
                "remove that row"
            )
        probes.append(encoded)
    tasks = np.array([p.task for p in probe_set.probes], dtype=np.int64)
    return TokenizedProbes(tuple(probes), tasks, digest_of(probes), probe_set.rounds)


def digest_of(probes: Sequence[TokenizedProbe]) -> str:
    """Of all token ids, targets included, in their order."""
    digest = hashlib.sha256()
    for probe in probes:
        digest.update(repr((probe.prompt, probe.target)).encode())
    return digest.hexdigest()


class ProbeEncoder:
    """One tokenizer's way with a probe, as ``tokenize`` says it."""

    def __init__(self, tokenizer: Any, max_tokens: int, encoder_decoder: bool) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        self.max_tokens = max_tokens
        self.encoder_decoder = encoder_decoder

    def __call__(self, probe: Probe) -> TokenizedProbe:
        if probe.target is not None:
            return self.with_each(probe.prompt, [probe.target])[0]
        prompt: list[int] = self.tokenizer(probe.prompt)["input_ids"]
        return TokenizedProbe(tuple(self._cut(prompt, self.max_tokens)), ())

    def with_each(self, prompt: str, targets: Sequence[str]) -> tuple[TokenizedProbe, ...]:
        """The prompt before each target, cut alike for all: room is left for the longest."""
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        ends = [tuple(self._target(prompt, t)[: self.max_tokens // 2]) for t in targets]
        if not self.encoder_decoder:
            # The answer would be read after a </s> that training never puts there.
            while ids and ids[-1] in self.special:
                ids.pop()
        kept = tuple(self._cut(ids, self.max_tokens - max(map(len, ends))))
        return tuple(TokenizedProbe(kept, end) for end in ends)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        excess = len(ids) - room
        if excess <= 0:
            return ids
        lead = 1 if ids[0] in self.special and room > 1 else 0
        return ids[:lead] + ids[lead + excess :]

    def _target(self, prompt: str, target: str) -> list[int]:
        """Ids of the target as it continues the prompt, one space between if there is none."""
        if not prompt[-1].isspace() and not target[0].isspace():
            target = f" {target}"
        before, whole = self._plain(prompt), self._plain(prompt + target)
        if not self.encoder_decoder and whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
        # A seam that the tokenizer joins, or a sequence of its own: the target by itself.
        return self._plain(target.lstrip() if self.encoder_decoder else target)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
