"""All probes through some models here: layer by layer where that can be, else whole."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.heap import keep_freed_memory
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_states import ModelStates
from mergekit_collapse.states.streaming import Asked, Beside, stream
from mergekit_collapse.states.whole_model import run_whole

logger = logging.getLogger(__name__)

LAYERED, WHOLE = "layer by layer", "whole-model"

EachModel = Callable[[Sequence[ModelReference], LoadOptions, Callable[[int, Any], None]], None]
Put = Callable[[Asked, ModelStates], None]


@dataclass(frozen=True)
class Room:
    """What memory allows.

    Attributes:
        together: how many models may run at a time.
        may_be_whole: called with those that have to be whole before one is loaded, which it may
            refuse by raising.
    """

    together: int
    may_be_whole: Callable[[Mapping[int, str]], None]


def _anything(_whole: Mapping[int, str]) -> None:
    """Refuse nothing."""


ANY_ROOM = Room(sys.maxsize, _anything)


@dataclass(frozen=True)
class Run:
    """Models to be run over every probe, and what for.

    Attributes:
        trial: of whether layers can be run apart; None to have every model whole in memory.
        beside: what else the models are run for.
        each: what brings models into memory.
        room: what memory allows of it.
        put: called with each model's states when they are complete, in any order.
    """

    models: Sequence[Asked]
    probes: TokenizedProbes
    options: LoadOptions
    trial: LayeredTrial | None
    beside: Beside | None
    each: EachModel
    room: Room
    put: Put


RunModels = Callable[[Run], Mapping[int, str]]
"""Where models are run: what takes and returns what ``run_models`` does."""


def run_models(run: Run) -> Mapping[int, str]:
    """Run one model after the other on one device.

    Returns:
        For each model that was whole in memory why it was, to follow "because"; "" without a trial.

    Raises:
        EvaluationError: a model cannot be loaded or run, or answers NaN or infinity.
    """
    trial, options = run.trial, run.options
    keep_freed_memory(options.max_memory)
    if trial is None:
        reasons: Mapping[int, str] = dict.fromkeys((one.index for one in run.models), "")
    else:
        reasons = stream(
            run.models,
            run.probes,
            options,
            trial,
            beside=run.beside,
            together=run.room.together,
            may_be_whole=run.room.may_be_whole,
            put=run.put,
        )
    whole = [one for one in run.models if one.index in reasons]
    for one in whole if trial is not None else ():
        logger.info("%s is loaded whole: %s", one.name, reasons[one.index])

    def visit(place: int, model: Any) -> None:
        one = whole[place]
        found = run_whole(one.name, model, run.probes, one.request, progress=options.progress)
        run.put(one, found)
        if trial is not None and one.request.profile:
            trial.visit(one.index, model)
        if run.beside is not None:
            run.beside.visit(one.index, model)

    if whole:
        run.each([one.reference for one in whole], options, visit)
    return reasons
