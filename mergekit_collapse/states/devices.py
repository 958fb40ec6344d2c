"""Models run on several devices of this machine at once."""

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace

import torch
from tqdm import tqdm

from mergekit_collapse.states.device_process import DeviceProcess
from mergekit_collapse.states.parts import Part, PartStates, absolute, deal, on_device, prepare
from mergekit_collapse.states.run_models import Put, Run, RunModels, run_models
from mergekit_collapse.states.state_store import NO_STORE
from mergekit_collapse.states.streaming import Asked, Beside


class OnDevices:
    """Deals parts to devices, each in a process of its own; see ``RunModels``.

    Every number is the one that the first device alone would give, whichever ends first.

    Args:
        devices: as torch names them, at least one, all of one kind.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = tuple(devices)

    def __call__(self, run: Run) -> Mapping[int, str]:
        """As ``run_models``, which runs a single part; ``run.each`` is for that alone."""
        placed = replace(run, models=absolute(run.models))
        parts = deal(placed.models, len(self._devices), run.beside)
        if len(parts) <= 1:
            return run_models(run)
        work = prepare(placed, NO_STORE)
        # What the trial took here is for the process that runs on the same device.
        torch.cuda.empty_cache()
        asked = {one.index: one for one in run.models}
        reasons: dict[int, str] = {}
        idle: queue.SimpleQueue[DeviceProcess] = queue.SimpleQueue()

        def run_part(part: Part) -> PartStates:
            process = idle.get()
            try:
                return process.run(part)
            finally:
                idle.put(process)

        with (
            tqdm(total=len(run.models), unit="model", disable=not run.options.progress) as bar,
            ThreadPoolExecutor(len(self._devices)) as pool,
            # Left first, so that no thread waits for a process after an error.
            ExitStack() as processes,
        ):
            for device in self._devices[: len(parts)]:
                there = on_device(work, replace(work.options, device=device))
                idle.put(processes.enter_context(DeviceProcess(there)))
            futures = [pool.submit(run_part, part) for part in parts]
            try:
                for future in as_completed(futures):
                    found = future.result()
                    take(found, asked, run.beside, run.put)
                    reasons |= found.reasons
                    bar.update(len(found.states))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return dict(sorted(reasons.items()))


def take(found: PartStates, asked: Mapping[int, Asked], beside: Beside | None, put: Put) -> None:
    """Hand on what a part's models answered."""
    for index, states in found.states.items():
        put(asked[index], states)
    if beside is not None:
        for index, extra in found.extras.items():
            beside.settle(index, extra)


def runner(device: str) -> RunModels:
    """Where models are run: ``cuda`` alone stands for all devices that are like the first."""
    if device != "cuda" or torch.cuda.device_count() < 2:
        return run_models
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    alike = [f"cuda:{i}" for i, name in enumerate(names) if name == names[0]]
    return OnDevices(alike) if len(alike) > 1 else run_models
