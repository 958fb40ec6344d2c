"""Models whose states are not known yet: looked for in the cache, kept there when they are run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from mergekit.common import ModelReference

from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.arrays import StateArrays
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_states import ModelRequest, ModelStates
from mergekit_collapse.states.state_store import StateStore
from mergekit_collapse.states.streaming import Asked


class MissingStates:
    """Which models are still to be run, and with batches of what size.

    Args:
        requests: what is wanted of each model; batches are as large as ``find`` says.
        engine: how models are run, a part of what the cache is asked for.

    Attributes:
        indices: those that are still to be run.
    """

    def __init__(
        self,
        references: Sequence[ModelReference],
        names: Sequence[str],
        requests: Sequence[ModelRequest],
        probes: TokenizedProbes,
        options: LoadOptions,
        *,
        arrays: StateArrays,
        store: StateStore,
        engine: str,
    ) -> None:
        self._references, self._names, self._requests = references, names, list(requests)
        self._probes, self._options, self._engine = probes, options, engine
        self._arrays, self._store = arrays, store
        self._keys: dict[int, str | None] = {}
        self.indices = list(range(len(references)))

    def find(self, tokens: int) -> None:
        """Take from the cache what was run with batches of so many tokens."""
        for index in list(self.indices):
            self._requests[index] = replace(self._requests[index], max_tokens=tokens)
            key = self._keys[index] = self._key(index)
            if (found := self._store.get(key, self._probes, self._requests[index])) is not None:
                self._take(index, found)

    def asked(self, index: int) -> Asked:
        """What is wanted of one of them."""
        return Asked(index, self._names[index], self._references[index], self._requests[index])

    def put(self, index: int, found: ModelStates) -> None:
        """Keep what a model gave; it is missing no longer."""
        request = self._requests[index]
        self._store.put(
            self._keys[index],
            found,
            partial(self._key, index),
            model=str(self._references[index]),
            what=f"{len(self._probes.probes)} probes, {request.pooling}, "
            f"layers {', '.join(map(str, request.layers))}, {self._options.dtype} on "
            f"{self._options.device}",
        )
        self._take(index, found)

    def _take(self, index: int, found: ModelStates) -> None:
        self._arrays.put(index, found)
        self.indices.remove(index)

    def _key(self, index: int) -> str | None:
        return self._store.key(
            self._references[index],
            self._probes,
            self._requests[index],
            self._options,
            self._engine,
        )
