"""Models measured round by round, until no more probes are needed."""

import logging
from collections.abc import Callable

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.geometry.sequential import spending
from mergekit_collapse.probes.rounds import SIZES
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.hidden_states import CACHE
from mergekit_collapse.states.joined import joined
from mergekit_collapse.states.states import States
from mergekit_collapse.stopping import Look, Outcome, Stop

LOG = logging.getLogger(__name__)


def in_rounds(
    probes: TokenizedProbes,
    measure: Callable[[TokenizedProbes, int], States],
    look: Callable[[States, TokenizedProbes, float], Outcome | None],
    *,
    samples: int,
    rounds: int | None = None,
) -> tuple[States, Stop | None]:
    """States of the probes of as many rounds as are needed.

    A round is measured as a set of probes by itself, so that a cache has it again whatever
    follows it, and no probe is measured twice.

    Args:
        probes: of all rounds, or without rounds.
        measure: gives the states of the probes that one round adds, by its number from 0.
        look: what the states of all rounds so far say, at a level that may be spent.
        samples: most probes of a task.
        rounds: how many there are to be, whatever is seen; None to stop where that is clear.

    Returns:
        The states, and where measuring stopped; None for that where there are no rounds.
    """
    if not probes.rounds:
        return measure(probes, 0), None
    levels = (*spending(probes.rounds[:-1]), 0.0) if len(probes.rounds) > 1 else (0.0,)
    states = measure(probes.added(0), 0)
    looks: list[Look] = []
    for number, (count, level) in enumerate(zip(probes.rounds, levels, strict=True), start=1):
        if number > 1:
            states = joined(states, measure(probes.added(number - 1), number - 1), idle=CACHE)
        found = look(states, probes.first(number), level) if level else None
        looks.append(Look(min(SIZES[number - 1], samples), count, level, found))
        LOG.info("%d probes of each task: %s", looks[-1].samples, found or "open")
        if number == rounds or (rounds is None and found is not None):
            break
    return states, Stop(tuple(looks), samples, probes.rounds[-1])


def rounds_of(probes: TokenizedProbes, token_digest: str | None) -> int | None:
    """After how many rounds the probes are those of a plan; None where there is no plan.

    Args:
        token_digest: of the plan's probes.

    Raises:
        InvalidRecipeError: they never are.
    """
    if token_digest is None:
        return None
    for number in range(1, max(1, len(probes.rounds)) + 1):
        if probes.first(number).digest == token_digest:
            return number
    raise InvalidRecipeError(
        f"the probes are not those of the plan: token digest {token_digest[:12]} there, "
        f"{probes.digest[:12]} here; run `mergekit-collapse check --plan` again"
    )
