"""States against transformers' own, one unpadded probe at a time, for every architecture."""

from functools import cache

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from mergekit.common import ModelReference
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.forward import forward
from mergekit_collapse.states.hidden_states import StateRequest, collect
from mergekit_collapse.states.loader import LoadOptions

pytestmark = pytest.mark.slow

ARCHITECTURES = sorted(tiny_models.BUILDERS)
DECODERS = sorted(set(ARCHITECTURES) - {"bert", "t5"})
OPTIONS = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}

PROMPTS = [
    ("Question: which planet is the largest in the solar system?", " Jupiter"),
    ("Two plus three is", None),
    ("The film was wonderful, and the story moving. It is", " good"),
    ("def add(first, second): return", " first + second"),
    ("Où", None),
]


@pytest.fixture(scope="module")
def probes(tiny_tokenizer):
    def ids(text, special):
        return tuple(tiny_tokenizer(text, add_special_tokens=special)["input_ids"])

    made = tuple(TokenizedProbe(ids(p, True), ids(t, False) if t else ()) for p, t in PROMPTS)
    assert len({len(p.prompt) for p in made}) == len(made), "padding must be needed"
    return TokenizedProbes(made, np.array([0, 0, 1, 1, 1], dtype=np.int64), "digest")


def measure(folders, probes, *, options=OPTIONS, names=None, layers="last", pooling="mean", **more):
    references = [ModelReference.parse(str(folder)) for folder in folders]
    names = names or [f"expert-{i}" for i in range(len(references))]
    request = StateRequest(more.pop("predictive", True), layers, pooling)
    return collect(references, names, len(names), probes, request, options, **more)


@cache
def reference_model(folder):
    config = AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()


@torch.no_grad()
def oracle(folder, probe):
    """transformers' own layers, ``last_hidden_state`` and answer logits, without padding."""
    model = reference_model(folder)
    prompt = torch.tensor([probe.prompt])
    wanted = {"output_hidden_states": True}
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        decoder_ids = torch.tensor([[start, *probe.target[:-1]]])
        out = model(input_ids=prompt, decoder_input_ids=decoder_ids, **wanted)
        last = model.decoder(
            input_ids=decoder_ids,
            encoder_hidden_states=model.encoder(prompt).last_hidden_state,
        ).last_hidden_state
        return out.decoder_hidden_states, last, out.logits[0]
    whole = model(input_ids=torch.tensor([probe.prompt + probe.target]))
    first = len(probe.prompt) - 1
    logits = whole.logits[0, first : first + max(1, len(probe.target))]
    alone = model.base_model(input_ids=prompt, **wanted)
    return alone.hidden_states, alone.last_hidden_state, logits


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_transformers(tiny_model, probes, architecture, side):
    folder = tiny_model(architecture)
    states = measure([folder], probes, layers="all", pooling="tokens", side=side)
    count = 0
    for number, probe in enumerate(probes.probes):
        hidden, last, logits = oracle(folder, probe)
        rows = states.hidden.probe_of_row == number
        assert len(states.hidden.layers) == len(hidden) - 1
        for layer, values in zip(states.hidden.layers, states.hidden.values, strict=True):
            np.testing.assert_allclose(values[0, rows], hidden[layer][0].numpy(), **CLOSE)
        np.testing.assert_allclose(states.hidden.values[-1][0, rows], last[0].numpy(), **CLOSE)
        count += last.shape[1]
        if states.predictive is not None:
            root = torch.softmax(logits.double(), dim=-1).sqrt().numpy()
            rows = states.predictive.probe_of_row == number
            np.testing.assert_allclose(states.predictive.values[0][0, rows], root, **CLOSE)
    assert states.hidden.values[-1].shape == (1, count, tiny_models.HIDDEN)
    assert (states.predictive is None) == (architecture == "bert")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_pooled_states_do_not_depend_on_batches(tiny_model, variant, probes, architecture):
    folders = [tiny_model(architecture), variant(tiny_model(architecture), 0.1)]
    for pooling in ("mean", "last_token"):
        whole = measure(folders, probes, pooling=pooling)
        for tokens, side in ((1, "right"), (40, "left")):
            other = measure(folders, probes, pooling=pooling, batch_tokens=tokens, side=side)
            np.testing.assert_allclose(other.hidden.values[0], whole.hidden.values[0], **CLOSE)
            if whole.predictive is not None:
                np.testing.assert_allclose(
                    other.predictive.values[0], whole.predictive.values[0], **CLOSE
                )
        assert whole.hidden.probe_of_row.tolist() == [0, 1, 2, 3, 4]
        assert not np.allclose(whole.hidden.values[0][0], whole.hidden.values[0][1], atol=1e-3)


def test_the_record_says_what_was_measured(tiny_model, probes):
    states = measure([tiny_model("t5")], probes, pooling="mean")
    assert (states.device, states.dtype, states.engine) == ("cpu", "float32", "whole-model")
    assert states.hidden.layers == (3,)
    assert states.predictive.layers == (3,)
    assert states.predictive.pooling == "answer"
    targets = [max(1, len(p.target)) for p in probes.probes]
    assert states.predictive.probe_of_row.tolist() == np.repeat(range(5), targets).tolist()
    np.testing.assert_allclose((states.predictive.values[0] ** 2).sum(axis=2), 1, rtol=1e-5)
    assert states.hidden.values[0].dtype == np.float32


@pytest.mark.parametrize("architecture", DECODERS)
def test_prompt_states_do_not_see_the_target(tiny_model, probes, architecture):
    folder = tiny_model(architecture)
    forced = measure([folder], probes, pooling="last_token")
    alone = measure([folder], probes, pooling="last_token", predictive=False)
    np.testing.assert_allclose(alone.hidden.values[0], forced.hidden.values[0], **CLOSE)
    assert alone.predictive is None
    assert alone.predictive_reason == "it was not asked for"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_the_head_is_given_the_answer_positions_alone(tiny_model, probes, architecture):
    model = reference_model(tiny_model(architecture))
    (batch,) = make_batches(
        probes.probes,
        answers=True,
        decoder_start=0 if architecture == "t5" else None,
        max_tokens=4096,
    )
    depth = 3 if architecture == "t5" else 2
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    selected = forward(model, batch, (depth,), depth, True).answers
    handle.remove()
    assert shapes == [(1, len(batch.answer_positions), tiny_models.VOCABULARY)]
    # A model that never calls its head as a module has its logits selected afterwards.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "get_output_embeddings", torch.nn.Identity)
        torch.testing.assert_close(forward(model, batch, (depth,), depth, True).answers, selected)


def test_the_bar_bears_the_name_of_the_model(tiny_model, probes, capfd):
    loud = LoadOptions(device="cpu", dtype=torch.float32, progress=True)
    measure([tiny_model("llama")], probes, options=loud, names=["sentiment"])
    out, err = capfd.readouterr()
    assert out == ""
    assert "sentiment: 100%" in err
    assert "Loading weights" not in err


def test_layers_by_number(tiny_model, probes):
    folder = tiny_model("llama")
    every = measure([folder], probes, layers=(0, 1, 2))
    some = measure([folder], probes, layers=(-1, -3, 1))
    assert some.hidden.layers == (2, 0, 1)
    for layer, values in zip(some.hidden.layers, some.hidden.values, strict=True):
        assert np.array_equal(values, every.hidden.values[layer])
    last = measure([folder], probes)
    np.testing.assert_allclose(last.hidden.values[0], every.hidden.values[2], **CLOSE)
    for bad in (3, -4):
        with pytest.raises(InvalidRecipeError, match=r"no layer -?\d.* 0 \(the embeddings\) to 2"):
            measure([folder], probes, layers=(bad,))


def test_bert_has_hidden_states_only_and_says_why(tiny_model, probes):
    states = measure([tiny_model("bert")], probes)
    assert states.predictive is None
    assert "BertForMaskedLM" in states.predictive_reason


def test_a_classifier_is_measured_without_its_head(tiny_model, probes, tmp_path):
    folder = tmp_path / "classifier"
    config = AutoConfig.from_pretrained(tiny_model("llama"))
    # No padding token: the classifier's own forward would refuse a batch.
    config.pad_token_id, config.num_labels = None, 3
    model = transformers.LlamaForSequenceClassification(config)
    model.model.load_state_dict(
        transformers.LlamaForCausalLM.from_pretrained(tiny_model("llama")).model.state_dict()
    )
    model.save_pretrained(folder)
    states = measure([folder], probes)
    assert "LlamaForSequenceClassification" in states.predictive_reason
    causal = measure([tiny_model("llama")], probes)
    np.testing.assert_allclose(states.hidden.values[0], causal.hidden.values[0], **CLOSE)


def test_a_model_without_a_head_takes_predictive_space_from_all(tiny_model, probes, tmp_path):
    bare = tmp_path / "bare"
    transformers.LlamaModel.from_pretrained(tiny_model("llama")).save_pretrained(bare)
    states = measure([tiny_model("llama"), bare], probes, names=["causal", "bare"])
    assert states.predictive is None
    assert "bare (LlamaModel)" in states.predictive_reason
    np.testing.assert_allclose(*states.hidden.values[0], **CLOSE)


def test_a_smaller_vocabulary_is_filled_up_with_zeros(tiny_model, probes, tmp_path):
    folder = tmp_path / "extended"
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_model("llama"))
    model.resize_token_embeddings(tiny_models.VOCABULARY + 2, mean_resizing=False)
    model.save_pretrained(folder)
    for order in ([tiny_model("llama"), folder], [folder, tiny_model("llama")]):
        first, second = measure(order, probes).predictive.values[0]
        small, large = (first, second) if order[1] is folder else (second, first)
        assert small.shape[1] == tiny_models.VOCABULARY + 2
        assert (small[:, -2:] == 0).all()
        assert (large[:, -2:] > 0).all()


def test_models_of_different_widths_are_refused(tiny_model, probes, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model("llama"), hidden_size=16)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    with pytest.raises(EvaluationError, match=r"narrow .*width 16, but wide of 32"):
        measure([tiny_model("llama"), tmp_path / "narrow"], probes, names=["wide", "narrow"])


def test_models_of_different_depths_have_only_their_last_layer_in_common(
    tiny_model, probes, tmp_path
):
    config = AutoConfig.from_pretrained(tiny_model("llama"), num_hidden_layers=1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "shallow")
    folders = [tiny_model("llama"), tmp_path / "shallow"]
    with pytest.raises(EvaluationError, match=r"expert-0 has 2 layers and expert-1 1"):
        measure(folders, probes, layers="all")
    assert measure(folders, probes).hidden.layers == (2,)


def test_a_token_that_the_model_does_not_know_is_refused(tiny_model, probes):
    strange = TokenizedProbes((TokenizedProbe((5, 384), ()),), np.array([0]), "digest")
    with pytest.raises(EvaluationError, match=r"token 384, .* 384 tokens only"):
        measure([tiny_model("llama")], strange)


def test_a_probe_longer_than_the_model_reads_is_refused(tiny_model):
    long = TokenizedProbes((TokenizedProbe((5,) * 129, ()),), np.array([0]), "digest")
    with pytest.raises(EvaluationError, match=r"129 tokens.*128 positions; lower .*max_tokens"):
        measure([tiny_model("gpt2")], long)


def test_an_overflow_names_the_model_the_probe_and_its_task(tiny_model, probes, tmp_path):
    folder = tmp_path / "huge"
    transformers.AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    # Position 12 is reached by the longest probes only.
    tensors["transformer.wpe.weight"][12] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        EvaluationError, match=r"huge: .*layer 2 is NaN.* on probe \d \(task [01]\)"
    ):
        measure([tiny_model("gpt2"), folder], probes, names=["fine", "huge"])


def test_large_arrays_go_to_a_file_and_hold_the_same(tiny_model, probes, monkeypatch):
    small = measure([tiny_model("llama")], probes)
    monkeypatch.setattr("mergekit_collapse.states.storage.MEMORY_LIMIT", 10)
    large = measure([tiny_model("llama")], probes)
    assert isinstance(large.predictive.values[0], np.memmap)
    assert np.array_equal(small.predictive.values[0], large.predictive.values[0])


def test_a_full_disk_is_an_error_and_not_a_crash(tiny_model, probes, monkeypatch):
    monkeypatch.setattr("mergekit_collapse.states.storage.MEMORY_LIMIT", 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mergekit_collapse.states.storage._claim", full)
    with pytest.raises(EvaluationError, match=r"No space left.*TMPDIR.*probes.samples"):
        measure([tiny_model("llama")], probes)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_what_to_lower(tiny_model, probes, monkeypatch, failure):
    def forward(*_):
        raise failure

    monkeypatch.setattr("mergekit_collapse.states.whole_model.forward", forward)
    with pytest.raises(EvaluationError, match=r"expert-0.*probes.samples and probes.max_tokens"):
        measure([tiny_model("llama")], probes)


def test_bfloat16_is_near_float32(tiny_model, probes):
    half = LoadOptions(device="cpu", dtype=torch.bfloat16, progress=False)
    states = measure([tiny_model("llama")], probes, options=half)
    exact = measure([tiny_model("llama")], probes)
    assert states.dtype == "bfloat16"
    error = np.linalg.norm(states.hidden.values[0] - exact.hidden.values[0])
    assert 0 < error < 0.05 * np.linalg.norm(exact.hidden.values[0])
