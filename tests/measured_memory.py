"""Run the demo's base over probes in this process, and print what was foreseen and what it took."""

import json
from pathlib import Path

import numpy as np
import torch
from mergekit.common import ModelReference

from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.smollm2 import ensure_base
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, choose_dtype
from mergekit_collapse.states.memory_use import peak_resident, resident

PROBES, LENGTH = 32, 64


def main() -> None:
    base = ModelReference.parse(str(ensure_base(cache_folder())))
    ids = torch.randint(3, 30_000, (PROBES, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = tuple(TokenizedProbe(tuple(row), (5,)) for row in ids.tolist())
    probes = TokenizedProbes(rows, np.zeros(PROBES, dtype=np.int64), "")
    options = LoadOptions("cpu", choose_dtype("cpu"), progress=False)
    trial = LayeredTrial([base], probes, options)
    # A process begins with the peak of the one that started it.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    request = StateRequest(True, "last", "mean", profile=True)
    states = collect([base], ["base"], 1, probes, request, options, trial=trial)
    peak = peak_resident()
    assert states.estimate is not None
    assert peak is not None
    memory = states.estimate.memory
    expected = memory.peak - memory.process
    print(json.dumps({"expected": expected, "peak": peak - before, **memory.parts}))


if __name__ == "__main__":
    main()
