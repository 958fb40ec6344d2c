"""Models' states, kept in the user's cache by all that they depend on."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from mergekit.common import ModelReference

from mergekit_collapse.cached_files import SIZE_VARIABLE, CachedFiles
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbes, digest_of
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_identity import conditions, digest, model_identity
from mergekit_collapse.states.model_states import ModelRequest, ModelStates
from mergekit_collapse.states.state_file import UnusableRecordError, from_bytes, to_parts

logger = logging.getLogger(__name__)

_token_digest = functools.lru_cache(maxsize=4)(digest_of)


class StateStore:
    """What was measured before, and what will be found again. It never fails: it says so.

    Args:
        files: where it is kept; None for nowhere.
        full: whether a model is known by all of its weights, which are read for it.
        limit: most bytes that are kept.
    """

    def __init__(self, files: CachedFiles | None, *, full: bool = False, limit: int) -> None:
        self._files, self._full, self._limit = files, full, limit
        self._warned: set[str] = set()

    def where_it_is(self) -> "StateStore":
        """This store, or none on a machine that does not have its folder."""
        if self._files is None or not self._files.folder.parent.is_dir():
            return NO_STORE
        return self

    def key(
        self,
        reference: ModelReference,
        probes: TokenizedProbes,
        request: ModelRequest,
        options: LoadOptions,
        engine: str,
    ) -> str | None:
        """Digest of all that a model's states depend on; None if they are not to be kept.

        Whether a profile is wanted is no part of it: states with one serve both.

        Raises:
            EvaluationError: the model's files are not there.
        """
        if self._files is None:
            return None
        model = model_identity(reference, options, full=self._full)
        if model is None:
            return None
        asked = replace(request, profile=False)
        return digest(
            "states", model, _token_digest(probes.probes), asked, engine, conditions(options)
        )

    def get(
        self, key: str | None, probes: TokenizedProbes, request: ModelRequest
    ) -> ModelStates | None:
        """The states that are kept under a key, if they are all that is wanted and whole."""
        if self._files is None or key is None:
            return None
        path = self._files.path(key)
        try:
            data = self._files.read(key)
            found = None if data is None else from_bytes(data, key, probes, request)
        except OSError as error:
            self._warn(f"{path}: cannot be read ({error.strerror or error})", "measured again")
            return None
        except UnusableRecordError as error:
            self._files.discard(key)
            self._warn(f"{path}: {error}", "measured again")
            return None
        if found is not None and request.profile and found.layers is None and not found.unlayered:
            return None
        return found

    def put(
        self,
        key: str | None,
        found: ModelStates,
        again: Callable[[], str | None],
        *,
        model: str,
        what: str,
    ) -> None:
        """Keep states of which every number is one.

        Args:
            key: None is not kept.
            again: makes the key anew: a model that was changed while it ran is not kept.
            model, what: for whoever lists the cache.
        """
        if self._files is None or key is None or not _is_whole(found):
            return
        try:
            if again() != key:
                return
        except EvaluationError:
            return
        parts = to_parts(found, key, {"model": model, "what": what})
        total = sum(map(len, parts))
        if total > self._limit:
            size = f"{total / 1e6:.1f} MB are over its limit of {self._limit / 1e6:.1f} MB"
            logger.info("states of %s are not kept: %s (%s)", model, size, SIZE_VARIABLE)
            return
        try:
            self._files.make_room(total, self._limit)
            self._files.write(key, *parts)
        except OSError as error:
            text = f"{self._files.folder}: cannot be written ({error.strerror or error})"
            self._warn(text, "not kept")

    def _warn(self, text: str, end: str) -> None:
        """Once for reading and once for writing, however many models there are."""
        level = logging.INFO if end in self._warned else logging.WARNING
        self._warned.add(end)
        logger.log(level, "cache: %s; states are %s", text, end)


NO_STORE = StateStore(None, limit=0)


def _is_whole(found: ModelStates) -> bool:
    layers = found.layers
    spread = [(s.variance, s.effective_rank) for s in layers.statistics] if layers else []
    arrays = [*found.hidden, *(layers.pooled if layers else ()), np.array(spread)]
    arrays += [found.answers] if found.answers is not None else []
    return all(np.isfinite(values).all() for values in arrays)
