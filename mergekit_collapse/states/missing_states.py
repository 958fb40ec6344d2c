"""Models whose states are not known yet: looked for in the cache, kept there when they are run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_states import ModelStates
from mergekit_collapse.states.state_store import StateStore
from mergekit_collapse.states.streaming import Asked


class MissingStates:
    """Which models are still to be run, and with batches of what size.

    Args:
        asked: all models.
        engine: how models are run, a part of what the cache is asked for.
        take: called with each model's states when they are found or put.

    Attributes:
        indices: those that are still to be run.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        probes: TokenizedProbes,
        options: LoadOptions,
        *,
        store: StateStore,
        engine: str,
        take: Callable[[int, ModelStates], None],
    ) -> None:
        self._asked = {one.index: one for one in asked}
        self._probes, self._options, self._engine = probes, options, engine
        self._store, self._hand_on = store, take
        self._keys: dict[int, str | None] = {}
        self.indices = list(self._asked)

    def with_batches_of(self, tokens: int) -> None:
        """Have what is still missing run with batches of so many tokens."""
        for index in self.indices:
            one = self._asked[index]
            request = replace(one.request, max_tokens=tokens)
            self._asked[index] = replace(one, request=request)
        self.find()

    def find(self) -> None:
        """Take from the cache what it has."""
        for index in list(self.indices):
            key = self._keys[index] = self._key(index)
            found = self._store.get(key, self._probes, self._asked[index].request)
            if found is not None:
                self._take(index, found)

    def asked(self) -> list[Asked]:
        """What is wanted of them."""
        return [self._asked[index] for index in self.indices]

    def put(self, one: Asked, found: ModelStates) -> None:
        """Keep what a model gave; it is missing no longer."""
        self._store.put(
            self._keys[one.index],
            found,
            partial(self._key, one.index),
            model=str(self._asked[one.index].reference),
            what=f"{len(self._probes.probes)} probes, {one.request.pooling}, "
            f"layers {', '.join(map(str, one.request.layers))}, {self._options.dtype} on "
            f"{self._options.device}",
        )
        self._take(one.index, found)

    def _take(self, index: int, found: ModelStates) -> None:
        self._hand_on(index, found)
        self.indices.remove(index)

    def _key(self, index: int) -> str | None:
        one = self._asked[index]
        return self._store.key(
            one.reference, self._probes, one.request, self._options, self._engine
        )
