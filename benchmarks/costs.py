"""What large groups cost on paper: 64 adapters of a 7 B base, eight experts of 70 B, on H200s.

    python benchmarks/costs.py

Bytes, FLOPs and memory are those of the estimate that `check` prints, for configurations that are
written here; no model is run. Hidden and predictive space, mean pooling, profiles of every layer,
no states in the cache. Whether layers can be run apart is taken as known: finding out reads one
model once more, once for each configuration. Each GPU takes its share of the models, so that a
time is about the longest of

    FLOPs / (50 % of 990 TFLOP/s, dense bf16)            assumed to be reached
    bytes over a link of 5 GB/s that the node shares     assumed: disk or network to host

and each GPU's weights, once for each model and batch, through its memory of 4.8 TB/s.
"""

from typing import Any

import torch
import transformers

from mergekit_collapse.byte_size import size_text
from mergekit_collapse.probes.tokens import TokenizedProbe
from mergekit_collapse.states.batching import GPU_TOKENS, make_batches
from mergekit_collapse.states.estimate import Estimate, estimated, flops_text
from mergekit_collapse.states.figures import ModelFigures, Runner, SweepFigures
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_figures import TensorFigure, staged_figures
from mergekit_collapse.states.run_plan import kept_arrays, most_together
from mergekit_collapse.states.sweep_figures import size_of

PROBES, LENGTH, RANK = 304, 64, 16
MEMORY, BANDWIDTH, PEAK, SHARE, LINK = 141e9, 4.8e12, 990e12, 0.5, 5e9
SEVEN: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
SEVENTY: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
# On a processor, for the shapes; the figures are those of a GPU.
OPTIONS = LoadOptions("cpu", torch.bfloat16, progress=False)


def main() -> None:
    print(f"{PROBES} probes of {LENGTH} tokens, batches of {GPU_TOKENS}, LoRA of rank {RANK}")
    head = ("case", "GPUs", "bytes read", "FLOPs", "compute s", "link s", "HBM s", "GPU", "host")
    rows = [head]
    for name, shape, count, adapters in (
        ("64 LoRA on 7 B", SEVEN, 64, True),
        ("8 experts of 70 B", SEVENTY, 8, False),
    ):
        figures, adapter = shapes(shape)
        one = adapter if adapters else None
        rows += [row(name, figures, one, count, gpus) for gpus in (1, 8)]
    print("\n".join(f"| {' | '.join(one)} |" for one in [rows[0], ("---",) * len(head), *rows[1:]]))


def shapes(shape: dict[str, Any]) -> tuple[ModelFigures, Runner]:
    """Figures of a Llama in bfloat16, and of an adapter of all matrices in its layers."""
    config = transformers.LlamaConfig(**shape, dtype="bfloat16", tie_word_embeddings=False)
    config.architectures = ["LlamaForCausalLM"]
    layered = LayeredModel(config, OPTIONS, "the model", batches(2)[:1], None)
    stages: list[dict[str, TensorFigure]] = [{} for _ in range(layered.depth + 2)]
    for name, tensor in layered.model.state_dict().items():
        for place in layered.stages_of(name):
            stages[place][name] = TensorFigure(tuple(tensor.shape), 2 * tensor.numel())
    adapted = [t.shape for stage in stages[1:-1] for t in stage.values() if len(t.shape) == 2]
    nbytes = sum(2 * RANK * (rows + columns) for rows, columns in adapted)
    merging = sum(2 * RANK * rows * columns for rows, columns in adapted)
    changed = frozenset(range(1, layered.depth + 1))
    adapter = Runner(0, changed, nbytes, merging)
    return staged_figures(config, layered, stages, OPTIONS), adapter


def batches(count: int) -> list[Any]:
    # Equal probes would be run once.
    probes = [TokenizedProbe((number,) * LENGTH, ()) for number in range(count)]
    return make_batches(probes, answers=True, decoder_start=None, max_tokens=GPU_TOKENS)


def row(
    name: str, figures: ModelFigures, adapter: Runner | None, count: int, gpus: int
) -> tuple[str, ...]:
    share = count // gpus
    sizes = tuple(size_of(batch) for batch in batches(PROBES))
    # Experts of different weights share nothing and run one after another.
    groups = [(Runner(i),) for i in range(share)] if adapter is None else [(adapter,) * share]
    sweeps = [SweepFigures(figures, group, sizes) for group in groups]
    widths, rows = (figures.hidden, figures.vocabulary), (PROBES, PROBES)
    layers = figures.depth + 1
    kept = kept_arrays(widths, rows, PROBES, 1, models=count, profiled=layers)
    together = min(share, most_together(PROBES * LENGTH, figures.hidden, figures.itemsize))
    one = estimated(sweeps, kept, together=together, batch_tokens=GPU_TOKENS, device="cuda")
    assert one.host is not None
    assert one.memory.peak < MEMORY, name
    read, work = one.bytes_read * gpus, one.flops * gpus
    passes = sum(len(sweep.runners) for sweep in sweeps) * len(sizes) * figures.stored
    return (
        name,
        str(gpus),
        size_text(read),
        flops_text(work),
        f"{one.flops / (SHARE * PEAK):.1f}",
        f"{read / LINK:.0f}",
        f"{passes / BANDWIDTH:.1f}",
        size_text(one.memory.peak),
        size_text(_host(one, gpus)),
    )


def _host(one: Estimate, gpus: int) -> int:
    """Of the node: what is put together of all models is there once."""
    assert one.host is not None
    return one.host.peak + (gpus - 1) * (one.host.layers + one.host.spare)


if __name__ == "__main__":
    main()
