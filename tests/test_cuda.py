"""Where a CUDA device is: what it computes, and what goes wrong there."""

import json
import os

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from mergekit.common import ModelReference
from safetensors.torch import load_file, save_file
from test_loader import make_adapter
from test_stage_reader import files, tensors  # noqa: F401  (fixtures)
from test_stock_commands import FAST, command, linear, write  # noqa: F401  (a fixture)
from test_sweep import TEXTS

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states import stage_reader
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.layered_trial import LayeredTrial
from mergekit_collapse.states.loader import LoadOptions, choose_dtype
from mergekit_collapse.states.run_models import LAYERED, run_models
from mergekit_collapse.states.stage_tensors import StagedFiles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
CUDA = LoadOptions(device="cuda:0", dtype=torch.float32, progress=False)
EVERYTHING = StateRequest(True, "all", "mean", profile=True)


@pytest.fixture(scope="module")
def probes(tiny_tokenizer):
    ids = [tuple(tiny_tokenizer(text)["input_ids"]) for text in TEXTS * 3]
    rows = tuple(TokenizedProbe(tokens, (5, 6) if i % 2 else ()) for i, tokens in enumerate(ids))
    return TokenizedProbes(rows, np.zeros(len(rows), dtype=np.int64), "digest")


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, tiny_tokenizer):
    """``wide_model(layers)``: a Llama whose activations take more than its weights."""

    def make(layers):
        folder = tmp_path_factory.mktemp("wide") / "model"
        config = transformers.LlamaConfig(
            vocab_size=tiny_models.VOCABULARY,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=512,
        )
        with torch.random.fork_rng():
            torch.manual_seed(layers)
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    return make


def states_of(models, probes, options, *, whole=False, request=EVERYTHING, tokens=None):
    references = [ModelReference.parse(str(model)) for model in models]
    return collect(
        references,
        [f"m{i}" for i in range(len(models))],
        len(models),
        probes,
        request,
        options,
        trial=None if whole else LayeredTrial(references, probes, options),
        run=run_models,
        batch_tokens=tokens,
    )


def assert_near(found, due, tolerance):
    """Hidden states by the size of each layer's, answers as they are."""
    for one, other in zip(found.hidden.values, due.hidden.values, strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)
    assert (found.predictive is None) == (due.predictive is None)
    if due.predictive is not None:
        one, other = found.predictive.values[0], due.predictive.values[0]
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", sorted(tiny_models.BUILDERS))
def test_cuda_agrees_with_the_cpu(tiny_model, probes, architecture):
    models = [tiny_model(architecture, seed) for seed in (0, 1)]
    there, here = states_of(models, probes, CUDA), states_of(models, probes, CPU)
    assert there.engine == here.engine
    assert there.device == "cuda:0"
    assert_near(there, here, 1e-4)
    for layers, due in zip(there.layers, here.layers, strict=True):
        for one, other in zip(layers.statistics, due.statistics, strict=True):
            assert one.variance == pytest.approx(other.variance, rel=1e-3)
            assert one.effective_rank == pytest.approx(other.effective_rank, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_by_layer_gives_what_the_whole_model_gives(tiny_model, probes, dtype):
    options = LoadOptions(device="cuda", dtype=dtype, progress=False)
    models = [tiny_model("llama", seed) for seed in (0, 1)]
    found, due = states_of(models, probes, options), states_of(models, probes, options, whole=True)
    assert (found.engine, due.engine) == (LAYERED, "whole-model")
    for one, other in zip(found.hidden.values, due.hidden.values, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.predictive.values[0], due.predictive.values[0])


def test_adapters_run_together_as_merged_into_their_base(tiny_model, probes, tmp_path):
    base = tiny_model("llama")
    adapters = [make_adapter(base, tmp_path / f"a{i}", i) for i in range(3)]
    models = [base, *(f"{base}+{adapter}" for adapter in adapters)]
    there, here = states_of(models, probes, CUDA), states_of(models, probes, CPU)
    assert there.engine == LAYERED
    assert_near(there, here, 1e-4)
    last = there.hidden.values[-1]
    assert abs(last[0] - last[1]).max() > 1e-2


def test_every_kind_of_number_arrives_bit_for_bit(
    tensors,  # noqa: F811  (the fixtures)
    files,  # noqa: F811  (another)
    monkeypatch,
):
    staged = StagedFiles("m", files, (tuple(tensors),))
    # Pieces that end in the middle of a number, and in a mode of which other threads know nothing.
    for piece, inference in ((1, False), (64, True), (1001, False), (2**24, True)):
        monkeypatch.setattr(stage_reader, "PIECE", piece)
        with torch.inference_mode(inference):
            found = stage_reader.stage_reader("cuda").load(staged, 0)
        assert found.keys() == tensors.keys()
        for name, tensor in found.items():
            assert tensor.device.type == "cuda"
            assert tensor.dtype == tensors[name].dtype
            assert torch.equal(tensor.cpu(), tensors[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_broken_weights_are_refused_by_name(tiny_model, probes, tmp_path, value, dtype):
    source = tiny_model("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"NaN or infinite .*layers\.1\.mlp\.up_proj"):
        states_of([tmp_path / "model"], probes, CUDA)


def test_a_file_that_is_cut_short_while_it_is_read(
    tensors,  # noqa: F811  (the fixtures)
    files,  # noqa: F811  (another)
    tmp_path,
    monkeypatch,
):
    staged = StagedFiles("m", files, (tuple(tensors),))
    monkeypatch.setattr(stage_reader, "PIECE", 64)
    reader = stage_reader.stage_reader("cuda")
    reader.load(staged, 0)
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(EvaluationError, match=r"model\.safetensors: was (cut short|written to)"):
        reader.load(staged, 0)


def test_memory_does_not_grow_with_the_layers(wide_model, probes):
    peaks = []
    for layers in (4, 16):
        model = wide_model(layers)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        states_of([model], probes, CUDA)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    layer = sum(
        t.nbytes for n, t in load_file(model / "model.safetensors").items() if ".layers.0." in n
    )
    assert peaks[1] < peaks[0] + layer


def test_out_of_memory_goes_on_with_smaller_batches(wide_model, caplog):
    generator = np.random.default_rng(0)
    rows = tuple(
        TokenizedProbe(tuple(generator.integers(3, 300, 100).tolist()), ()) for _ in range(400)
    )
    probes = TokenizedProbes(rows, np.zeros(len(rows), dtype=np.int64), "digest")
    model, request = wide_model(2), StateRequest(False, "last", "mean")
    due = states_of([model], probes, CUDA, request=request)
    # A batch of 40,000 tokens is 164 MB wherever it is widest.
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    limit = torch.cuda.memory_reserved() + 300 * 10**6
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        found = states_of([model], probes, CUDA, request=request, tokens=40_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with batches of 40000 tokens" in caplog.text
    assert_near(found, due, 1e-5)


def test_out_of_memory_with_one_probe_is_an_error(wide_model, probes):
    torch.cuda.empty_cache()
    # Less than the weights of a layer.
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**21) / total)
    try:
        with pytest.raises(EvaluationError, match="out of memory"):
            states_of([wide_model(2)], probes, CUDA)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("distance", [0.02, 3.0])
def test_the_stock_command_measures_watches_and_judges_there(
    command,  # noqa: F811  (the fixture)
    tiny_model,
    variant,
    tmp_path,
    distance,
):
    models = tmp_path / "models"
    models.mkdir()
    (models / "one").symlink_to(variant(tiny_model("llama"), 0.02, 1))
    (models / "other").symlink_to(variant(tiny_model("llama"), distance, 2))
    recipe = write(tmp_path / "recipe.yml", linear(models, "one", "other", compat=FAST))
    done = command("mergekit-yaml", recipe, "out", "--cuda")
    assert done.returncode == (0 if distance < 1 else 3), done.stderr
    report = json.loads((tmp_path / "out.compat" / "report.json").read_text(encoding="utf-8"))
    assert report["forward"]["device"].startswith("cuda")
    assert report["forward"]["engine"] == LAYERED
    expected = str(choose_dtype("cuda")).removeprefix("torch.")
    assert report["forward"]["dtype"] == expected
    if distance < 1:
        assert report["monitor"]["layers"]
        assert report["evaluation"]["verdict"]
