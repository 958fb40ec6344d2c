"""All probes through some models here: layer by layer where that can be, else whole."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mergekit.common import ModelReference

from mergekit_collapse.probes.tokens import TokenizedProbes
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


@runtime_checkable
class RunModels(Protocol):
    """Where models are run: what has the arguments and the result of ``run_models``."""

    def __call__(
        self,
        models: Sequence[Asked],
        probes: TokenizedProbes,
        options: LoadOptions,
        trial: LayeredTrial | None,
        *,
        beside: Beside | None,
        each: EachModel,
        room: Room,
        put: Put,
    ) -> Mapping[int, str]:
        """As ``run_models``."""


def run_models(
    models: Sequence[Asked],
    probes: TokenizedProbes,
    options: LoadOptions,
    trial: LayeredTrial | None,
    *,
    beside: Beside | None,
    each: EachModel,
    room: Room,
    put: Put,
) -> Mapping[int, str]:
    """Run every model over every probe, one after the other on one device.

    Args:
        trial: of whether layers can be run apart; None to have every model whole in memory.
        beside: what else the models are run for.
        each: what brings models into memory.
        room: what memory allows of it.
        put: called with each model's states when they are complete, in any order.

    Returns:
        For each model that was whole in memory why it was, to follow "because"; "" without a trial.

    Raises:
        EvaluationError: a model cannot be loaded or run, or answers NaN or infinity.
    """
    if trial is None:
        reasons: Mapping[int, str] = dict.fromkeys((one.index for one in models), "")
    else:
        reasons = stream(
            models,
            probes,
            options,
            trial,
            beside=beside,
            together=room.together,
            may_be_whole=room.may_be_whole,
            put=put,
        )
    whole = [one for one in models if one.index in reasons]
    for one in whole if trial is not None else ():
        logger.info("%s is loaded whole: %s", one.name, reasons[one.index])

    def visit(place: int, model: Any) -> None:
        one = whole[place]
        put(one, run_whole(one.name, model, probes, one.request, progress=options.progress))
        if trial is not None and one.request.profile:
            trial.visit(one.index, model)
        if beside is not None:
            beside.visit(one.index, model)

    if whole:
        each([one.reference for one in whole], options, visit)
    return reasons
