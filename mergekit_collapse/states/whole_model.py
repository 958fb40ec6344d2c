"""All probes through one model that is whole in memory."""

from typing import Any

from tqdm import tqdm

from mergekit_collapse.findings import printable
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.forward import (
    LayersNotToldApartError,
    Outputs,
    decoder_start,
    forward,
    reads_decoder_inputs,
)
from mergekit_collapse.states.model_states import (
    NOT_ASKED,
    ModelRecorder,
    ModelRequest,
    ModelStates,
    no_head,
    require_known_tokens,
)
from mergekit_collapse.states.profiles import LayerProfile


def run_whole(
    name: str, model: Any, probes: TokenizedProbes, request: ModelRequest, *, progress: bool
) -> ModelStates:
    """Run one model over every probe.

    A model that does not tell its layers apart has no profile, and says so.

    Args:
        name: what to call the model in messages.
        model: in evaluation mode, on the device where it is to run.

    Raises:
        EvaluationError: it cannot be run, does not know a token, or answers NaN or infinity.
    """
    mend = "check that the model runs in transformers by itself"
    with (
        told_as_evaluation_error(f"model {name}", mend),
        tqdm(
            total=len(probes.probes), desc=printable(name), unit="probe", disable=not progress
        ) as bar,
    ):
        require_known_tokens(name, model, probes)
        reason = no_head(model) if request.predictive else NOT_ASKED
        batches = make_batches(
            probes.probes,
            answers=reason is None,
            decoder_start=decoder_start(model) if reads_decoder_inputs(model) else None,
            max_tokens=request.max_tokens,
            side=request.side,
        )
        recorder = ModelRecorder(
            name,
            probes,
            batches,
            layers=request.layers,
            pooling=request.pooling,
            answers_reason=reason,
        )
        profile, unlayered = None, False
        if request.profile:
            profile = LayerProfile(
                request.depth, len(probes.probes), request.pooling, batches, probes.rounds
            )
        for batch in batches:
            asked = request.layers if profile is None else range(request.depth + 1)
            try:
                outputs = forward(model, batch, asked, request.depth, reason is None)
            except LayersNotToldApartError:
                if profile is None:
                    raise
                profile, unlayered = None, True
                outputs = forward(model, batch, request.layers, request.depth, reason is None)
            if profile is not None:
                profile.add_all(batch, outputs.hidden)
                wanted = tuple(outputs.hidden[k] for k in request.layers)
                outputs = Outputs(wanted, outputs.answers)
            recorder.add(batch, outputs)
            bar.update(len(batch.probes) + len(batch.repeats))
    return recorder.states(profile.layers() if profile else None, unlayered=unlayered)
