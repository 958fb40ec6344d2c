"""States from the cache: the very ones, found only where nothing has changed, and never trusted."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
import yaml
from mergekit.common import ModelReference
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from test_loader import make_adapter
from torch.nn.modules.module import register_module_forward_pre_hook

import mergekit_collapse
from mergekit_collapse import cached_files, gate
from mergekit_collapse.cached_files import SIZE_VARIABLE, STATES, open_cached_files
from mergekit_collapse.caches import open_caches
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.recipe.schema import CacheBlock
from mergekit_collapse.report import terminal
from mergekit_collapse.states import loader, streaming
from mergekit_collapse.states import model_identity as identity
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions
from mergekit_collapse.states.model_states import ModelRequest, ModelStates
from mergekit_collapse.states.state_file import UnusableRecordError, from_bytes, to_parts
from mergekit_collapse.states.states import LayerStatistics, ModelLayers

OPTIONS = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
QUIET = MergeOptions(quiet=True)
KEY = "ab" + 62 * "0"
PROBES = TokenizedProbes(
    (
        TokenizedProbe((5, 6, 7, 8), (9,)),
        TokenizedProbe((10, 11), ()),
        TokenizedProbe((12, 13, 14), (15, 16)),
    ),
    np.array([0, 0, 1]),
    "digest",
)
REQUEST = ModelRequest((2,), 2, "mean", True, True, 4096, "right")


@pytest.fixture
def seen(monkeypatch):
    """Names of the models that were run, whole or in a sweep, and every module that ran."""
    loaded, forwards = [], []
    load = loader._load

    def noted(reference, options):
        loaded.append(Path(reference.model.path).name)
        return load(reference, options)

    class NotedSweep(streaming.Sweep):
        def __init__(self, model, batches, members, options):
            loaded.extend(member.where.removeprefix("model ") for member in members)
            super().__init__(model, batches, members, options)

    monkeypatch.setattr(loader, "_load", noted)
    monkeypatch.setattr(streaming, "Sweep", NotedSweep)
    handle = register_module_forward_pre_hook(lambda module, _: forwards.append(type(module)))
    yield loaded, forwards
    handle.remove()


@pytest.fixture
def copied(tiny_model, variant, tmp_path):
    """Copies of models, each by its noise, that a test may change."""

    def copied(name, noise=None, architecture="llama"):
        source = tiny_model(architecture)
        if noise is not None:
            source = variant(source, noise)
        return shutil.copytree(source, tmp_path / name)

    return copied


def store(**block):
    return open_caches(CacheBlock(**block)).states


def measure(
    *models, whole=True, profile=True, predictive=True, layers="last", pooling="mean", **more
):
    references = [ModelReference.parse(str(model)) for model in models]
    names = [f"expert-{i}" for i in range(len(references))]
    request = StateRequest(predictive, layers, pooling, profile)
    more.setdefault("store", store())
    probes, options = more.pop("probes", PROBES), more.pop("options", OPTIONS)
    if not whole:
        more["trial"] = LayeredTrial(references, probes, options)
    return collect(references, names, len(names), probes, request, options, **more)


def arrays_of(states):
    spaces = [states.hidden, *([states.predictive] if states.predictive is not None else [])]
    for space in spaces:
        yield from (*space.values, space.probe_of_row)
    for model in states.layers:
        yield from model.pooled
        yield np.array([(s.variance, s.effective_rank) for s in model.statistics])


def assert_same(first, second):
    for a, b in zip(arrays_of(first), arrays_of(second), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert first.predictive_reason == second.predictive_reason
    assert first.hidden.layers == second.hidden.layers


def record(seed=0, *, answers=True, layers=True):
    draw = np.random.default_rng(seed).standard_normal
    profile = ModelLayers(
        tuple(draw((3, 4)).astype(np.float32) for _ in range(3)),
        tuple(LayerStatistics(float(v), 1 / 3) for v in draw(3)),
    )
    return ModelStates(
        (draw((3, 4)).astype(np.float32),),
        np.ones(3, dtype=np.int64),
        np.abs(draw((4, 7))).astype(np.float32) if answers else None,
        None if answers else "(Encoder) has no head",
        profile if layers else None,
    )


def to_bytes(found, key, told):
    return bytearray(b"".join(to_parts(found, key, told)))


def put(key, found, into=None):
    (into or store()).put(key, found, lambda: key, model="./expert", what="3 probes")


def get(key, request=REQUEST, out_of=None):
    return (out_of or store()).get(key, PROBES, request)


# The file.


@pytest.mark.parametrize("answers", [True, False])
def test_a_record_comes_back_to_the_last_bit(answers):
    found = record(answers=answers)
    back = from_bytes(to_bytes(found, KEY, {"model": "m"}), KEY, PROBES, REQUEST)
    assert np.array_equal(back.hidden[0], found.hidden[0])
    assert back.layers.statistics == found.layers.statistics
    assert all(map(np.array_equal, back.layers.pooled, found.layers.pooled))
    assert back.answers_reason == found.answers_reason
    assert back.unlayered is False
    assert np.array_equal(back.answers, found.answers) if answers else back.answers is None


def test_a_bit_flipped_anywhere_is_noticed():
    data = to_bytes(record(), KEY, {"model": "m"})
    for place in range(len(data)):
        for bit in (1, 128):
            broken = bytearray(data)
            broken[place] ^= bit
            with pytest.raises(UnusableRecordError):
                from_bytes(broken, KEY, PROBES, REQUEST)


def test_a_file_cut_anywhere_or_longer_is_noticed():
    data = to_bytes(record(), KEY, {"model": "m"})
    for broken in [
        *(data[:end] for end in range(0, len(data), 7)),
        data + b"\0",
        bytearray(b"\xff" * 99),
    ]:
        with pytest.raises(UnusableRecordError):
            from_bytes(broken, KEY, PROBES, REQUEST)


def changed(**fields):
    return dataclasses.replace(record(), **fields)


NAN = np.full((3, 4), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (changed(hidden=(NAN,)), "NaN"),
        (changed(hidden=(np.zeros((4, 4), dtype=np.float32),)), "another shape"),
        (changed(hidden=record().hidden * 2), "holds what it should not"),
        (changed(hidden=()), "cannot be read: KeyError"),
        (changed(rows_per_probe=np.array([1, 1])), "other probes"),
        (changed(rows_per_probe=np.array([0, 2, 1])), "other probes"),
        (changed(answers=np.zeros((5, 7), dtype=np.float32)), "another shape"),
        (changed(answers=None), "lacks answers"),
        (changed(layers=ModelLayers((NAN,) * 3, (LayerStatistics(1.0, 1.0),) * 3)), "NaN"),
        (changed(layers=ModelLayers((NAN,) * 3, (LayerStatistics(1.0, np.nan),) * 3)), "spread"),
        (changed(layers=ModelLayers((NAN,) * 2, (LayerStatistics(1.0, 1.0),) * 2)), "spread"),
    ],
)
def test_a_whole_file_with_something_else_in_it_is_not_taken(found, why):
    with pytest.raises(UnusableRecordError, match=why):
        from_bytes(to_bytes(found, KEY, {}), KEY, PROBES, REQUEST)


def test_a_record_of_another_key_is_not_taken():
    with pytest.raises(UnusableRecordError, match="written for something else"):
        from_bytes(to_bytes(record(), KEY, {}), "cd" + KEY[2:], PROBES, REQUEST)


def test_the_file_is_what_safetensors_reads():
    found = record()
    read = safetensors.numpy.load(bytes(to_bytes(found, KEY, {})))
    assert np.array_equal(read["hidden.0"], found.hidden[0])
    assert np.array_equal(read["answers"], found.answers)
    assert read["layers.statistics"].shape == (3, 2)
    assert len(read) == 7


# The store.


def test_a_profile_serves_a_request_without_one_and_not_the_other_way_round():
    without = dataclasses.replace(REQUEST, profile=False)
    put(KEY, record())
    assert get(KEY).layers is not None
    assert get(KEY, without).layers is None
    put(KEY, record(layers=False))
    assert get(KEY) is None
    assert get(KEY, without) is not None
    # A model that was found to have no profile is not run for one again.
    put(KEY, dataclasses.replace(record(layers=False), unlayered=True))
    assert get(KEY).unlayered


def test_what_is_unusable_is_removed_and_said_once(caplog, own_cache):
    keys = [f"{i:064x}" for i in range(3)]
    for key in keys:
        put(key, record())
    files = open_cached_files(STATES)
    for key in keys[:2]:
        files.path(key).write_bytes(b"broken")
    opened = store()
    with caplog.at_level(logging.INFO):
        assert [get(key, out_of=opened) is None for key in keys] == [True, True, False]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    told = f"cache: {files.path(keys[0])}: it is no record of states, or was cut short; states are"
    assert caplog.records[0].getMessage().startswith(told)
    assert not files.path(keys[0]).exists()


def test_what_is_no_number_is_not_kept():
    put(KEY, changed(hidden=(NAN,)))
    spread = (LayerStatistics(1.0, np.nan),) * 3
    put(KEY, changed(layers=dataclasses.replace(record().layers, statistics=spread)))
    assert get(KEY) is None


def test_a_model_that_changed_while_it_ran_is_not_kept():
    store().put(KEY, record(), lambda: "another", model="m", what="w")
    assert get(KEY) is None


def test_a_record_over_the_limit_is_not_stored_and_the_rest_stays(monkeypatch, caplog):
    put(KEY, record())
    size = len(open_cached_files(STATES).read(KEY))
    other = "cd" + KEY[2:]
    monkeypatch.setenv(SIZE_VARIABLE, str(size - 1))
    with caplog.at_level(logging.INFO):
        put(other, record(1))
    assert "are not kept: " in caplog.text
    assert get(other) is None
    assert get(KEY) is not None
    # With room for one, the new takes the place of the old.
    monkeypatch.setenv(SIZE_VARIABLE, str(size + 1))
    put(other, record(1))
    assert get(other) is not None
    assert get(KEY) is None


def test_a_disk_that_is_full_is_said_once_and_ends_nothing(monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cached_files.os, "replace", full)
    opened = store()
    put(KEY, record(), opened)
    put("cd" + KEY[2:], record(), opened)
    (warning,) = caplog.records
    assert "cannot be written (No space left on device); states are not kept" in warning.message
    assert get(KEY) is None


def test_a_folder_that_cannot_be_written_or_read_is_said(own_cache, caplog):
    # A file where a folder should be stops even root.
    own_cache.mkdir(parents=True)
    (own_cache / "states").write_text("")
    put(KEY, record())
    assert "cannot be written (" in caplog.text
    assert get(KEY) is None
    (own_cache / "states").unlink()
    open_cached_files(STATES).path(KEY).mkdir(parents=True)
    caplog.clear()
    assert get(KEY) is None
    assert "cannot be read (Is a directory); states are measured again" in caplog.text


def test_a_folder_that_may_only_be_read_is_read(monkeypatch, caplog):
    put(KEY, record())

    def refuse(*_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("os.utime", "os.unlink", "tempfile.mkstemp"):
        monkeypatch.setattr(f"mergekit_collapse.cached_files.{name}", refuse)
    assert get(KEY) is not None
    assert not caplog.records
    put("cd" + KEY[2:], record())
    assert "cannot be written (Read-only file system); states are not kept" in caplog.text


# Collecting.


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_found_states_are_those_that_were_computed(
    tiny_model, variant, seen, architecture, pooling, whole
):
    loaded, forwards = seen
    models = [tiny_model(architecture), variant(tiny_model(architecture), 0.1)]
    asked = {"layers": "all", "pooling": pooling, "profile": architecture != "t5", "whole": whole}
    plain = measure(*models, **asked, store=store(enabled=False))
    first = measure(*models, **asked)
    assert (plain.cached, first.cached, len(loaded)) == ((), (), 4)
    loaded.clear()
    forwards.clear()
    second = measure(*models, **asked)
    assert second.cached == ("expert-0", "expert-1")
    assert (loaded, forwards) == ([], [])
    assert_same(plain, first)
    assert_same(plain, second)
    # In another order, and with fewer, they are the same models.
    turned = measure(*reversed(models), **asked)
    assert loaded == []
    assert np.array_equal(turned.hidden.values[0], plain.hidden.values[0][::-1])


@pytest.mark.slow
def test_adapters_are_kept_apart_from_their_base(tiny_model, tmp_path, seen):
    loaded, _ = seen
    base = tiny_model("llama")
    adapters = [f"{base}+{make_adapter(base, tmp_path / f'lora{i}', seed=i)}" for i in range(2)]
    plain = measure(base, *adapters, store=store(enabled=False))
    loaded.clear()
    measure(base, adapters[0])
    assert measure(base, adapters[0]).cached == ("expert-0", "expert-1")
    assert len(loaded) == 1
    mixed = measure(base, *adapters)
    assert mixed.cached == ("expert-0", "expert-1")
    assert len(loaded) == 2
    assert_same(plain, mixed)


@pytest.mark.slow
def test_a_corrupt_file_is_measured_again(tiny_model, seen, caplog):
    loaded, _ = seen
    first = measure(tiny_model("llama"))
    (file,) = open_cached_files(STATES).found()
    data = bytearray(file.path.read_bytes())
    data[-1] ^= 1
    file.path.write_bytes(data)
    assert_same(measure(tiny_model("llama")), first)
    assert len(loaded) == 2
    assert caplog.text.count("its checksum is not that of its content; states are measured") == 1
    assert measure(tiny_model("llama")).cached == ("expert-0",)


def key_of(model, probes=PROBES, request=REQUEST, options=OPTIONS, engine="whole-model", **block):
    reference = model if isinstance(model, ModelReference) else ModelReference.parse(str(model))
    return store(**block).key(reference, probes, request, options, engine)


def replaced_probe(**fields):
    first = dataclasses.replace(PROBES.probes[0], **fields)
    return dataclasses.replace(PROBES, probes=(first, *PROBES.probes[1:]))


def override(model):
    reference = ModelReference.parse(str(model))
    return reference.model_copy(update={"override_architecture": "MistralForCausalLM"})


ASKED_OTHERWISE = {
    "prompt": {"probes": replaced_probe(prompt=(5, 6, 7, 9))},
    "target": {"probes": replaced_probe(target=(8,))},
    "order": {"probes": dataclasses.replace(PROBES, probes=PROBES.probes[::-1])},
    "layers": {"request": dataclasses.replace(REQUEST, layers=(1,))},
    "pooling": {"request": dataclasses.replace(REQUEST, pooling="tokens")},
    "predictive": {"request": dataclasses.replace(REQUEST, predictive=False)},
    "max_tokens": {"request": dataclasses.replace(REQUEST, max_tokens=8)},
    "side": {"request": dataclasses.replace(REQUEST, side="left")},
    "dtype": {"options": dataclasses.replace(OPTIONS, dtype=torch.bfloat16)},
    "device": {"options": dataclasses.replace(OPTIONS, device="cuda:0")},
    "code": {"options": dataclasses.replace(OPTIONS, trust_remote_code=True)},
    "engine": {"engine": "layer by layer"},
    "hash": {"hash": "full"},
}


@pytest.mark.parametrize("name", ASKED_OTHERWISE)
def test_the_key_follows_what_is_asked(tiny_model, name):
    model = tiny_model("llama")
    assert key_of(model, **ASKED_OTHERWISE[name]) != key_of(model)
    with_profile = dataclasses.replace(REQUEST, profile=not REQUEST.profile)
    assert key_of(model, request=with_profile) == key_of(model)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (mergekit_collapse, "__version__", "99"),
        (torch, "__version__", "99"),
        (transformers, "__version__", "99"),
        (peft, "__version__", "99"),
        (identity, "own_code", lambda: "changed"),
        (torch, "get_num_threads", lambda: 77),
        (torch, "get_float32_matmul_precision", lambda: "medium"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
    ],
)
def test_the_key_follows_what_computes(tiny_model, monkeypatch, owner, name, value):
    before = key_of(tiny_model("llama"))
    monkeypatch.setattr(owner, name, value)
    assert key_of(tiny_model("llama")) != before


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(path, change, *, keep_times=True):
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    if keep_times:
        os.utime(path, ns=times)


def more_of_everything(tensors):
    for name in tensors:
        tensors[name] = tensors[name] + 1


def another_name(tensors):
    tensors["model.norm_.weight"] = tensors.pop("model.norm.weight")


FILES_CHANGED = {
    "config": lambda m: edit_json(m / "config.json", rope_theta=5.0),
    "generation": lambda m: (m / "generation_config.json").write_text('{"bos_token_id": 3}'),
    "header": lambda m: edit_weights(m / "model.safetensors", another_name),
    "data": lambda m: edit_weights(m / "model.safetensors", more_of_everything),
    "time": lambda m: os.utime(m / "model.safetensors", ns=(1, 1)),
    "other weights": lambda m: save_file({"x": torch.zeros(1)}, m / "more.safetensors"),
}


@pytest.mark.parametrize("name", FILES_CHANGED)
def test_the_key_follows_the_models_files(copied, name):
    model = copied("model")
    before = key_of(model)
    assert key_of(model) == before
    FILES_CHANGED[name](model)
    assert key_of(model) != before


def test_the_key_follows_adapter_and_architecture(tiny_model, tmp_path):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "lora")
    keys = [key_of(base), key_of(override(base)), key_of(f"{base}+{adapter}")]
    edit_json(adapter / "adapter_config.json", lora_alpha=99)
    keys.append(key_of(f"{base}+{adapter}"))
    edit_weights(adapter / "adapter_model.safetensors", more_of_everything)
    keys.append(key_of(f"{base}+{adapter}"))
    assert len(set(keys)) == len(keys)


def test_a_moved_model_is_the_same_unless_its_times_say_nothing(copied, tmp_path):
    model = copied("model")
    weights = model / "model.safetensors"
    os.utime(weights, ns=(7, 10**9 + 7))
    assert key_of(model) == key_of(shutil.copytree(model, tmp_path / "kept"))
    # An archive or a build has set the same whole second for every model that it holds.
    os.utime(weights, ns=(10**9, 10**9))
    copy = shutil.copytree(model, tmp_path / "set")
    assert key_of(model) != key_of(copy)
    assert key_of(model, hash="full") == key_of(copy, hash="full")


def test_a_full_hash_sees_every_byte_and_no_time(copied):
    model = copied("model")
    weights = model / "model.safetensors"
    before, quick = key_of(model, hash="full"), key_of(model)
    os.utime(weights, ns=(1, 1))
    assert key_of(model, hash="full") == before
    assert key_of(model) != quick
    data = bytearray(weights.read_bytes())
    data[-5000] ^= 1
    weights.write_bytes(data)
    assert key_of(model, hash="full") != before


@pytest.mark.parametrize("folder", ["", "deep"])
def test_the_key_follows_code_that_is_trusted(copied, folder):
    model = copied("model")
    trusting = dataclasses.replace(OPTIONS, trust_remote_code=True)
    before = key_of(model), key_of(model, options=trusting)
    (model / folder).mkdir(exist_ok=True)
    (model / folder / "own.py").write_text("x = 1")
    # Nobody runs it where it is not.
    assert key_of(model) == before[0]
    assert key_of(model, options=trusting) != before[1]


def test_code_from_another_repository_is_never_kept(copied):
    model = copied("model")
    edit_json(model / "config.json", auto_map={"AutoModel": "someone/else--modeling.Model"})
    trusting = dataclasses.replace(OPTIONS, trust_remote_code=True)
    assert key_of(model, options=trusting) is None
    assert key_of(model) is not None
    put(None, record())
    assert get(None) is None


# The whole line.


def recipe(folder, *models, **compat):
    path = folder / "recipe.yml"
    compat = {"probes": {"samples": 4, "max_tokens": 16}, "on_violation": "warn", **compat}
    listed = [{"model": str(m), "parameters": {"weight": 1.0}} for m in models]
    text = {"merge_method": "linear", "models": listed, "dtype": "float32", "compat": compat}
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return path


def task(folder, owner):
    rows = folder / "rows.jsonl"
    lines = [{"text": f"Number {i} is", "target": "even" if i % 2 else "odd"} for i in range(4)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"name": "t", "model": str(owner), "data": str(rows), "target": "{target}"}


@pytest.mark.slow
def test_a_second_check_takes_no_forward_pass_and_a_new_expert_one_load(copied, tmp_path, seen):
    loaded, forwards = seen
    models = [copied("base"), copied("one", 0.02), copied("two", 0.05)]
    # Without a distortion near its limit no rehearsal, which is of the merge, is due.
    easy = {"budget": {"distortion": None, "mds": 1e6}}
    path = recipe(tmp_path, *models[:2], **easy)
    first = gate.check(path, QUIET)
    assert sorted(loaded) == ["base", "one"]
    loaded.clear()
    forwards.clear()
    second = gate.check(path, QUIET)
    assert (loaded, forwards) == ([], [])
    document = json.loads(second.path.read_text())
    assert document["forward"]["cached"] == ["base", "one"]
    assert "From the cache, not run again: base, one." in terminal.readings(second)
    assert "From the cache" not in terminal.readings(first)
    assert first.measurement.hidden.squared.tolist() == second.measurement.hidden.squared.tolist()
    third = gate.check(recipe(tmp_path, *models, **easy), QUIET)
    assert loaded == ["two"]
    assert third.measurement.cached == ("base", "one")


@pytest.mark.slow
def test_a_second_rehearsal_scores_no_expert_again(copied, tmp_path, seen):
    loaded, _ = seen
    models = [copied("base"), copied("one", 0.02)]
    block = {"samples": 4, "max_tokens": 16, "tasks": [task(tmp_path, models[1])]}
    path = recipe(tmp_path, *models, probes=block, rehearse="always")
    first = gate.check(path, QUIET)
    loaded.clear()
    second = gate.check(path, QUIET)
    assert loaded == []
    assert first.rehearsal.tasks == second.rehearsal.tasks != ()


@pytest.mark.slow
def test_switched_off_nothing_is_kept_or_found(copied, tmp_path, seen, own_cache):
    loaded, _ = seen
    path = recipe(tmp_path, copied("base"), copied("one", 0.02), cache=False)
    for _ in range(2):
        report = gate.check(path, QUIET)
        assert report.measurement.cached == ()
    assert len(loaded) == 4
    assert not own_cache.exists()


@pytest.mark.slow
def test_the_outcome_of_a_trial_is_kept(tiny_model, seen, tmp_path, monkeypatch):
    loaded, forwards = seen
    models = [ModelReference.parse(str(tiny_model("llama")))]
    kept = open_caches(CacheBlock()).layered
    assert LayeredTrial(models, PROBES, OPTIONS, kept).reason() is None
    assert forwards
    forwards.clear()
    assert LayeredTrial(models, PROBES, OPTIONS, kept).reason() is None
    assert forwards == []
    # Other weights are computed with alike, another configuration is not, and neither is code that
    # a model brings.
    others = [ModelReference.parse(str(tiny_model("llama", 1)))]
    assert LayeredTrial(others, PROBES, OPTIONS, kept).reason() is None
    assert forwards == []
    with monkeypatch.context() as patched:
        patched.setattr("mergekit_collapse.states.layered_trial.brings_code", lambda _: True)
        # Without the flag it is transformers' own code that is run.
        assert LayeredTrial(others, PROBES, OPTIONS, kept).reason() is None
        assert forwards == []
        trusting = dataclasses.replace(OPTIONS, trust_remote_code=True)
        assert LayeredTrial(others, PROBES, trusting, kept).reason() is None
    assert forwards
    forwards.clear()
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    original = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**original, "rms_norm_eps": 1e-3}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # Each by itself, also where one is known.
    changed = [*models, ModelReference.parse(str(folder))]
    trial = LayeredTrial(changed, PROBES, OPTIONS, kept)
    assert trial.due(changed) == changed[1:]
    trial.settle(changed)
    assert forwards
    assert trial.due(changed) == []
    forwards.clear()
    # What no layer knows of makes no difference.
    config = {**original, "pad_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert LayeredTrial(changed[1:], PROBES, OPTIONS, kept).reason() is None
    assert forwards == []
    two_sided = [ModelReference.parse(str(tiny_model("t5")))]
    for _ in range(2):
        trial = LayeredTrial(two_sided, PROBES, OPTIONS, open_caches(CacheBlock()).layered)
        assert "encoder-decoder" in trial.reason()
    assert len(loaded) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "out of memory"), (OSError(5, "EIO"), "EIO")],
)
def test_what_says_nothing_of_the_model_is_no_outcome_of_a_trial(
    tiny_model, monkeypatch, fault, told
):
    models = [ModelReference.parse(str(tiny_model("llama")))]

    def failing(*_):
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr("mergekit_collapse.states.whole_by_stage.forward", failing)
        with pytest.raises(EvaluationError, match=told):
            LayeredTrial(models, PROBES, OPTIONS, open_caches(CacheBlock()).layered).open(models[0])
    with monkeypatch.context() as patched:
        patched.setattr("mergekit_collapse.states.layered.LayerCall.run", failing)
        trial = LayeredTrial(models, PROBES, OPTIONS, open_caches(CacheBlock()).layered)
        loader.each_model(models, OPTIONS, trial.visit)
        assert told in trial.reason()
    assert LayeredTrial(models, PROBES, OPTIONS, open_caches(CacheBlock()).layered).reason() is None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["NaN", "infinite states", "another shape"])
def test_a_broken_model_is_no_outcome_for_those_like_it(tiny_model, tmp_path, fault):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    if fault == "another shape":
        weights[name] = weights[name][:-1].clone()
    else:
        weights["model.layers.0.mlp.up_proj.weight"] *= 1e25
        weights[name][:] = float("nan") if fault == "NaN" else 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kept = open_caches(CacheBlock()).layered
    broken, sound = (ModelReference.parse(str(f)) for f in (folder, tiny_model("llama")))
    trial = LayeredTrial([broken], PROBES, OPTIONS, kept)
    told = {"NaN": "NaN", "infinite states": "are NaN or infinite", "another shape": "the shape"}
    with pytest.raises(NotLayeredError, match=told[fault]):
        trial.open(broken)
    assert LayeredTrial([sound], PROBES, OPTIONS, kept).reason() is None
    # Nor is one that is kept, for another configuration.
    other = ModelReference.parse(str(tiny_model("qwen2")))
    both = LayeredTrial([sound, other], PROBES, OPTIONS, kept)
    assert both.due([sound, other, sound]) == [other]
    both.settle([sound, other])
    assert both.due([sound, other]) == []


_CHECK = """
import sys
from mergekit.options import MergeOptions
from mergekit_collapse import cached_files, gate
from pathlib import Path
cached_files.cache_folder = lambda: Path(sys.argv[2])
report = gate.check(sys.argv[1], MergeOptions(quiet=True), Path(sys.argv[3]))
print(report.measurement.hidden.squared.tolist())
"""


@pytest.mark.slow
def test_two_checks_at_once_share_one_cache(copied, tmp_path, own_cache):
    path = recipe(tmp_path, copied("base"), copied("one", 0.02))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _CHECK, str(path), str(own_cache), str(tmp_path / f"r{i}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert "cache:" not in told[0][1] + told[1][1]
    assert len(list(open_cached_files(STATES).found())) == 2
