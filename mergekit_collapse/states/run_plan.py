"""How models are going to be run over the probes, so that memory suffices."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from mergekit_collapse.byte_size import size_text
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import printable
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.counted_positions import MAX_POSITIONS
from mergekit_collapse.states.estimate import Estimate, estimated, parts_text
from mergekit_collapse.states.figures import BatchSize, KeptArrays, ModelFigures
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.memory_use import resident
from mergekit_collapse.states.model_states import answer_rows
from mergekit_collapse.states.streaming import Asked, Beside
from mergekit_collapse.states.sweep_figures import ModelsToRun, PlannedSweep

logger = logging.getLogger(__name__)

# Of the states of one layer that are held for models that run together.
_STATES_LIMIT = 2**31
# Of float64 numbers, in distances and in their yardstick (``probe_parts``, ``chance_distances``).
_DISTANCES, _PAIRS = 2**27, 4096


@dataclass(frozen=True)
class RunPlan:
    """What fits.

    Attributes:
        estimate: of it, with the models that run at a time and the tokens of a batch.
        models: that are to be run.
    """

    estimate: Estimate
    models: ModelsToRun
    kept: KeptArrays
    options: LoadOptions

    def require_room(self, whole: Mapping[int, str]) -> None:
        """Before models are loaded whole that were thought to run layer by layer.

        Raises:
            EvaluationError: one does not fit into ``options.max_memory``.
        """
        limit = self.options.max_memory
        if limit is None:
            return
        planned = {name for name, _ in self.estimate.whole}
        for index, reason in whole.items():
            tokens = self.estimate.batch_tokens
            sweep = self.models.alone(index, tokens)
            (name,) = sweep.names
            if name in planned:
                continue
            found = _estimate([sweep], self.kept, self.options, 1, tokens)
            if not found.memory.peak <= limit:
                why = f"{printable(name)} has to be loaded whole ({printable(reason)}), which"
                raise EvaluationError(_too_much(why, found, limit))


def plan_run(
    models: Sequence[Asked],
    model_count: int,
    probes: TokenizedProbes,
    options: LoadOptions,
    trial: LayeredTrial,
    *,
    beside: Beside | None,
    tokens: int,
) -> RunPlan:
    """Choose how many models run at a time and the size of batches; nothing is read but headers.

    First fewer models run together, then batches shrink, down to the longest probe.

    Args:
        models: those that are to be run, at least one.
        model_count: of all that have states, those from the cache included.
        tokens: most of a batch, where memory allows.

    Raises:
        EvaluationError: even the least is over ``options.max_memory``; says what needs how much
            and what to lower. Or a model is not there.
    """
    found = ModelsToRun(models, probes, options, trial, beside)
    kept = _kept(models, model_count, probes, found)
    every = sum(len(probe.prompt) + len(probe.target) for probe in probes.probes)
    together = most_together(every, found.hidden, options.dtype.itemsize)
    longest = longest_probe(probes)
    while True:
        planned = found.sweeps(tokens)
        together = min(together, max(len(one.names) for one in planned))
        estimate = _estimate(planned, kept, options, together, tokens, tried=found.tried)
        limit = options.max_memory
        if limit is None or estimate.memory.peak <= limit:
            return RunPlan(estimate, found, kept, options)
        if together > 1:
            together //= 2
        elif tokens > longest:
            tokens = max(longest, tokens // 2)
        else:
            raise EvaluationError(_too_much("measuring these models", estimate, limit))


def tell(estimate: Estimate, options: LoadOptions) -> None:
    """One line beside the progress bars, or into the log where those are not wanted."""
    if options.progress:
        tqdm.write(estimate.text, file=sys.stderr)
    else:
        logger.info("%s", estimate.text)


def longest_probe(probes: TokenizedProbes) -> int:
    """Tokens of the longest, which no batch can be below."""
    return max(len(probe.prompt) + len(probe.target) for probe in probes.probes)


def _estimate(
    planned: Sequence[PlannedSweep],
    kept: KeptArrays,
    options: LoadOptions,
    together: int,
    tokens: int,
    *,
    tried: Sequence[tuple[ModelFigures, Sequence[BatchSize]]] = (),
) -> Estimate:
    whole = ((name, one.reason) for one in planned if one.reason for name in one.names)
    return estimated(
        [one.figures for one in planned],
        kept,
        together=together,
        batch_tokens=tokens,
        tried=tried,
        process=resident(),
        device=torch.device(options.device).type,
        whole=tuple(whole),
    )


def _too_much(what: str, estimate: Estimate, limit: int) -> str:
    memory = estimate.memory
    return (
        f"{what} needs up to {size_text(memory.peak)} of memory even with one model at a time and "
        f"batches of {estimate.batch_tokens} tokens ({parts_text(memory)}), and --max-memory is "
        f"{size_text(limit)}; raise it, lower probes.samples or probes.max_tokens in the compat "
        "block, or leave out space: predictive"
    )


def most_together(tokens: int, hidden: int, itemsize: int) -> int:
    """How many models may run at a time where memory is not limited, by their states' bytes."""
    return max(1, _STATES_LIMIT // (tokens * hidden * itemsize))


def kept_arrays(
    widths: tuple[int, int],
    rows: tuple[int, int],
    probes: int,
    layers: int,
    *,
    models: int,
    profiled: int,
) -> KeptArrays:
    """Bytes of results.

    Args:
        widths: of states, and of answers.
        rows: of states in each wanted layer, and of answers; no answers are 0 rows.
        layers: how many are wanted.
        models: how many have results.
        profiled: states after how many layers are kept besides, 0 for none.
    """
    hidden, vocabulary = widths
    arrays = [4 * rows[0] * hidden] * layers + [4 * rows[1] * vocabulary]
    values = min(_DISTANCES, (1 + layers) * probes * models**2)
    chance = min(_DISTANCES, min(_PAIRS, probes**2) * models**2)
    return KeptArrays(
        arrays=tuple(arrays),
        profile=4 * profiled * probes * hidden,
        # In float64, and one of them once more when its spread is made.
        samples=8 * (profiled + 1) * MAX_POSITIONS * hidden if profiled else 0,
        models=models,
        experts=models if profiled else 0,
        geometry=2 * 8 * (values + chance),
    )


def _kept(
    models: Sequence[Asked], count: int, probes: TokenizedProbes, found: ModelsToRun
) -> KeptArrays:
    request, number = models[0].request, len(probes.probes)
    rows = number
    if request.pooling == "tokens":
        rows = sum(len(probe.prompt) + len(probe.target) for probe in probes.probes)
    answers = int(answer_rows(probes).sum()) if request.predictive else 0
    profiled = any(asked.request.profile for asked in models)
    return kept_arrays(
        (found.hidden, found.vocabulary),
        (rows, answers),
        number,
        len(request.layers),
        models=count,
        profiled=(request.depth + 1) * profiled,
    )
