"""A process of our own that runs parts on one device.

Not a thread: transformers and accelerate build models under settings of the whole process. And
not ``multiprocessing``, which would run a calling program's script once more.
"""

import os
import pickle
import signal
import subprocess
import sys
from types import TracebackType

import torch

from mergekit_collapse.errors import CompatError, EvaluationError
from mergekit_collapse.states.parts import Part, PartStates, Work, run_part

# -I: the working directory is no place to import from, and the path is the parent's. Whatever
# foreign code prints, while it is imported too, must not come between the results.
_START = (
    "import os, pickle, sys; results = os.dup(1); os.dup2(2, 1); "
    "sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from mergekit_collapse.states.device_process import serve; serve(results)"
)
# What ends by itself has ended by then.
_SECONDS = 10


class DeviceProcess:
    """Runs one part after the other."""

    def __init__(self, work: Work) -> None:
        self._device = work.options.device
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._first: tuple[object, ...] = (sys.path, work)

    def run(self, part: Part) -> PartStates:
        """What ``run_part`` returns.

        Raises:
            EvaluationError: as ``run_part``; or the process is lost.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            for given in (*self._first, part):
                pickle.dump(given, self._process.stdin)
            self._first = ()
            self._process.stdin.flush()
            found = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = self._ended()
            raise EvaluationError(
                f"{part.names}: the process on {self._device} ended with exit code {code}; what it "
                "said stands above, and if it said nothing it was killed, as for a lack of memory"
            ) from error
        if isinstance(found, CompatError):
            raise found
        assert isinstance(found, PartStates)
        return found

    def _ended(self) -> int:
        try:
            return self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> "DeviceProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # There is nothing that it could leave half-done.
        self._process.kill()
        self._process.communicate()


def serve(descriptor: int) -> None:
    """Run what comes in, in the process that was started for it.

    Args:
        descriptor: where results go.
    """
    # Ctrl-C is the parent's to take.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results = os.fdopen(descriptor, "wb")
    work = pickle.load(sys.stdin.buffer)
    if torch.device(work.options.device).type == "cuda":
        torch.cuda.set_device(work.options.device)
    while True:
        try:
            part = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            found: object = run_part(part, work)
        except CompatError as error:
            found = error
        pickle.dump(found, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()
