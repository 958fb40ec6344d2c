"""Which tensors of a checkpoint a layered forward pass needs when."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import shortened
from mergekit_collapse.states.dry_forward import NotLayeredError


class TensorStages:
    """Stages of a model's tensors: 0 the embeddings, 1 to L the layers, L + 1 norm and head.

    Names are those of the whole model, with or without its ``base_model_prefix``.

    Args:
        model: without weights, its tied parameters being one.
        stack: name of the list of layers.
        depth: L.
        early: names of what is used before the first layer.

    Raises:
        NotLayeredError: a layer shares a tensor with another.
    """

    def __init__(self, model: Any, stack: str, depth: int, early: set[str]) -> None:
        self._tensors: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self._prefix = model.base_model_prefix
        self._depth = depth
        self._stages = {name: self._stage(name, stack, early) for name in self._tensors}
        groups: dict[int, list[str]] = {}
        for name, tensor in self._tensors.items():
            groups.setdefault(id(tensor), []).append(name)
        self._same = {name: group for group in groups.values() for name in group}
        for group in groups.values():
            if len(group) > 1 and any(0 < self._stages[name] <= depth for name in group):
                raise NotLayeredError(f"a layer shares a tensor: {shortened(group)}")
        table = model.get_input_embeddings().weight
        self._embeddings = {n for n in self._same if self._tensors[n] is table} & early
        head = model.get_output_embeddings()
        used = {id(p) for p in head.parameters()} if head is not None else set()
        shared = {n for n, t in self._tensors.items() if n in early and id(t) in used}
        both = (0, depth + 1)
        self._needed_in = {n: both if n in shared else (k,) for n, k in self._stages.items()}
        # Of tensors that are the same, one may be given.
        self._expected: list[list[str]] = [[] for _ in range(depth + 2)]
        for name, stage in self._stages.items():
            self._expected[stage].append(name)
            # The embeddings that a head shares go by its own name there, if it has one.
            if name in shared and all(self._stages[n] <= depth for n in self._same[name]):
                self._expected[depth + 1].append(name)
        patterns = list(getattr(model, "_keys_to_ignore_on_load_missing", None) or [])
        # As in the loader: no hidden state goes through BERT's pooler.
        self._optional = re.compile("|".join([r"(^|\.)pooler\.", *patterns]))

    def _stage(self, name: str, stack: str, early: set[str]) -> int:
        if name.startswith(f"{stack}."):
            return int(name.removeprefix(f"{stack}.").split(".")[0]) + 1
        return 0 if name in early else self._depth + 1

    def place(self, name: str) -> str | None:
        """What the whole model calls a tensor of a checkpoint, None if it has none such."""
        for known in (name, f"{self._prefix}.{name}", name.removeprefix(f"{self._prefix}.")):
            if known in self._tensors:
                return known
        return None

    def stages_of(self, name: str) -> tuple[int, ...]:
        """The stages that need a tensor: none, one, or both ends for what the head shares."""
        place = self.place(name)
        return () if place is None else self._needed_in[place]

    def missing(self, names: Iterable[str]) -> list[str]:
        """Tensors that neither are given nor tied to one that is, sorted."""
        given = {place for name in names if (place := self.place(name)) is not None}
        return sorted(
            name
            for name, stage in self._stages.items()
            if not self._optional.search(name)
            and not any(n in given and self._stages[n] <= stage for n in self._same[name])
        )

    def embedding_rows(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """How many tokens the embeddings among these tensors have, None without any."""
        rows = (tensors[n].shape[0] for n in tensors if self.place(n) in self._embeddings)
        return next(rows, None)

    def pick(
        self, stage: int, tensors: Mapping[str, torch.Tensor], where: str
    ) -> dict[str, torch.Tensor]:
        """One stage's tensors by the whole model's names; those of other stages are not read.

        Raises:
            EvaluationError: a tensor is missing, given twice or of another shape.
        """
        found: dict[str, torch.Tensor] = {}
        for name in tensors:
            place = self.place(name)
            if place is None or stage not in self._needed_in[place]:
                continue
            if place in found:
                raise EvaluationError(f"{where}: the tensor {place} is there under two names")
            found[place], due = tensors[name], self._tensors[place].shape
            if found[place].shape != due:
                raise EvaluationError(
                    f"{where}: the tensor {name} has the shape {list(found[place].shape)}, not"
                    f" {list(due)} as its config.json says; use the config.json that belongs to"
                    " these weights"
                )
        picked: dict[str, torch.Tensor] = {}
        lacking: list[str] = []
        for name in self._expected[stage]:
            mate = next((n for n in (name, *self._same[name]) if n in found), None)
            if mate is not None:
                picked[name] = found[mate]
            elif not self._optional.search(name):
                lacking.append(name)
        if lacking:
            raise EvaluationError(
                f"{where}: the checkpoint lacks {shortened(sorted(lacking))};"
                " download or save the model again"
            )
        return picked
