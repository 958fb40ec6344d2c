"""The sweeps that models are going to run in, as figures, before a weight is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mergekit.common import ModelPath, ModelReference

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.tensor_headers import read_header
from mergekit_collapse.preflight.weight_files import adapter_folder
from mergekit_collapse.probes.tokens import TokenizedProbes
from mergekit_collapse.states.batching import Batch, make_batches
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.figures import BatchSize, ModelFigures, Runner, SweepFigures
from mergekit_collapse.states.layered_files import LayeredFiles
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, read_config
from mergekit_collapse.states.model_figures import layered_figures, whole_figures
from mergekit_collapse.states.streaming import Asked, Beside

# An encoder-decoder's decoder begins with one token, whichever.
_START = 0


@dataclass(frozen=True)
class PlannedSweep:
    """Models that run together.

    Attributes:
        figures: for some number of tokens in a batch.
        names: of the models.
        reason: why they are loaded whole; None where they run layer by layer.
    """

    figures: SweepFigures
    names: tuple[str, ...]
    reason: str | None


@dataclass
class _Group:
    """Those of one shape whose first layers may be the same."""

    figures: ModelFigures
    answers: bool
    reason: str | None = None
    two_sided: bool = False
    first: LayeredFiles | None = None
    bases: list[ModelReference] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    runners: list[Runner] = field(default_factory=list)


class ModelsToRun:
    """What is known of the models that are to be run, from headers and configurations.

    Args:
        models: those whose states are not known.
        beside: what else they are run for.

    Raises:
        EvaluationError: there is no such model, or a file is truncated.
    """

    def __init__(
        self,
        models: Sequence[Asked],
        probes: TokenizedProbes,
        options: LoadOptions,
        trial: LayeredTrial,
        beside: Beside | None,
    ) -> None:
        self._probes, self._options, self._beside = probes, options, beside
        self._trial, self._groups = trial, list[_Group]()
        for asked in models:
            self._add(asked)

    def sweeps(self, max_tokens: int) -> list[PlannedSweep]:
        """With batches of so many tokens."""
        return [self._sweep(group, max_tokens) for group in self._groups]

    @property
    def tried(self) -> list[tuple[ModelFigures, Sequence[BatchSize]]]:
        """The models that are tried first, and on what."""
        by_layers = {group.bases[0]: group for group in self._groups if group.reason is None}
        sizes = [size_of(batch) for batch in self._trial.batches]
        return [(by_layers[base].figures, sizes) for base in self._trial.due(by_layers)]

    @property
    def hidden(self) -> int:
        """Width of the widest states."""
        return max(group.figures.hidden for group in self._groups)

    @property
    def vocabulary(self) -> int:
        """Of the largest."""
        return max(group.figures.vocabulary for group in self._groups)

    def alone(self, index: int, max_tokens: int) -> PlannedSweep:
        """A model by itself that turned out to have to be whole."""
        asked = next(a for group in self._groups for a in group.asked if a.index == index)
        base = asked.base
        figures = whole_figures(base, read_config(base, self._options), self._options)
        answers = bool(figures.vocabulary) and asked.request.predictive
        group = _Group(figures, answers)
        self._join(group, asked, base, frozenset({0} if asked.reference.lora else ()))
        return self._sweep(group, max_tokens)

    def _add(self, asked: Asked) -> None:
        base, lora = asked.base, asked.reference.lora
        try:
            files = self._trial.look(base)
            adapter = None if lora is None else files.adapter(lora)
        except NotLayeredError as error:
            return self._add_whole(asked, base, str(error))
        except EvaluationError as error:
            if lora is None:
                raise
            # PEFT may know it all the same.
            return self._add_whole(asked, base, str(error))
        group = next((g for g in self._groups if _fits(g, files)), None)
        if group is None:
            answers = files.head and asked.request.predictive
            group = _Group(layered_figures(files), answers, first=files)
            self._groups.append(group)
        changed = frozenset[int]()
        if adapter is not None:
            stages = enumerate(files.staged.stages)
            changed = frozenset(k for k, names in stages if not adapter.changed.isdisjoint(names))
        self._join(group, asked, base, changed)
        return None

    def _add_whole(self, asked: Asked, base: ModelReference, reason: str) -> None:
        group = next((g for g in self._groups if base in g.bases), None)
        if group is None:
            config = read_config(base, self._options)
            figures = whole_figures(base, config, self._options)
            answers = bool(figures.vocabulary) and asked.request.predictive
            group = _Group(figures, answers, reason, bool(config.is_encoder_decoder))
            self._groups.append(group)
        self._join(group, asked, base, frozenset({0} if asked.reference.lora else ()))

    def _join(
        self, group: _Group, asked: Asked, base: ModelReference, changed: frozenset[int]
    ) -> None:
        if base not in group.bases:
            group.bases.append(base)
        nbytes, merging = 0, 0
        if asked.reference.lora is not None:
            nbytes, merging = _adapter_cost(asked.reference.lora, self._options.cache_dir)
        group.asked.append(asked)
        group.runners.append(Runner(group.bases.index(base), changed, nbytes, merging))

    def _sweep(self, group: _Group, max_tokens: int) -> PlannedSweep:
        start = _START if group.two_sided else None
        batches = make_batches(
            self._probes.probes,
            answers=group.answers,
            decoder_start=start,
            max_tokens=max_tokens,
            side=group.asked[0].request.side,
        )
        runners = []
        for asked, runner in zip(group.asked, group.runners, strict=True):
            extra = self._beside.due(asked.index) if self._beside is not None else None
            further: Sequence[Batch] = ()
            if extra is not None and group.figures.vocabulary:
                further = extra.batches(decoder_start=start, max_tokens=max_tokens)
            sizes = tuple(map(size_of, further))
            runners.append(replace(runner, extras=sizes))
        common = tuple(size_of(batch, answers=group.answers) for batch in batches)
        figures = SweepFigures(group.figures, tuple(runners), common)
        return PlannedSweep(figures, tuple(asked.name for asked in group.asked), group.reason)


def size_of(batch: Batch, *, answers: bool = True) -> BatchSize:
    """A batch's figures, ``answers`` being whether the head is run."""
    sequences, length = batch.inputs.ids.shape
    decoder = batch.decoder_inputs.ids.shape[1] if batch.decoder_inputs is not None else 0
    return BatchSize(sequences, length, len(batch.answer_sequences) * answers, decoder)


def _fits(group: _Group, files: LayeredFiles) -> bool:
    return group.first is not None and group.first.starts_like(files, surely=False)


def _adapter_cost(path: ModelPath, cache_dir: str | None) -> tuple[int, int]:
    """Bytes of an adapter's tensors, and the FLOPs of all its products B · A."""
    folder = adapter_folder(path, cache_dir)
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        # Pickled: shapes are not known, and the products are few beside the model's.
        return (folder / "adapter_model.bin").stat().st_size, 0
    header = read_header(file)
    total = sum(header.bytes_of_dtype.values())
    return total, sum(_product(name, shape, header.shapes) for name, shape in header.shapes.items())


def _product(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    up = shapes.get(name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B"))
    if ("lora_A" not in name and "lora_embedding_A" not in name) or up is None:
        return 0
    return 2 * math.prod(shape) * up[0]
