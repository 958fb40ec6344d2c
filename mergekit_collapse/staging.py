"""A merge is made beside its output folder and moved there once it is accepted."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError

if sys.platform != "win32":
    import fcntl

REPORT = "report.json"
_PREFIX = ".collapse-"
_MAKER = "maker"


def require_usable(out: Path, sources: Iterable[str], report: Path) -> None:
    """Refuse an output that could not be published, before anything is measured.

    Args:
        out: the output folder.
        sources: folders or hub ids of the models that are merged.
        report: folder of the report, which a refused merge has as well.

    Raises:
        InvalidRecipeError: ``out`` is no folder, is a model of the recipe or holds the report.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise InvalidRecipeError(f"{out}: is no folder; name a folder, or a path that is free")
    target = Path(os.path.realpath(out))
    for source in sources:
        if os.path.isdir(source) and Path(os.path.realpath(source)) == target:
            raise InvalidRecipeError(
                f"{out}: is a model that this recipe merges, which the merge would overwrite; "
                "name another output folder"
            )
    if Path(os.path.realpath(report)).is_relative_to(target):
        raise InvalidRecipeError(
            f"compat.report: {report} lies in the output folder {out}, which a refused merge must "
            "not make; name a folder outside it"
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder for the merge, ``<parent of OUT>/.collapse-XXXX/<name of OUT>``.

    It lies on the output's own file system, so that publishing is a rename, and it is
    removed whatever happens, so that an interrupted merge leaves nothing behind. What a
    process that was killed left there is removed by the next merge. Its last part is the
    output's name because MergeKit's model card takes its title from there.

    Raises:
        EvaluationError: the parent folder cannot be made or written.
    """
    # Beside what a link leads to, which may be on another file system.
    parent = Path(os.path.realpath(out)).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        holder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            maker = _sign(holder)
        except OSError:
            _remove(holder)
            raise
    except OSError as error:
        raise EvaluationError(
            f"{parent}: the merge cannot be written there: {error.strerror}; "
            "free the disk, mend its rights or name another output folder"
        ) from None
    try:
        with _unwinding_when_ended():
            yield holder / Path(os.path.abspath(out)).name
    finally:
        maker.close()
        _remove(holder)


def _sign(holder: Path) -> IO[str]:
    """A file that says who makes the merge, locked for as long as its process lives."""
    unsigned = holder / f".{_MAKER}"
    file = unsigned.open("w", encoding="utf-8")
    file.write(f"{socket.gethostname()} {os.getpid()}\n")
    file.flush()
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX)
    # Not before it is locked, lest another merge take this one for a dead one's.
    unsigned.rename(holder / _MAKER)
    return file


def _sweep(parent: Path) -> None:
    """Remove what processes of this host left that were killed in the middle of a merge."""
    if sys.platform == "win32":
        return
    for signature in parent.glob(f"{_PREFIX}*/{_MAKER}"):
        try:
            with signature.open("r+", encoding="utf-8") as file:
                host = file.read().split()[:1]
                # The lock is the process's own, so that a number that was given again is no
                # matter; another host's might not be seen here.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, UnicodeError):
            continue  # its process lives, or it is not ours
        if host == [socket.gethostname()]:
            _remove(signature.parent)


def _remove(holder: Path) -> None:
    """Also under the hands of MergeKit's writing threads, which a stopped merge leaves running."""
    for _ in range(50):
        shutil.rmtree(holder, ignore_errors=True)
        if not holder.exists():
            return
        time.sleep(0.1)


@contextmanager
def _unwinding_when_ended() -> Iterator[None]:
    """Let SIGTERM and a lost terminal end the program through its ``finally`` clauses."""
    changed = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows lacks the second
            number = getattr(signal, name, None)
            # Whoever has a handler of their own keeps it.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, _frame: sys.exit(128 + number))
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def publish(merged: Path, out: Path) -> None:
    """Move a finished merge to ``out``.

    Onto nothing or an empty folder it is one rename. A folder that has files keeps those
    that the merge does not write, as under stock MergeKit; ``config.json``, without which
    no reader takes the folder for a model, is taken away first and comes last.

    Raises:
        EvaluationError: a folder is in the way of a file, or the output cannot be written.
    """
    out = Path(os.path.realpath(out))
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            os.replace(merged, out)
        else:
            _move_into(merged, out)
    except OSError as error:
        raise EvaluationError(
            f"{error.filename or out}: the merge cannot be put there: {error.strerror}; "
            "mend its rights, or name another output folder"
        ) from error


def reject(merged: Path, out: Path) -> Path:
    """Move a finished merge to ``OUT.rejected``, where nothing takes it for OUT.

    An earlier rejected merge, which is known by its report, is replaced; anything else keeps its
    place, and the merge gets a number.

    Raises:
        EvaluationError: it cannot be moved.
    """
    out = Path(os.path.realpath(out))
    place, number = out.with_name(f"{out.name}.rejected"), 1
    while os.path.lexists(place) and not (place / REPORT).is_file():
        number += 1
        place = out.with_name(f"{out.name}.rejected-{number}")
    try:
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(merged, place)
    except OSError as error:
        raise EvaluationError(
            f"{error.filename or place}: the rejected merge cannot be put there: {error.strerror}; "
            "mend its rights or remove it"
        ) from error
    return place


def _move_into(merged: Path, out: Path) -> None:
    made = sorted(merged.rglob("*"), key=lambda p: p.name == "config.json")
    targets = {path: out / path.relative_to(merged) for path in made}
    for path, target in targets.items():
        if target.exists() and target.is_dir() != path.is_dir():
            raise EvaluationError(
                f"{target}: is in the way of what the merge writes there; remove it, or name "
                "another output folder. Nothing was changed"
            )
    (out / "config.json").unlink(missing_ok=True)
    for path, target in targets.items():
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
