"""A merge is made beside its output folder, in a folder that never outlives it."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mergekit_collapse.errors import EvaluationError

if sys.platform != "win32":
    import fcntl

_PREFIX = ".collapse-"
_MAKER = "maker"


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
        # A file system without locks gets no signature, and what lies there is never swept.
        with suppress(OSError):
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
