"""A merge is made beside its output folder and moved there once it is accepted."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_collapse.errors import EvaluationError

_PREFIX = ".collapse-"


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder for the merge, ``<parent of OUT>/.collapse-XXXX/<name of OUT>``.

    It lies on the output's own file system, so that publishing is a rename, and it is
    removed whatever happens, so that an interrupted merge leaves nothing behind. Its last
    part is the output's name because MergeKit's model card takes its title from there.

    Raises:
        EvaluationError: the parent folder cannot be made or written.
    """
    out = Path(os.path.abspath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=out.parent))
    except OSError as error:
        raise EvaluationError(
            f"{out.parent}: the merge cannot be written there: {error.strerror}"
        ) from None
    try:
        yield holder / out.name
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def publish(merged: Path, out: Path) -> None:
    """Move a finished merge to ``out``.

    Onto nothing or an empty folder it is one rename. A folder that has files keeps those
    that the merge does not write, as under stock MergeKit; ``config.json``, without which
    no reader takes the folder for a model, is taken away first and comes last.
    """
    out = Path(os.path.abspath(out))
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        os.replace(merged, out)
        return
    (out / "config.json").unlink(missing_ok=True)
    for path in sorted(merged.rglob("*"), key=lambda p: p.name == "config.json"):
        target = out / path.relative_to(merged)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
