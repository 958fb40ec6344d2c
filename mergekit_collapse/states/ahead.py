"""The next piece of work done in another thread while this one is in use."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Hands out the results of ``jobs`` in their order, the next one begun meanwhile.

    Never more than two are held: the one that was taken, as long as its taker has it, and the
    next. A job's error is raised where its result is taken.
    """

    def __init__(self, jobs: Iterable[Callable[[], T]]) -> None:
        self._jobs = iter(jobs)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mergekit-collapse-reader")
        self._next: Future[T] | None = None

    def take(self) -> T:
        """The next result; let go of the last one first.

        Raises:
            StopIteration: there are no more.
        """
        if self._next is None:
            self._next = self._pool.submit(next(self._jobs))
        result = self._next.result()
        job = next(self._jobs, None)
        self._next = None if job is None else self._pool.submit(job)
        return result

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
