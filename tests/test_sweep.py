"""Models that run together layer by layer: exact, shared where they are the same, safe to read."""

import os
import threading
from collections import Counter

import peft
import pytest
import tiny_models
import torch
import transformers
from mergekit.common import ModelPath, ModelReference
from safetensors.torch import load_file, save_file
from test_loader import make_adapter

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states import run_plan, shard_file
from mergekit_collapse.states.ahead import Ahead
from mergekit_collapse.states.dry_forward import LayerCall, NotLayeredError
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, each_model
from mergekit_collapse.states.lora_update import LoraAdapter
from mergekit_collapse.states.run_models import LAYERED
from mergekit_collapse.states.stage_tensors import StagedFiles, common_starts
from mergekit_collapse.states.tensor_files import TensorFiles

pytestmark = pytest.mark.slow

FLOAT32 = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
TEXTS = [
    "Two plus three is",
    "The film was wonderful. It is",
    "Où",
    "def add(first, second): return",
]
STACKS = sorted(set(tiny_models.BUILDERS) - {"t5"})


@pytest.fixture(scope="module")
def probes(tiny_tokenizer):
    ids = [tuple(tiny_tokenizer(text)["input_ids"]) for text in TEXTS * 3]
    rows = tuple(TokenizedProbe(tokens, (5, 6) if i % 2 else ()) for i, tokens in enumerate(ids))
    return TokenizedProbes(rows, torch.zeros(len(rows), dtype=torch.int64).numpy(), "digest")


def states_of(models, probes, *, whole=False, request=None, options=FLOAT32):
    references = [ModelReference.parse(str(model)) for model in models]
    names = [f"m{i}" for i in range(len(models))]
    asked = request or StateRequest(True, "all", "mean", profile=True)
    trial = None if whole else LayeredTrial(references, probes, options)
    return collect(
        references,
        names,
        len(models),
        probes,
        asked,
        options,
        trial=trial,
        each=aligned,
        batch_tokens=40,
    )


def known(self, reference):
    """As if its layers had been found to run apart."""
    self._reasons[self._kind(reference)] = None
    return True


def aligned(references, options, visit):
    """Whole models, each tensor in memory of its own.

    transformers maps files, and a matrix product rounds by where in memory its factors begin.
    """

    def copied(index, model):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        visit(index, model)

    each_model(references, options, copied)


def assert_same(found, due, tolerance=0.0):
    for one, other in zip(found.hidden.values, due.hidden.values, strict=True):
        torch.testing.assert_close(
            torch.tensor(one), torch.tensor(other), rtol=tolerance, atol=tolerance
        )
    assert (found.predictive is None) == (due.predictive is None)
    if due.predictive is not None:
        one, other = found.predictive.values[0], due.predictive.values[0]
        torch.testing.assert_close(
            torch.tensor(one), torch.tensor(other), rtol=tolerance, atol=tolerance
        )
    assert len(found.layers) == len(due.layers)


@pytest.mark.parametrize("architecture", STACKS)
def test_every_number_is_that_of_the_whole_model(tiny_model, probes, architecture):
    models = [tiny_model(architecture, seed) for seed in (0, 1)]
    found, due = states_of(models, probes), states_of(models, probes, whole=True)
    assert (found.engine, due.engine) == (LAYERED, "whole-model")
    assert_same(found, due)
    for one, other in zip(found.layers, due.layers, strict=True):
        assert one.statistics == other.statistics


def test_an_encoder_decoder_is_loaded_whole_and_says_why(tiny_model, probes, tiny_tokenizer):
    request = StateRequest(True, "last", "mean")
    found = states_of([tiny_model("t5")], probes, request=request)
    assert "whole-model (it is an encoder-decoder" in found.engine


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": 32},
        {"use_rslora": True, "r": 4},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [1]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 1}},
    ],
)
def test_an_adapter_is_run_as_merged_into_its_base(tiny_model, probes, tmp_path, config):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "adapter", 1, **config)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    found = states_of([f"{base}+{adapter}", base], probes)
    due = states_of([tmp_path / "merged", base], probes, whole=True)
    assert found.engine == LAYERED
    assert_same(found, due, tolerance=2e-5)
    # The adapter must be felt, or the comparison would show nothing.
    last = found.hidden.values[-1]
    assert abs(last[0] - last[1]).max() > 1e-2


def test_an_adapter_of_another_kind_is_run_by_peft(tiny_model, probes, tmp_path):
    base = tiny_model("llama")
    dora = make_adapter(base, tmp_path / "dora", 1, use_dora=True)
    plain = make_adapter(base, tmp_path / "plain", 2)
    models = [f"{base}+{dora}", f"{base}+{plain}", base]
    found = states_of(models, probes)
    assert found.engine == f"{LAYERED}, in part"
    assert_same(found, states_of(models, probes, whole=True), tolerance=2e-5)


@pytest.fixture
def calls(monkeypatch):
    """How often each layer's own module ran a batch."""
    counted = Counter()
    run = LayerCall.run

    def counting(call, layer, tensors, hidden):
        counted[id(layer)] += 1
        return run(call, layer, tensors, hidden)

    monkeypatch.setattr(LayerCall, "run", counting)
    monkeypatch.setattr(LayeredTrial, "_known", known)
    return counted


def freeze(source, folder, changed):
    """A copy of a model in which only tensors whose names hold ``changed`` are others."""
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if changed in name:
            tensors[name] = tensors[name] + 0.1
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_models_share_is_run_once(tiny_model, probes, tmp_path, calls):
    base = tiny_model("llama")
    top = freeze(base, tmp_path / "top", "layers.1.")
    head = freeze(base, tmp_path / "head", "lm_head")
    models = [base, top, head]
    found = states_of(models, probes)
    batches = min(calls.values())
    # Layer 1 runs once for all three, layer 2 for ``top`` and for the other two.
    assert sorted(calls.values()) == [batches, 2 * batches]
    assert_same(found, states_of(models, probes, whole=True))


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
@pytest.mark.parametrize("whole", [False, True])
def test_equal_probes_are_run_once(tiny_model, tiny_tokenizer, pooling, whole):
    a, b, c = (tuple(tiny_tokenizer(text)["input_ids"]) for text in TEXTS[:3])
    rows = [(a, ()), (b, (5, 6)), (a, ()), (b, ()), (c, (7,)), (b, (5, 6)), (a, ())]
    once = [(a, ()), (b, (5, 6)), (b, ()), (c, (7,))]

    def measured(pairs):
        probes = tuple(TokenizedProbe(*pair) for pair in pairs)
        tasks = torch.zeros(len(pairs), dtype=torch.int64).numpy()
        request = StateRequest(True, "all", pooling, profile=True)
        given = TokenizedProbes(probes, tasks, "digest")
        return states_of([tiny_model("llama")], given, whole=whole, request=request)

    def rows_of(space, layer, probe):
        return space.values[layer][0][space.probe_of_row == probe]

    found, due = measured(rows), measured(once)
    for probe, pair in enumerate(rows):
        other = once.index(pair)
        for space in ("hidden", "predictive"):
            ours, theirs = getattr(found, space), getattr(due, space)
            for layer in range(len(ours.values)):
                one, two = rows_of(ours, layer, probe), rows_of(theirs, layer, other)
                assert one.size
                assert (one == two).all()
        for one, two in zip(found.layers[0].pooled, due.layers[0].pooled, strict=True):
            assert (one[probe] == two[other]).all()
    for one, two in zip(found.layers[0].statistics, due.layers[0].statistics, strict=True):
        assert one.variance == pytest.approx(two.variance, rel=1e-12)
        assert one.effective_rank == pytest.approx(two.effective_rank, rel=1e-12)


class _Letters(StagedFiles):
    """A model of which each stage is a letter."""

    compared = 0

    def __init__(self, stages):
        object.__setattr__(self, "stages", tuple((letter,) for letter in stages))

    def equals(self, other, stage):
        _Letters.compared += 1
        return self.stages[stage] == other.stages[stage]


def test_each_stage_is_compared_with_one_of_those_that_are_alike(monkeypatch):
    monkeypatch.setattr(_Letters, "compared", 0)
    models = [_Letters(letters) for letters in ("aab", "aac", "aab", "xab", "aac", "aad")]
    assert common_starts(models) == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 0],
        # Equal stages after one that differs are not the same states.
        [3, 3, 3],
        [0, 0, 1],
        [0, 0, 5],
    ]
    monkeypatch.setattr(_Letters, "compared", 0)
    assert common_starts([_Letters("abc")] * 10) == [[0, 0, 0]] * 10
    assert _Letters.compared == 9 * 3


def test_models_with_nothing_in_common_run_by_themselves(tiny_model, probes, calls):
    models = [tiny_model("llama", seed) for seed in (0, 1)]
    states_of(models[:1], probes)
    alone = calls.total()
    calls.clear()
    states_of(models, probes)
    assert calls.total() == 2 * alone
    assert len(set(calls.values())) == 1


def test_models_of_one_configuration_are_built_once(tiny_model, variant, probes, monkeypatch):
    models = [tiny_model("llama"), variant(tiny_model("llama"), 0.1, 1), tiny_model("qwen2")]
    references = [ModelReference.parse(str(model)) for model in models]
    trial = LayeredTrial(references, probes, FLOAT32)
    opened = [trial.look(one) for one in references]
    assert opened[0].model is opened[1].model
    assert opened[0].model is not opened[2].model
    assert [one.opened.where for one in opened] == [f"model {model}" for model in models]
    # Code of the models' own may differ under one name.
    monkeypatch.setattr("mergekit_collapse.states.layered_files.brings_code", lambda config: True)
    own = [LayeredTrial(references, probes, FLOAT32).look(one) for one in references[:2]]
    assert own[0].model is not own[1].model
    assert not own[0].starts_like(own[1], surely=True)


def test_the_header_of_a_shard_is_read_once(tiny_model, monkeypatch):
    read, original = [], shard_file.read_header
    monkeypatch.setattr(shard_file, "read_header", lambda path: read.append(path) or original(path))
    assert len(TensorFiles(tiny_model("llama")).names) > 1
    assert len(read) == 1


def test_a_base_is_read_once_for_all_its_adapters(tiny_model, probes, tmp_path, monkeypatch):
    base = tiny_model("llama")
    adapters = [make_adapter(base, tmp_path / f"a{i}", i) for i in range(4)]
    loaded = []
    load = StagedFiles.load
    monkeypatch.setattr(
        StagedFiles, "load", lambda self, stage: loaded.append(stage) or load(self, stage)
    )
    monkeypatch.setattr(LayeredTrial, "_known", known)
    states_of([f"{base}+{adapter}" for adapter in adapters], probes)
    assert loaded == [0, 1, 2, 3]


def test_states_do_not_depend_on_how_many_run_together(tiny_model, probes, tmp_path, monkeypatch):
    base = tiny_model("llama")
    adapters = [make_adapter(base, tmp_path / f"a{i}", i) for i in range(3)]
    models = [f"{base}+{adapter}" for adapter in adapters]
    due = states_of(models, probes)
    monkeypatch.setattr(run_plan, "_STATES_LIMIT", 1)
    assert_same(states_of(models, probes), due)


def test_a_broken_layer_is_named(tiny_model, probes, tmp_path):
    broken = freeze(tiny_model("llama"), tmp_path / "broken", "nothing")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"broken: NaN or infinite .*layers\.1\.mlp\.up_proj"):
        states_of([broken], probes)


@pytest.mark.parametrize("what", ["cut", "written", "gone"])
def test_a_file_that_changes_while_it_is_read(tiny_model, tmp_path, what):
    folder = freeze(tiny_model("llama"), tmp_path / "model", "nothing")
    path = folder / "model.safetensors"
    files = TensorFiles(folder)
    due = load_file(path)
    name = max(files.names, key=lambda n: files._file_of[n].tensors[n].begin)
    data = path.read_bytes()
    if what == "gone":
        # It was opened, and stays readable until it is let go of.
        path.unlink()
        assert torch.equal(files.read(name), due[name])
        with pytest.raises(EvaluationError, match="found no weight file"):
            TensorFiles(folder)
        return
    if what == "cut":
        with path.open("r+b") as file:
            file.truncate(len(data) - 8)
    else:
        path.write_bytes(data)
    told = "was cut short" if what == "cut" else "was written to"
    with pytest.raises(EvaluationError, match=rf"model\.safetensors: {told} while it was read"):
        files.read(name)


def test_an_adapter_that_is_cut_short_while_it_is_read(tiny_model, tmp_path):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "adapter", 1)
    names = {name: name for name in TensorFiles(base).names}
    opened = LoraAdapter(ModelPath(path=str(adapter)), names, None)
    changed = max(opened.changed)
    shape = TensorFiles(base).shape(changed)
    assert opened.update(changed, shape) is not None
    os.truncate(adapter / "adapter_model.safetensors", 600)
    with pytest.raises(EvaluationError, match=r"adapter_model\.safetensors: was cut short while"):
        opened.update(changed, shape)


def test_of_many_files_few_are_open(tiny_model, probes, monkeypatch):
    models = [tiny_model("llama", seed) for seed in (0, 1)]
    due, before = states_of(models, probes), len(shard_file._KEPT_OPEN)
    monkeypatch.setattr(shard_file, "_MOST_OPEN", before)
    files = [TensorFiles(model) for model in models]
    assert len(shard_file._KEPT_OPEN) == before
    assert_same(states_of(models, probes), due)
    monkeypatch.undo()
    files.append(TensorFiles(models[0]))
    assert len(shard_file._KEPT_OPEN) == before + 1
    del files
    assert len(shard_file._KEPT_OPEN) == before


def test_a_file_that_is_not_kept_open_is_missed_or_known_to_be_another(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(shard_file, "_MOST_OPEN", 0)
    folder = freeze(tiny_model("llama"), tmp_path / "model", "nothing")
    path, files = folder / "model.safetensors", TensorFiles(folder)
    name, status, other = min(files.names), path.stat(), tmp_path / "other"
    assert torch.equal(files.read(name), load_file(path)[name])
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    with pytest.raises(EvaluationError, match=r"was written to while it was read"):
        files.read(name)
    path.unlink()
    with pytest.raises(EvaluationError, match=r"model\.safetensors: cannot be read: No such file"):
        files.read(name)


def test_stored_tensors_of_every_kind(tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    tensors = {str(kind): torch.tensor([[1, 0, 3]]).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "nothing": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    assert files.names == tensors.keys()
    for name, due in tensors.items():
        found = files.read(name)
        assert (found.dtype, found.shape) == (due.dtype, due.shape)
        assert torch.equal(found, due)
    save_file({"x": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(NotLayeredError, match="F8_E4M3"):
        TensorFiles(tmp_path)


def test_one_result_is_made_ahead_and_no_more():
    begun, seen = [], []
    ready = threading.Event()

    def job(number):
        begun.append(number)
        if number == 1:
            ready.set()
        return number

    with Ahead((lambda n=n: job(n)) for n in range(4)) as results:
        seen.append(results.take())
        assert ready.wait(10), "the second was not begun"
        assert begun == [0, 1]
        seen += [results.take() for _ in range(3)]
        with pytest.raises(StopIteration):
            results.take()
    assert seen == [0, 1, 2, 3]


def test_an_error_is_raised_where_its_result_is_taken():
    def broken():
        raise EvaluationError("no such shard")

    with Ahead([lambda: 1, broken]) as results:
        assert results.take() == 1
        with pytest.raises(EvaluationError, match="no such shard"):
            results.take()
