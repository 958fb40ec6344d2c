"""What is to be run over the probes, as plain numbers: shapes of models, batches and results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Weights that are in memory together.

    Attributes:
        stored: bytes on disk.
        computed: bytes in the precision of the forward passes.
        entries: numbers.
        converted: whether the two precisions differ, so that both are held for a moment.
        matrices: entries of the matrices that each token of the input is multiplied with.
        attentions: attentions of the input's tokens to one another.
        decoder_matrices, decoder_attentions: the same for what an encoder-decoder's decoder reads.
        cross_attentions: of its decoder's tokens to its encoder's.
    """

    stored: int
    computed: int
    entries: int
    converted: bool
    matrices: int = 0
    attentions: int = 0
    decoder_matrices: int = 0
    decoder_attentions: int = 0
    cross_attentions: int = 0


@dataclass(frozen=True)
class ModelFigures:
    """One model.

    Attributes:
        stages: embeddings, layers 1 to L, norm and head, which are given the embeddings again if
            they share them; a single one for all of a model that is loaded whole.
        hidden: width of the states.
        attended: width of all heads together.
        intermediate: width of the widest product within a layer.
        vocabulary: what answers are as wide as; 0 without a language head.
        scored: heads whose attention scores are written out; 0 where they never are.
        itemsize: bytes of a number in the forward passes.
    """

    stages: tuple[Stage, ...]
    hidden: int
    attended: int
    intermediate: int
    vocabulary: int
    scored: int
    itemsize: int

    @property
    def whole(self) -> bool:
        """Whether all of it is in memory at a time."""
        return len(self.stages) == 1

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return sum(stage.attentions + stage.decoder_attentions for stage in self.stages)

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return sum(stage.stored for stage in self.stages)


@dataclass(frozen=True)
class BatchSize:
    """One forward pass: sequences of a padded length, and positions that are answered."""

    sequences: int
    length: int
    answers: int
    decoder_length: int = 0

    @property
    def tokens(self) -> int:
        """Of the input, padding included, since it is computed as well."""
        return self.sequences * self.length

    @property
    def decoded(self) -> int:
        """Of what a decoder of its own reads."""
        return self.sequences * self.decoder_length


@dataclass(frozen=True)
class Runner:
    """One model of a sweep.

    Attributes:
        base: which of the sweep's checkpoints it is, or is an adapter of.
        changed: the stages that its adapter changes.
        adapter_bytes: of the adapter's tensors.
        merging: FLOPs of adding it to its base, Σ 2 · rank · entries of the weight.
        extras: further batches that it alone is run for.
    """

    base: int
    changed: frozenset[int] = frozenset()
    adapter_bytes: int = 0
    merging: int = 0
    extras: tuple[BatchSize, ...] = ()


@dataclass(frozen=True)
class SweepFigures:
    """Models of one shape that run over the same batches, some of them at a time."""

    figures: ModelFigures
    runners: tuple[Runner, ...]
    batches: tuple[BatchSize, ...]

    def parts(self, together: int) -> Iterator[Sequence[Runner]]:
        """Those that run at a time."""
        for start in range(0, len(self.runners), together):
            yield self.runners[start : start + together]

    @property
    def all_batches(self) -> tuple[BatchSize, ...]:
        """Those of the probes, and each model's own."""
        return (*self.batches, *(batch for one in self.runners for batch in one.extras))


@dataclass(frozen=True)
class KeptArrays:
    """Bytes that stay when a model was run, and what is made of all of them.

    Attributes:
        arrays: of one model: its states in each wanted layer, and its answers ψ.
        profile: of one model: its states after every layer; 0 where they are not wanted.
        samples: of one model while it runs: positions sampled for the spread of each layer.
        models: how many models have arrays, those from the cache included.
        experts: how many of them have a profile.
        geometry: distances of every two models on every part of the probes.
    """

    arrays: tuple[int, ...]
    profile: int
    samples: int
    models: int
    experts: int
    geometry: int
