"""Smaller batches, where memory ran out with larger ones."""

import logging

from mergekit_collapse.errors import EvaluationError, OutOfMemoryError

logger = logging.getLogger(__name__)


def fewer_tokens(error: EvaluationError, tokens: int, longest: int, *, first: bool) -> int:
    """The next smaller batch after a run that failed with batches of ``tokens``.

    Args:
        error: what it failed with.
        longest: tokens of the longest probe, which is a batch in any case.
        first: whether nothing was said of it yet.

    Raises:
        EvaluationError: ``error`` itself, where it is about something else; or with the reason
            why no batch is smaller.
    """
    if not isinstance(error, OutOfMemoryError):
        raise error
    if tokens <= longest:
        raise EvaluationError(
            f"{error} (a batch is one probe already: the longest has {longest} tokens)"
        ) from error.__cause__
    fewer = max(longest, tokens // 2)
    logger.log(
        logging.WARNING if first else logging.INFO,
        "out of memory with batches of %d tokens: going on with %d%s",
        tokens,
        fewer,
        " and, if need be, fewer" if first else "",
    )
    return fewer
