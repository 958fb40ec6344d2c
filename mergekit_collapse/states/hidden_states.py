"""Hidden states and answer distributions of every model on every probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.arrays import StateArrays
from mergekit_collapse.states.batching import CPU_TOKENS, GPU_TOKENS, Side
from mergekit_collapse.states.devices import runner
from mergekit_collapse.states.fewer_tokens import fewer_tokens
from mergekit_collapse.states.forward import depth
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, each_model, read_config
from mergekit_collapse.states.missing_states import MissingStates
from mergekit_collapse.states.model_states import ModelRequest
from mergekit_collapse.states.pooling import Pooling
from mergekit_collapse.states.run_models import (
    ANY_ROOM,
    LAYERED,
    WHOLE,
    EachModel,
    Room,
    Run,
    RunModels,
)
from mergekit_collapse.states.run_plan import RunPlan, longest_probe, plan_run, tell
from mergekit_collapse.states.state_store import NO_STORE, StateStore
from mergekit_collapse.states.states import States
from mergekit_collapse.states.streaming import Asked, Beside

CACHE = "none, all states were in the cache"


@dataclass(frozen=True)
class StateRequest:
    """What is to be measured.

    Attributes:
        predictive: whether answer distributions are wanted besides hidden states.
        layers: ``last``, ``all`` (1 to L), or numbers: k is transformers'
            ``hidden_states[k]``, 0 the embeddings, L the last after the final norm;
            negative ones count from the end. Of an encoder-decoder, the decoder's.
        pooling: how the states of a prompt's tokens become rows.
        profile: whether each expert's states and their spread after every layer are wanted.
    """

    predictive: bool
    layers: Literal["last", "all"] | tuple[int, ...]
    pooling: Pooling
    profile: bool = False


def collect(  # noqa: PLR0917  (the record of every stage before it, in their order)
    references: Sequence[ModelReference],
    names: Sequence[str],
    expert_count: int,
    probes: TokenizedProbes,
    request: StateRequest,
    options: LoadOptions,
    *,
    beside: Beside | None = None,
    trial: LayeredTrial | None = None,
    each: EachModel = each_model,
    run: RunModels | None = None,
    store: StateStore = NO_STORE,
    batch_tokens: int | None = None,
    side: Side = "right",
) -> States:
    """Run every model over every probe, or find its states.

    What can be is run layer by layer; of other models, one is in memory at a time.

    Vocabularies of different sizes: a token that a model does not have has probability 0
    there, so its rows are filled up with zeros to the largest vocabulary.

    Args:
        references: experts in the order of the recipe, then the base if any.
        names: what to call them in messages and in the result.
        expert_count: how many of them are experts.
        beside: what else the models that are run are run for.
        trial: of whether layers can be run apart; None to have every model whole in memory.
        each: what brings models into memory.
        run: where they are run; None chooses by device.
        store: models whose states it holds are not run, and those of the others are put there.
        batch_tokens: most tokens in a forward pass; None chooses by device. There are fewer where
            ``options.max_memory`` wants it, or where memory runs out.
        side: where batches are padded. Neither changes the result beyond rounding.

    Raises:
        EvaluationError: a model that cannot be loaded or run, does not fit the others, or
            answers NaN or infinity; memory runs out, or ``options.max_memory`` is too little.
        InvalidRecipeError: a layer that the models do not have.
    """
    depths = [depth(read_config(reference, options)) for reference in references]
    layers = resolve_layers(request.layers, depths, names)
    arrays = StateArrays(
        names,
        probes,
        layers=layers,
        depth=depths[0],
        pooling=request.pooling,
        predictive=request.predictive,
    )
    tokens = batch_tokens or default_batch_tokens(options.device)
    wanted = [
        ModelRequest(
            layers=(number,) if request.layers == "last" else layers,
            depth=number,
            pooling=request.pooling,
            predictive=request.predictive,
            profile=request.profile and index < expert_count,
            max_tokens=tokens,
            side=side,
        )
        for index, number in enumerate(depths)
    ]

    missing = MissingStates(
        list(map(Asked, range(len(names)), names, references, wanted)),
        probes,
        options,
        store=store,
        engine=WHOLE if trial is None else LAYERED,
        take=arrays.put,
    )
    missing.find()
    plan: RunPlan | None = None
    while missing.indices and trial is not None:
        asked = missing.asked()
        plan = plan_run(asked, len(names), probes, options, trial, beside=beside, tokens=tokens)
        if plan.estimate.batch_tokens == tokens:
            tell(plan.estimate, options)
            break
        tokens = plan.estimate.batch_tokens
        missing.with_batches_of(tokens)
    due = tuple(missing.indices)
    room = ANY_ROOM if plan is None else Room(plan.estimate.together, plan.require_room)
    reasons: dict[int, str] = {}
    told = False
    while missing.indices:
        try:
            work = Run(
                models=missing.asked(),
                probes=probes,
                options=options,
                trial=trial,
                beside=beside,
                each=each,
                room=room,
                put=missing.put,
            )
            found = (run or runner(options.device))(work)
        except EvaluationError as error:
            tokens = fewer_tokens(error, tokens, longest_probe(probes), first=not told)
        else:
            reasons.update(found)
            break
        # Out of the handler, so that what the failed run held is gone.
        told, room = True, replace(room, together=max(1, room.together // 2))
        missing.with_batches_of(tokens)
    cached = tuple(name for index, name in enumerate(names) if index not in due)
    engine = _engine(len(due), reasons)
    states = arrays.states(expert_count, options.device, options.dtype, engine=engine)
    return replace(states, cached=cached, estimate=plan.estimate if due and plan else None)


def _engine(run: int, reasons: Mapping[int, str]) -> str:
    """How the models were run, of which those with a reason were whole in memory."""
    if not run:
        return CACHE
    if len(reasons) < run:
        return f"{LAYERED}, in part" if reasons else LAYERED
    # The last one's, where they have different ones.
    *_, reason = reasons.values()
    return f"{WHOLE} ({reason})" if reason else WHOLE


def default_batch_tokens(device: str) -> int:
    """Tokens in a forward pass where the caller names no number."""
    return CPU_TOKENS if torch.device(device).type == "cpu" else GPU_TOKENS


def resolve_layers(
    layers: Literal["last", "all"] | tuple[int, ...], depths: Sequence[int], names: Sequence[str]
) -> tuple[int, ...]:
    """Numbers of the wanted layers, from 0 (the embeddings) to L.

    Raises:
        EvaluationError: numbers that mean different layers in models of unequal depth.
        InvalidRecipeError: no such layer, or one twice.
    """
    first = depths[0]
    if layers == "last":
        return (first,)
    for name, other in zip(names, depths, strict=True):
        if other != first:
            raise EvaluationError(
                f"{names[0]} has {first} layers and {name} {other}, so their layers do not"
                " correspond; use `layer: last`"
            )
    if layers == "all":
        return tuple(range(1, first + 1))
    for number in layers:
        if not -first - 1 <= number <= first:
            raise InvalidRecipeError(
                f"compat.layer: no layer {number}; these models have layers 0 (the embeddings)"
                f" to {first}, or -{first + 1} to -1 counted from the end"
            )
    numbers = tuple(number % (first + 1) for number in layers)
    if len(set(numbers)) != len(numbers):
        raise InvalidRecipeError(
            f"compat.layer: a layer stands twice in {list(layers)}, since these models have"
            f" {first} layers; name each once"
        )
    return numbers
