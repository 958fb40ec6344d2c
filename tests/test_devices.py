"""Models dealt out to processes: every number is that of one process, and a lost one is told."""

import copy
import os
import pickle
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from mergekit.common import ModelReference
from test_loader import make_adapter

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.foreign_errors import told_as_evaluation_error
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states import device_process, devices
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.device_process import DeviceProcess
from mergekit_collapse.states.devices import OnDevices, runner
from mergekit_collapse.states.fewer_tokens import fewer_tokens
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, each_model
from mergekit_collapse.states.memory_use import Meter
from mergekit_collapse.states.model_states import ModelRequest
from mergekit_collapse.states.parts import Part, absolute, deal, evenly, prepare, run_part
from mergekit_collapse.states.run_models import ANY_ROOM, Run, run_models
from mergekit_collapse.states.state_store import NO_STORE
from mergekit_collapse.states.streaming import Asked

OPTIONS = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
EVERYTHING = StateRequest(True, "all", "mean", profile=True)
REQUEST = ModelRequest((1,), 2, "mean", False, False, 64, "right")


@pytest.fixture(scope="module")
def probes(tiny_tokenizer):
    texts = ["Two plus three is", "The film was wonderful. It is", "Où", "def add(first):"]
    ids = [tuple(tiny_tokenizer(text)["input_ids"]) for text in texts * 2]
    rows = tuple(TokenizedProbe(tokens, (5, 6) if i % 2 else ()) for i, tokens in enumerate(ids))
    return TokenizedProbes(rows, np.zeros(len(rows), dtype=np.int64), "digest")


@pytest.fixture(scope="module")
def pool(tiny_model, tmp_path_factory):
    """A base, adapters of it, one that only PEFT can run, and a model of its own."""
    base, folder = tiny_model("llama"), tmp_path_factory.mktemp("adapters")
    adapters = [make_adapter(base, folder / f"a{i}", i) for i in range(3)]
    adapters.append(make_adapter(base, folder / "dora", 7, use_dora=True))
    return [base, *(f"{base}+{a}" for a in adapters), tiny_model("llama", 1)]


def states_of(models, probes, run, *, options=OPTIONS, request=EVERYTHING, **more):
    references = [ModelReference.parse(str(model)) for model in models]
    return collect(
        references,
        [f"m{i}" for i in range(len(models))],
        len(models),
        probes,
        request,
        options,
        trial=LayeredTrial(references, probes, options),
        run=run,
        **more,
    )


def assert_same(found, due):
    """Bit for bit."""
    assert (found.engine, found.models) == (due.engine, due.models)
    for space in ("hidden", "predictive"):
        one, other = getattr(found, space), getattr(due, space)
        for values, expected in zip(one.values, other.values, strict=True):
            np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(one.probe_of_row, other.probe_of_row)
    assert len(found.layers) == len(due.layers)
    for layers, expected in zip(found.layers, due.layers, strict=True):
        assert layers.statistics == expected.statistics
        np.testing.assert_array_equal(layers.pooled, expected.pooled)


def asked(*names):
    return [Asked(i, name, ModelReference.parse(name), REQUEST) for i, name in enumerate(names)]


def dealt(names, places):
    return [[one.name for one in part.models] for part in deal(asked(*names), places)]


def test_each_model_is_a_part_and_adapters_of_one_base_are_dealt_evenly():
    assert dealt(["a", "b", "c"], 2) == [["a"], ["b"], ["c"]]
    adapters = [f"base+x{i}" for i in range(5)]
    assert dealt(["own", *adapters], 2) == [adapters[2:], adapters[:2], ["own"]]
    assert sorted(map(len, dealt(["own", *adapters], 2))) == [1, 2, 3]
    assert dealt(adapters, 1) == [adapters]
    assert max(map(len, dealt([f"base+x{i}" for i in range(400)], 4))) == 16
    assert [len(part) for part in evenly(range(10), 4)] == [3, 3, 4]
    assert dealt([], 3) == []


def test_only_plain_cuda_stands_for_every_device(monkeypatch):
    names = ["H100", "H100", "T4"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    found = runner("cuda")
    assert isinstance(found, OnDevices)
    # Another card would give other numbers.
    assert found._devices == ("cuda:0", "cuda:1")
    assert runner("cuda:1") is runner("cpu") is run_models
    names[1] = "A100"
    assert runner("cuda") is run_models


@pytest.mark.slow
def test_a_single_part_stays_in_this_process(pool, probes, monkeypatch):
    monkeypatch.setattr(devices, "DeviceProcess", None)
    states_of(pool[:1], probes, OnDevices(["cpu", "cpu"]))


class Counted:
    """An extra that counts the answers that it was given."""

    def __init__(self, batches):
        self._batches, self.rows = batches, 0

    def batches(self, *, decoder_start, max_tokens):
        return copy.copy(self._batches)

    def add(self, batch, outputs):
        self.rows += len(outputs.answers)


class Beside:
    def __init__(self, batches):
        self._batches, self.rows, self.visited = batches, {}, []

    def due(self, index):
        return Counted(self._batches) if index % 2 else None

    def settle(self, index, extra):
        self.rows[index] = extra.rows

    def visit(self, index, model):
        self.visited.append(index)


@pytest.mark.slow
def test_every_number_is_that_of_one_device(pool, probes, tmp_path, monkeypatch):
    batches = make_batches(probes.probes, answers=True, decoder_start=None, max_tokens=64)
    alone, beside = Beside(batches), Beside(batches)
    due = states_of(pool, probes, run_models, beside=alone)
    assert due.engine == "layer by layer, in part"
    # The working directory is no place to import from.
    (tmp_path / "pickle.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert_same(states_of(pool, probes, OnDevices(["cpu", "cpu"]), beside=beside), due)
    answers = sum(len(batch.answer_sequences) for batch in batches)
    assert beside.rows == alone.rows == {1: answers, 3: answers, 5: answers}
    # A model that is whole in another process stays due.
    assert (alone.visited, beside.visited) == ([4], [])


@pytest.mark.slow
def test_an_error_in_another_process_comes_back_as_itself(pool, probes, tmp_path):
    broken = make_adapter(pool[0], tmp_path / "broken", 1)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    models = [pool[0], f"{pool[0]}+{broken}", pool[-1]]
    with pytest.raises(EvaluationError, match="broken") as one:
        states_of(models, probes, run_models)
    with pytest.raises(EvaluationError, match="broken") as other:
        states_of(models, probes, OnDevices(["cpu", "cpu"]))
    assert str(other.value) == str(one.value)


def test_memory_that_other_processes_took_is_not_that_of_this_one():
    assert Meter("cpu").used().peak
    assert Meter("cpu", here=False).used().peak is None


def test_a_lack_of_memory_in_another_process_is_known_as_one():
    with pytest.raises(EvaluationError) as raised, told_as_evaluation_error("model x", "mend"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    # As it comes back, without its cause.
    error = pickle.loads(pickle.dumps(raised.value))
    assert fewer_tokens(error, 160, 20, first=True) == 80
    with pytest.raises(EvaluationError, match=r"model x: out of memory; .*one probe already"):
        fewer_tokens(error, 20, 20, first=False)


@pytest.mark.slow
def test_what_is_printed_does_not_come_between_the_results(pool, probes, tmp_path, monkeypatch):
    package = tmp_path / "peft"
    shutil.copytree(Path(peft.__file__).parent, package)
    with (package / "__init__.py").open("a", encoding="utf-8") as file:
        file.write("\nprint('a word of welcome', flush=True)\n")
    due = states_of(pool[:2], probes, run_models)
    monkeypatch.syspath_prepend(tmp_path)
    assert_same(states_of(pool[:2], probes, OnDevices(["cpu", "cpu"])), due)


@pytest.mark.slow
def test_a_lost_process_is_told(pool, probes, monkeypatch):
    start = DeviceProcess.__init__

    def killed(self, work):
        start(self, work)
        os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(device_process.DeviceProcess, "__init__", killed)
    with pytest.raises(EvaluationError, match=r"process on cpu ended with exit code -9; .*memory"):
        states_of(pool, probes, OnDevices(["cpu", "cpu"]))


@pytest.mark.slow
def test_a_machine_that_computes_otherwise_or_lacks_the_models_is_told(pool, probes, tmp_path):
    models = absolute(asked(str(pool[0])))
    run = Run(models, probes, OPTIONS, None, None, each_model, ANY_ROOM, lambda *_: None)
    work = prepare(run, NO_STORE)
    part = Part(tuple(models), {})
    other = replace(work, conditions=("torch.bfloat16", *work.conditions[1:]))
    with pytest.raises(EvaluationError, match=r"it has torch\.float32 and not torch\.bfloat16"):
        run_part(part, other)
    away = replace(work, folders=frozenset([str(tmp_path / "away")]))
    with pytest.raises(EvaluationError, match=r"there is no folder .*away, .*shared file system"):
        run_part(part, away)


def test_folders_are_named_for_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    (one,) = absolute(asked("base+org/adapter"))
    assert str(one.reference) == f"{tmp_path / 'base'}+org/adapter"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_several_gpus_give_what_one_gives(pool, probes):
    options = replace(OPTIONS, device="cuda")
    due = states_of(pool, probes, run_models, options=options)
    found = runner("cuda")
    assert isinstance(found, OnDevices)
    assert_same(states_of(pool, probes, found, options=options), due)
