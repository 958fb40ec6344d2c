"""Small results in the user's cache, a JSON file each."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_collapse.cached_files import CachedFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptValues:
    """JSON objects by key; None for the files is no cache at all."""

    files: CachedFiles | None

    def get(self, key: str | None) -> Mapping[str, Any] | None:
        """What is kept under a key; None if there is nothing, or nothing to be trusted."""
        if self.files is None or key is None:
            return None
        path = self.files.path(key)
        try:
            data = self.files.read(key)
        except OSError as error:
            logger.warning("cache: %s: cannot be read (%s); made again", path, error.strerror)
            return None
        if data is None:
            return None
        try:
            kept: Any = json.loads(data)
            # The key is in the digest: a file that was copied, cut or changed is then no answer.
            if kept["sha256"] == _digest(key, kept["value"]) and isinstance(kept["value"], dict):
                value: Mapping[str, Any] = kept["value"]
                return value
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        self.files.discard(key)
        logger.warning("cache: %s: its checksum is not that of its content; made again", path)
        return None

    def put(self, key: str | None, value: Mapping[str, Any]) -> None:
        """Keep a value, as far as that is possible."""
        if self.files is None or key is None:
            return
        kept = {"value": value, "sha256": _digest(key, value)}
        try:
            self.files.write(key, (json.dumps(kept, indent=1) + "\n").encode())
        except OSError as error:
            logger.info("%s: not kept: %s", self.files.path(key), error)


NOT_KEPT = KeptValues(None)


def _digest(key: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()
