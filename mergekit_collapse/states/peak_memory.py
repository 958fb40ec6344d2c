"""An upper bound of the memory that a sweep takes, from its figures alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

from mergekit_collapse.states import storage
from mergekit_collapse.states.figures import (
    BatchSize,
    KeptArrays,
    ModelFigures,
    Stage,
    SweepFigures,
)

# What torch's libraries and the heap keep beyond the tensors that are counted; where memory is
# limited, freed memory is not kept (``heap``).
SPARE = 300 * 10**6
# Through which weights come to a GPU; ``stage_reader.CudaReader`` takes the number from here.
PINNED = 2**27
# Numbers per token of cosines and sines, for heads of up to 128.
_ROTATIONS = 256


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are taken for.

    Attributes:
        embeddings: embeddings, norm and head, as many as are held at a time.
        layers: the layer that is used and the one that is read ahead; with adapters also the
            changed weights in float32. All weights where a model is loaded whole.
        states: of one layer, for every model that runs at a time; masks and rotations.
        batch: the widest intermediate of one batch.
        arrays: states, answers ψ and profiles that are kept.
        geometry: distances, which are made when no weights are held.
        process: what was taken before.
        spare: what libraries keep.
    """

    embeddings: int = 0
    layers: int = 0
    states: int = 0
    batch: int = 0
    arrays: int = 0
    geometry: int = 0
    process: int = 0
    spare: int = SPARE

    @property
    def peak(self) -> int:
        """Most that is taken at a time."""
        running = self.embeddings + self.layers + self.states + self.batch
        return self.process + self.spare + self.arrays + max(running, self.geometry)

    @property
    def parts(self) -> Mapping[str, int]:
        """By name."""
        return asdict(self)


def running_memory(sweep: SweepFigures, together: int) -> Memory:
    """What weights and forward passes take on the device where they are.

    Args:
        together: how many of the models run at a time.
    """
    figures, most = sweep.figures, min(together, len(sweep.runners))
    changed = frozenset().union(*(one.changed for one in sweep.runners))
    several = len({one.base for one in sweep.runners}) > 1
    if figures.whole:
        embeddings, layers = 0, _whole(figures.stages[0], adapted=bool(changed))
        # Every layer's states of one batch, and of no other.
        held = (_held(figures, batch) for batch in sweep.all_batches)
        states = max(held, default=0) * (figures.depth + 1)
    else:
        embeddings = _ends(figures, changed, several=several)
        layers = _layers(figures, changed, several=several)
        own = sorted(sum(_held(figures, b) for b in one.extras) for one in sweep.runners)
        states = most * sum(_held(figures, batch) for batch in sweep.batches)
        states += sum(own[len(own) - most :])
    batch = max((_widest(figures, batch) for batch in sweep.all_batches), default=0)
    return Memory(embeddings=embeddings, layers=layers, states=states, batch=batch)


def arrays_memory(kept: KeptArrays, most: int) -> int:
    """Results: of the models that run at a time, and put together of all.

    Arrays too large for memory lie in a temporary file and are left out.

    Args:
        most: how many models run at a time.
    """
    own = sum(map(_in_memory, (*kept.arrays, kept.profile))) + kept.samples
    together = sum(_in_memory(kept.models * nbytes) for nbytes in kept.arrays)
    return most * own + together + kept.experts * _in_memory(kept.profile)


def _in_memory(nbytes: int) -> int:
    return nbytes if nbytes <= storage.MEMORY_LIMIT else 0


def passing_memory(sweep: SweepFigures, device: str) -> int:
    """Of the processor where another device computes: weights on their way there."""
    figures = sweep.figures
    if figures.whole:
        return figures.stored
    # Two shards that may be equal are compared through pieces no larger than those.
    way = PINNED if device == "cuda" else 2 * max(stage.stored for stage in figures.stages)
    return way + max(one.adapter_bytes for one in sweep.runners)


def _whole(stage: Stage, *, adapted: bool) -> int:
    # Files are mapped, which counts as memory, and copied; PEFT's updates are of one weight.
    return stage.stored + stage.computed + (stage.computed // 10 if adapted else 0)


def _use(stage: Stage, *, adapted: bool) -> int:
    """While it is used: with an adapter as stored, changed in float32, and as it is computed."""
    if not adapted:
        return stage.computed
    exact = 4 * stage.entries
    return stage.stored + exact + (stage.computed if stage.computed != exact else 0)


def _read(stage: Stage, *, adapted: bool) -> int:
    """While it is read, and converted unless an adapter is to be added first."""
    return stage.stored + (stage.computed if stage.converted and not adapted else 0)


def _ends(figures: ModelFigures, changed: frozenset[int], *, several: bool) -> int:
    """Embeddings, or norm and head: never both at a time."""
    number = len(figures.stages) - 1
    first, last = figures.stages[0], figures.stages[-1]
    read, adapted = _read(last, adapted=number in changed), number in changed
    return max(
        _read(first, adapted=0 in changed),
        _use(first, adapted=0 in changed),
        read,
        # Models that run together begin alike, and end each in its own way.
        _use(last, adapted=adapted) + read * several,
    )


def _layers(figures: ModelFigures, changed: frozenset[int], *, several: bool) -> int:
    layers = [(stage, k in changed) for k, stage in enumerate(figures.stages)][1:-1]
    most = max((_read(stage, adapted=False) for stage, _ in layers), default=0)
    for (one, adapted), (after, also) in pairwise(layers):
        most = max(most, _use(one, adapted=adapted) + _read(after, adapted=also))
    for one, adapted in layers:
        # Beside it, the same layer of the next checkpoint.
        most = max(most, _use(one, adapted=adapted) + _read(one, adapted=adapted) * several)
    return most


def _held(figures: ModelFigures, batch: BatchSize) -> int:
    """One batch's states of a layer, with what its layers are called with."""
    length, tokens = max(batch.length, batch.decoder_length), batch.tokens + batch.decoded
    numbers = tokens * (figures.hidden + _ROTATIONS) + batch.sequences * length**2
    return numbers * figures.itemsize


def _widest(figures: ModelFigures, batch: BatchSize) -> int:
    """The larger of what a layer and the head make of one batch."""
    size, tokens = figures.itemsize, max(batch.tokens, batch.decoded)
    wide = 3 * figures.intermediate + 6 * figures.hidden + 4 * figures.attended
    layer = tokens * wide * size
    # States in float32, for pooling and for their spread.
    layer += 2 * 4 * tokens * figures.hidden
    length = max(batch.length, batch.decoder_length)
    layer += figures.scored * batch.sequences * length**2 * (2 * size + 8)
    # Logits, in float32, as log-probabilities, and as their roots twice.
    head = batch.answers * figures.vocabulary * (size + 4 * 4)
    return max(layer, head)
