"""What a run over the probes is expected to cost: the record that is shown and reported."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mergekit_collapse.byte_size import size_text
from mergekit_collapse.findings import printable
from mergekit_collapse.states.figures import BatchSize, KeptArrays, ModelFigures, SweepFigures
from mergekit_collapse.states.peak_memory import (
    Memory,
    arrays_memory,
    passing_memory,
    running_memory,
)
from mergekit_collapse.states.workload import batch_flops, bytes_read, flops

_UNITS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")
_CALLED = {
    "embeddings": "embeddings and head",
    "layers": "weights of layers",
    "states": "states of a layer",
    "batch": "one batch",
    "arrays": "results",
    "geometry": "distances",
    "process": "taken before",
    "spare": "libraries",
}


@dataclass(frozen=True)
class Estimate:
    """Of the models that are run; those whose states are in the cache cost nothing.

    Attributes:
        models: how many are run.
        bytes_read: of their weights. What equal models share is read less often.
        flops: of the forward passes, attention counted in full (``workload``).
        memory: where the forward passes are, an upper bound.
        host: of the processor, where that is another place.
        together: how many models run at a time, at most.
        batch_tokens: most tokens in a forward pass.
        whole: models that must be loaded whole, and why.
    """

    models: int
    bytes_read: int
    flops: int
    memory: Memory
    host: Memory | None
    together: int
    batch_tokens: int
    whole: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """One line."""
        models = "1 model" if self.models == 1 else f"{self.models} models"
        whole = ""
        if self.whole:
            name, reason = self.whole[0]
            who = printable(name) if len(self.whole) == 1 else f"{len(self.whole)} of them"
            whole = f" ({who} loaded whole: {printable(reason)})"
        return (
            f"expecting for {models}{whole}: {size_text(self.bytes_read)} read, "
            f"{flops_text(self.flops)}, at most {size_text(self.memory.peak)} of memory"
            + (f" on the device, {size_text(self.host.peak)} beside it" if self.host else "")
        )


def estimated(
    sweeps: Sequence[SweepFigures],
    kept: KeptArrays,
    *,
    together: int,
    batch_tokens: int,
    tried: Sequence[tuple[ModelFigures, Sequence[BatchSize]]] = (),
    process: int = 0,
    device: str = "cpu",
    whole: tuple[tuple[str, str], ...] = (),
) -> Estimate:
    """Of sweeps that run one after another.

    Args:
        together: how many models of a sweep run at a time.
        tried: models that are first run by their layers on small batches, and on the first of
            them whole besides.
        process: memory that is taken already.
        device: the kind that the forward passes are on; results are on the processor.
    """
    read = sum(bytes_read(one, _together(one, together, loads=True)) for one in sweeps)
    work = sum(flops(one, _together(one, together)) for one in sweeps)
    for figures, batches in tried:
        read += figures.stored
        work += sum(batch_flops(figures, batch) for batch in (batches[0], *batches))
    # One sweep's memory is given back before the next.
    found = [_memory(one, kept, _together(one, together), device) for one in sweeps]
    memory = max((one for one, _ in found), key=lambda m: m.peak, default=Memory(spare=0))
    host = max((two for _, two in found if two is not None), key=lambda m: m.peak, default=None)
    if host is None:
        memory = replace(memory, process=process)
    else:
        host = replace(host, process=process)
    return Estimate(
        models=sum(len(one.runners) for one in sweeps),
        bytes_read=read,
        flops=work,
        memory=memory,
        host=host,
        together=together,
        batch_tokens=batch_tokens,
        whole=whole,
    )


def flops_text(count: int) -> str:
    """FLOPs in the unit that gives one to three digits before the point."""
    power = min(len(_UNITS) - 1, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def parts_text(memory: Memory) -> str:
    """What memory is taken for, the largest part first."""
    parts = sorted(memory.parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{_CALLED[name]} {size_text(count)}" for name, count in parts if count)


def _together(sweep: SweepFigures, together: int, *, loads: bool = False) -> int:
    """Whole models are run by themselves, though adapters share a load of their base."""
    if sweep.figures.whole:
        return len(sweep.runners) if loads else 1
    return together


def _memory(
    sweep: SweepFigures, kept: KeptArrays, together: int, device: str
) -> tuple[Memory, Memory | None]:
    running = running_memory(sweep, together)
    arrays = arrays_memory(kept, min(together, len(sweep.runners)))
    if device == "cpu":
        return replace(running, arrays=arrays, geometry=kept.geometry), None
    passing = passing_memory(sweep, device)
    return running, Memory(layers=passing, arrays=arrays, geometry=kept.geometry)
