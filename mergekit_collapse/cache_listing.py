"""The cache as a table, and the removal of what was not used for long."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mergekit_collapse.byte_size import size_text
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.cached_files import (
    SIZE_VARIABLE,
    STATES,
    CachedFile,
    all_cached_files,
    clear,
    size_limit,
)
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import printable
from mergekit_collapse.states.state_file import described

_DAY = 86_400
_MAX_HEADER = 2**20


def listing() -> str:
    """Every file, the last used first: when that was, its size, and what of which model it is.

    Raises:
        InvalidRecipeError: the environment holds no valid size.
    """
    limit, files = size_limit(), all_cached_files()
    lines = [f"{_time(f.used)}  {size_text(f.size):>9}  {f.kind:<10}  {_what(f)}" for f in files]
    states = sum(file.size for file in files if file.kind == STATES[0])
    total = f"{_count(files)}, {size_text(sum(file.size for file in files))}"
    of_limit = f"states take {size_text(states)} of at most {size_text(limit)} ({SIZE_VARIABLE})"
    place = printable(str(cache_folder()))
    return "\n".join([*lines, f"{total} in {place}; {of_limit}"])


def cleared(older_than: int | None) -> str:
    """Remove all of it, or what was not used in so many days; says what was freed.

    Raises:
        EvaluationError: a file cannot be removed; says what was freed all the same.
    """
    files = all_cached_files()
    if older_than is not None:
        files = [f for f in files if f.used < time.time() - older_than * _DAY]
    gone, problems = clear(files)
    freed = f"{_count(gone)} removed, {size_text(sum(f.size for f in gone))} freed"
    if problems:
        raise EvaluationError(
            f"{freed}; {len(problems)} cannot be removed: {problems[0]}; check the rights there"
        )
    return freed


def _count(files: Sequence[CachedFile]) -> str:
    return f"{len(files)} file{'' if len(files) == 1 else 's'}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _what(file: CachedFile) -> str:
    told = _told(file.path, is_states=file.kind == STATES[0])
    model, what = (str(told.get(name, "?")) for name in ("model", "what"))
    return printable(f"{model}: {what}")


def _told(path: Path, *, is_states: bool) -> Mapping[str, Any]:
    """What a file says of itself, which is shown and not relied on."""
    with suppress(OSError, ValueError, RecursionError):
        with path.open("rb") as file:
            start = file.read(_MAX_HEADER)
        if is_states:
            return described(start)
        value = json.loads(start).get("value", {})
        return value if isinstance(value, dict) else {}
    return {}
