"""A model run layer by layer against transformers' own forward pass, number for number."""

import gc
import weakref
from dataclasses import replace
from types import MappingProxyType

import pytest
import tiny_models
import torch
import transformers
from mergekit.common import ModelReference
from safetensors.torch import load_file

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.tokens import TokenizedProbe
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.dry_forward import NotLayeredError
from mergekit_collapse.states.forward import forward, has_language_head
from mergekit_collapse.states.layered import LayeredModel
from mergekit_collapse.states.layered_agreement import agrees_by_stage, agrees_with_whole
from mergekit_collapse.states.loader import LoadOptions, each_model, read_config

pytestmark = pytest.mark.slow

FLOAT32 = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
BFLOAT16 = replace(FLOAT32, dtype=torch.bfloat16)
ARCHITECTURES = sorted(set(tiny_models.BUILDERS) - {"t5"})

PROMPTS = [
    ("Question: which planet is the largest in the solar system?", " Jupiter"),
    ("Two plus three is", ""),
    ("The film was wonderful, and the story moving. It is", " good"),
    ("def add(first, second): return", " first + second"),
    ("Où", ""),
]


@pytest.fixture(scope="module")
def probes(tiny_tokenizer):
    def ids(text, special):
        return tuple(tiny_tokenizer(text, add_special_tokens=special)["input_ids"])

    return [TokenizedProbe(ids(p, True), ids(t, False) if t else ()) for p, t in PROMPTS]


def batches_of(probes, *, answers=True, side="right", max_tokens=160):
    return make_batches(
        probes, answers=answers, decoder_start=None, max_tokens=max_tokens, side=side
    )


def whole_of(folder, options=FLOAT32):
    kept = []
    each_model([ModelReference.parse(str(folder))], options, lambda _, m: kept.append(m))
    return kept[0]


def config_of(folder):
    return read_config(ModelReference.parse(str(folder)), FLOAT32)


def layered_of(folder, batches, *, answers=True, options=FLOAT32):
    return LayeredModel(config_of(folder), options, "model x", batches, answers)


def staged(layered, tensors):
    """A checkpoint's tensors, stage by stage."""
    stages = [{} for _ in range(layered.depth + 2)]
    for name, tensor in tensors.items():
        for stage in layered.stages_of(name):
            stages[stage][name] = tensor
    return stages


def run(layered, tensors):
    """Per batch the states after every layer, the last raw, and the outputs."""
    stages = staged(layered, tensors)
    states = [[hidden] for _, hidden in layered.embed(stages[0])]
    for k in range(1, layered.depth + 1):
        for number, hidden in layered.layer(k, stages[k]):
            states[number].append(hidden)
    return states, [outputs for _, outputs in layered.head(stages[-1])]


@torch.inference_mode()
def by_transformers(model, batch):
    """The states after every layer by transformers alone, and the last layer's by a hook."""
    raw = []
    layers = next(
        m
        for m in model.base_model.modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) == tiny_models.LAYERS
    )
    hook = layers[-1].register_forward_hook(lambda *call: raw.append(call[-1]))
    more = {}
    if any(batch.inputs.starts):
        more["position_ids"] = batch.inputs.positions
    out = model.base_model(
        input_ids=batch.inputs.ids,
        attention_mask=batch.inputs.mask,
        output_hidden_states=True,
        use_cache=False,
        **more,
    )
    hook.remove()
    return [*out.hidden_states[:-1], raw[0]], out.last_hidden_state


@pytest.mark.filterwarnings("ignore:use_cache")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_state_is_that_of_transformers(tiny_model, probes, architecture, side):
    folder = tiny_model(architecture)
    whole = whole_of(folder)
    answers = has_language_head(whole)
    assert answers == (architecture != "bert")
    batches = batches_of(probes, answers=answers, side=side)
    assert len(batches) > 1
    assert any((b.inputs.mask == 0).any() for b in batches), "padding must be needed"
    layered = layered_of(folder, batches, answers=answers)
    tensors = load_file(folder / "model.safetensors")
    assert layered.missing(tensors) == []
    states, ends = run(layered, tensors)
    for batch, mine, end in zip(batches, states, ends, strict=True):
        theirs, last = by_transformers(whole, batch)
        assert len(mine) == len(theirs) == layered.depth + 1
        for hidden, due in zip(mine, theirs, strict=True):
            assert torch.equal(hidden, due)
        assert torch.equal(end.hidden[0], last)
        due = forward(whole, batch, (layered.depth,), layered.depth, answers)
        assert (end.answers is None) == (not answers)
        if answers:
            assert torch.equal(end.answers, due.answers)
            if len(end.answers) > 1:
                assert not torch.equal(end.answers[0], end.answers[-1])
    if answers:
        # They depend on what was read.
        assert not torch.equal(ends[0].answers[0], ends[-1].answers[-1])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_whole_models_agree(tiny_model, probes, architecture, options):
    folder = tiny_model(architecture)
    whole = whole_of(folder, options)
    answers = has_language_head(whole)
    for side in ("right", "left"):
        batch = batches_of(probes, answers=answers, side=side, max_tokens=1000)[0]
        assert agreement(whole, config_of(folder), options, batch) == {None}


def test_bfloat16_is_close_to_float32(tiny_model, probes):
    folder = tiny_model("llama")
    tensors = load_file(folder / "model.safetensors")
    batches = batches_of(probes)
    exact, _ = run(layered_of(folder, batches), tensors)
    rounded, ends = run(layered_of(folder, batches, options=BFLOAT16), tensors)
    for mine, theirs in zip(rounded, exact, strict=True):
        for hidden, due in zip(mine, theirs, strict=True):
            assert hidden.dtype == torch.bfloat16
            assert (hidden.float() - due).norm() < 0.03 * due.norm()
    assert ends[0].answers.dtype == torch.float32


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "bert"])
def test_names_need_no_prefix(tiny_model, probes, architecture):
    folder = tiny_model(architecture)
    tensors = load_file(folder / "model.safetensors")
    prefix = whole_of(folder).base_model_prefix + "."
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    answers = architecture != "bert"
    batches = batches_of(probes, answers=answers)
    one, other = (layered_of(folder, batches, answers=answers) for _ in range(2))
    assert other.missing(bare) == []
    states, _ = run(one, tensors)
    bare_states, _ = run(other, bare)
    assert torch.equal(states[0][-1], bare_states[0][-1])


def test_stages_are_told_apart(tiny_model, probes):
    gpt2 = layered_of(tiny_model("gpt2"), batches_of(probes))
    places = {
        # Its head shares the embeddings.
        "wte.weight": (0, 3),
        "transformer.wpe.weight": (0,),
        "h.0.ln_1.weight": (1,),
        "transformer.h.1.mlp.c_fc.bias": (2,),
        "ln_f.bias": (3,),
        "lm_head.weight": (3,),
        "h.2.ln_1.weight": (),
        "score.weight": (),
    }
    assert {name: gpt2.stages_of(name) for name in places} == places
    # The first norm of BERT is one of its embeddings'.
    bert = layered_of(tiny_model("bert"), batches_of(probes, answers=False), answers=False)
    assert bert.stages_of("bert.embeddings.LayerNorm.weight") == (0,)
    assert bert.stages_of("bert.embeddings.token_type_embeddings.weight") == (0,)
    assert bert.stages_of("cls.predictions.transform.dense.weight") == (3,)


def test_a_tied_head_is_not_missing_and_one_of_its_own_is(tiny_model, probes):
    batches = batches_of(probes)
    tied = load_file(tiny_model("qwen2") / "model.safetensors")
    assert "lm_head.weight" not in tied
    assert layered_of(tiny_model("qwen2"), batches).missing(tied) == []
    without = tied.keys() - {"model.norm.weight"}
    assert layered_of(tiny_model("qwen2"), batches).missing(without) == ["model.norm.weight"]
    untied = load_file(tiny_model("llama") / "model.safetensors")
    layered = layered_of(tiny_model("llama"), batches)
    assert layered.missing(untied.keys() - {"lm_head.weight"}) == ["lm_head.weight"]
    # The embeddings are no copy of a head, for they are wanted first.
    names = {*tied, "lm_head.weight"} - {"model.embed_tokens.weight"}
    found = layered_of(tiny_model("qwen2"), batches).missing(names)
    assert found == ["model.embed_tokens.weight"]


def test_a_head_that_is_given_counts_though_it_be_tied(tiny_model, probes):
    """As transformers has it: a head in the checkpoint that differs is not overwritten."""
    folder, batches = tiny_model("qwen2"), batches_of(probes)
    tensors = load_file(folder / "model.safetensors")
    _, ends = run(layered_of(folder, batches), tensors)
    same = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    other = {**tensors, "lm_head.weight": torch.zeros(tiny_models.VOCABULARY, tiny_models.HIDDEN)}
    assert torch.equal(run(layered_of(folder, batches), same)[1][0].answers, ends[0].answers)
    flat = run(layered_of(folder, batches), other)[1][0].answers
    torch.testing.assert_close(flat.exp(), torch.full_like(flat, 1 / tiny_models.VOCABULARY))


def test_a_tied_head_is_picked_under_one_name(tiny_model, probes):
    """Under two it would be two copies in another precision."""
    tensors = load_file(tiny_model("qwen2") / "model.safetensors")
    found = layered_of(tiny_model("qwen2"), batches_of(probes)).named(3, tensors)
    assert found.keys() == {"lm_head.weight", "model.norm.weight"}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_missing_tensor_is_named(tiny_model, probes, stage):
    layered = layered_of(tiny_model("llama"), batches_of(probes))
    stages = staged(layered, load_file(tiny_model("llama") / "model.safetensors"))
    gone = sorted(stages[stage])[0]
    del stages[stage][gone]
    with pytest.raises(EvaluationError, match=f"model x: the checkpoint lacks {gone}"):
        run(layered, {name: t for tensors in stages for name, t in tensors.items()})


def test_a_tensor_of_another_shape_is_named(tiny_model, probes):
    layered = layered_of(tiny_model("llama"), batches_of(probes))
    tensors = load_file(tiny_model("llama") / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name][:8]
    with pytest.raises(EvaluationError, match=rf"{name} has the shape \[8, 32\], not \[16, 32\]"):
        run(layered, tensors)


def test_a_tensor_under_two_names_is_refused(tiny_model, probes):
    layered = layered_of(tiny_model("gpt2"), batches_of(probes))
    tensors = load_file(tiny_model("gpt2") / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    with pytest.raises(EvaluationError, match="under two names"):
        layered.embed({**tensors, **bare})


def test_stages_come_in_order_and_are_used_up(tiny_model, probes):
    layered = layered_of(tiny_model("llama"), batches_of(probes))
    tensors = load_file(tiny_model("llama") / "model.safetensors")
    with pytest.raises(RuntimeError, match="stage 1 was asked for, but stage 0 is due"):
        layered.layer(1, tensors)
    begun = layered.embed(tensors)
    next(begun)
    with pytest.raises(RuntimeError, match="a stage that is not used up is due"):
        layered.layer(1, tensors)
    for _ in begun:
        pass
    for _ in layered.layer(1, tensors):
        pass
    with pytest.raises(RuntimeError, match="stage 3 was asked for, but stage 2 is due"):
        layered.head(tensors)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("options", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_no_tensor_outlives_its_stage(tiny_model, probes, architecture, options):
    folder = tiny_model(architecture)
    layered = layered_of(folder, batches_of(probes), options=options)
    stages = staged(layered, load_file(folder / "model.safetensors"))
    steps = [layered.embed, *[lambda t, k=k: layered.layer(k, t) for k in (1, 2)], layered.head]
    gc.disable()
    try:
        for stage, step in enumerate(steps):
            tensors = stages[stage]
            # A tied head is given the embeddings again at the end.
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            alive = {name: weakref.ref(tensor) for name, tensor in tensors.items()}
            for _ in step(tensors):
                pass
            del tensors
            assert not [name for name, reference in alive.items() if reference() is not None]
            assert all(p.is_meta for p in layered._skeleton.model.parameters())
    finally:
        gc.enable()


def test_an_encoder_decoder_is_refused(tiny_model, probes):
    with pytest.raises(NotLayeredError, match="encoder-decoder"):
        layered_of(tiny_model("t5"), batches_of(probes))
    whole = whole_of(tiny_model("t5"))
    reason = agrees_with_whole(
        whole, config_of(tiny_model("t5")), FLOAT32, "model x", batches_of(probes)
    )
    assert "encoder-decoder" in reason


def test_answers_need_a_head(tiny_model, probes):
    with pytest.raises(NotLayeredError, match="no head"):
        layered_of(tiny_model("bert"), batches_of(probes), answers=True)


def test_depth_is_not_guessed(tiny_model, probes):
    config = config_of(tiny_model("llama"))
    config.num_hidden_layers = 0
    with pytest.raises(NotLayeredError):
        LayeredModel(config, FLOAT32, "model x", batches_of(probes), True)


class BetweenLayers(transformers.LlamaForCausalLM):
    """Something happens to the state on the way from layer to layer."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))


class TupleLayers(transformers.LlamaForCausalLM):
    """Layers in the older manner, whose model takes the first item of what they return."""

    hands_on = False

    def __init__(self, config):
        super().__init__(config)
        self.model = TupleModel(config)
        self.model.hands_on = self.hands_on
        self.post_init()


class HandedOn(TupleLayers):
    """A layer reads what the one before it left beside the state, as T5's position bias."""

    hands_on = True


class TupleLayer(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    def forward(self, *args, **keywords):
        left = keywords.pop("left", None)
        hidden = super().forward(*args, **keywords)
        return hidden + (0 if left is None else left), hidden.mean(dim=-1, keepdim=True)


class TupleModel(transformers.LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        self.layers = torch.nn.ModuleList(
            TupleLayer(config, k) for k in range(config.num_hidden_layers)
        )

    def forward(self, input_ids, attention_mask=None, position_ids=None, **_keywords):
        hidden = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1])[None]
        mask = transformers.masking_utils.create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        )
        rotations = self.rotary_emb(hidden, position_ids=position_ids)
        every, more = [hidden], {}
        for layer in self.layers:
            output = layer(
                hidden_states=hidden, attention_mask=mask, position_embeddings=rotations, **more
            )
            hidden = output[0]
            if self.hands_on and len(output) > 1:
                more = {"left": output[1]}
            every.append(hidden)
        hidden = every[-1] = self.norm(hidden)
        return transformers.modeling_outputs.BaseModelOutputWithPast(
            last_hidden_state=hidden, hidden_states=tuple(every)
        )


class RememberingLayer(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    def forward(self, *args, **keywords):
        hidden = super().forward(*args, **keywords)
        hidden, self.left[:] = hidden + sum(self.left), [hidden.mean()]
        return hidden


class Remembers(transformers.LlamaForCausalLM):
    """A layer reads what the one before it left in the model."""

    def __init__(self, config):
        super().__init__(config)
        layers = [RememberingLayer(config, k) for k in range(config.num_hidden_layers)]
        self.model.layers = torch.nn.ModuleList(layers)
        left = []
        for layer in layers:
            layer.left = left
        self.model.register_forward_pre_hook(lambda *_call: left.clear())
        self.post_init()


class SharedLayers(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1] = self.model.layers[0]


class TiedTensors(transformers.LlamaForCausalLM):
    _tied_weights_keys = MappingProxyType(
        {"model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"}
    )


def with_another(batch):
    """What a model is tried on: a batch, and another of other tokens in another number."""
    ids, mask = (torch.cat([t[:, :1], t.flip(1)], 1) for t in (batch.inputs.ids, batch.inputs.mask))
    inputs = replace(batch.inputs, ids=ids, mask=torch.ones_like(mask))
    return [batch, replace(batch, inputs=inputs)]


def agreement(whole, config, options, batch):
    """Why a model is not run by layers: with its weights in memory, and without."""
    answers, loads, batches = has_language_head(whole), [], with_another(batch)
    reasons = {agrees_with_whole(whole, config, options, "model x", batches)}

    def load(stage):
        loads.append(stage)
        return whole.state_dict()

    try:
        layered = LayeredModel(config, options, "model x", [batch], answers)
    except NotLayeredError as error:
        return {*reasons, str(error)}
    reasons.add(agrees_by_stage(layered, load, batches, answers, options))
    if reasons == {None}:
        assert loads == list(range(layered.depth + 2))
    return reasons


def custom(monkeypatch, probes, tiny_model, model_type, **changed):
    """The whole of such a class, and the reasons why it is not run by layers."""
    monkeypatch.setattr(transformers, model_type.__name__, model_type, raising=False)
    config = config_of(tiny_model("llama"))
    config.architectures = [model_type.__name__]
    for name, value in changed.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = model_type(config).eval()
    return whole, agreement(whole, config, FLOAT32, batches_of(probes, max_tokens=1000)[0])


def test_states_that_change_between_layers_are_refused(monkeypatch, probes, tiny_model):
    _, reasons = custom(monkeypatch, probes, tiny_model, BetweenLayers)
    assert reasons == {"it changes the state between layers 1 and 2"}


def test_what_layers_hand_on_beside_their_states_is_found_out(monkeypatch, probes, tiny_model):
    _, reasons = custom(monkeypatch, probes, tiny_model, HandedOn)
    assert reasons == {"its states after the last layer differ from those of the whole model"}


def test_what_layers_leave_in_the_model_is_found_out(monkeypatch, probes, tiny_model):
    _, reasons = custom(monkeypatch, probes, tiny_model, Remembers)
    assert all("differ from those of the whole" in str(reason) for reason in reasons)


@pytest.mark.parametrize(
    ("method", "due"),
    [("embed", "embeddings"), ("layer", "states after layer 1"), ("head", "answers")],
)
def test_each_number_is_compared(monkeypatch, probes, tiny_model, method, due):
    run = getattr(LayeredModel, method)

    def changed(self, *given):
        for number, found in run(self, *given):
            if method == "head":
                yield number, replace(found, answers=found.answers + 1e-6)
            else:
                yield number, found + 1e-6

    monkeypatch.setattr(LayeredModel, method, changed)
    whole, config = whole_of(tiny_model("llama")), config_of(tiny_model("llama"))
    reasons = agreement(whole, config, FLOAT32, batches_of(probes)[0])
    assert reasons == {f"its {due} differ from those of the whole model"}


def test_weights_that_cannot_be_read_end_the_trial_and_are_let_go(probes, tiny_model):
    """At once, and not when the next collection comes: they hold files open."""
    whole, batch = whole_of(tiny_model("llama")), batches_of(probes)[0]
    layered = LayeredModel(config_of(tiny_model("llama")), FLOAT32, "model x", [batch], True)
    last = layered.depth + 1
    gc.disable()
    try:
        for broken in range(last + 2):
            given = []

            def load(stage, broken=broken, given=given):
                if stage == broken:
                    raise EvaluationError("unreadable") from OSError(5, "EIO")
                tensors = {name: t.clone() for name, t in whole.state_dict().items()}
                given.extend(map(weakref.ref, tensors.values()))
                return tensors

            if broken <= last:
                with pytest.raises(EvaluationError, match="unreadable"):
                    agrees_by_stage(layered, load, [batch], True, FLOAT32)
            else:
                assert agrees_by_stage(layered, load, [batch], True, FLOAT32) is None
            assert not [one for one in given if one() is not None]
    finally:
        gc.enable()


def test_outputs_that_config_json_asks_for_are_not_collected(probes, tiny_model):
    config = config_of(tiny_model("llama"))
    config.output_hidden_states = True
    whole, batch = whole_of(tiny_model("llama")), batches_of(probes)[0]
    assert agreement(whole, config, FLOAT32, batch) == {None}
    assert config.output_hidden_states


def test_layers_may_return_tuples(monkeypatch, probes, tiny_model):
    for layers in (2, 1):
        whole, reasons = custom(
            monkeypatch, probes, tiny_model, TupleLayers, num_hidden_layers=layers
        )
        assert reasons == {None}
        assert len(whole.model.layers) == layers


@pytest.mark.parametrize(
    ("model_type", "due"),
    [(SharedLayers, "not modules of their own"), (TiedTensors, "a layer shares a tensor")],
)
def test_layers_that_share_tensors_are_refused(monkeypatch, probes, tiny_model, model_type, due):
    _, reasons = custom(monkeypatch, probes, tiny_model, model_type, tie_word_embeddings=True)
    assert all(due in str(reason) for reason in reasons)


def test_a_nan_never_agrees(tiny_model, probes):
    for options in (FLOAT32, BFLOAT16):
        whole = whole_of(tiny_model("llama"), options)
        with torch.no_grad():
            whole.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        batch = batches_of(probes)[0]
        config = config_of(tiny_model("llama"))
        with pytest.raises(EvaluationError, match="states after the last layer are NaN"):
            agreement(whole, config, options, batch)


def test_tokens_beyond_the_configured_vocabulary_are_no_obstacle_to_building(tiny_model, probes):
    """A recipe with a tokenizer of its own decides on the vocabulary as the merge runs."""
    config = config_of(tiny_model("qwen2"))
    config.vocab_size = 8
    layered = LayeredModel(config, FLOAT32, "model x", batches_of(probes), True)
    tensors = load_file(tiny_model("qwen2") / "model.safetensors")
    assert layered.vocabulary_of(tensors) == tiny_models.VOCABULARY
    assert layered.vocabulary_of({"model.norm.weight": tensors["model.norm.weight"]}) is None
    with pytest.raises(EvaluationError, match=r"embed_tokens.weight has the shape \[384, 32\]"):
        layered.embed(tensors)
    bert = layered_of(tiny_model("bert"), batches_of(probes, answers=False), answers=False)
    assert bert.vocabulary_of(load_file(tiny_model("bert") / "model.safetensors")) == 384
