"""The preflight says everything that is wrong with a recipe, before any weight is read."""

import json
import os

import pytest
from mergekit.common import ModelReference
from preflight_models import LLAMA, byte_tokenizer, llama_shapes, write_adapter, write_model

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.preflight.preflight import PreflightRequest, check_models
from mergekit_collapse.recipe.groups import Group, Source, identity


def refs(*paths):
    return tuple(ModelReference.parse(str(path)) for path in paths)


def request(*paths, method="linear", base=None, ranges=None, **options):
    models = refs(*paths)
    base = None if base is None else refs(base)[0]
    experts = tuple(m for m in models if m != base or method == "slerp")
    if ranges is None and base not in (None, *models):
        models = (*models, base)  # as a recipe adds it, in this form only
    group = Group(
        label="models" if ranges is None else "slices[0]",
        sources=tuple(Source(model, {}) for model in models),
        base=base,
        layers=None if ranges is None else ranges[0][1] - ranges[0][0],
        layer_ranges=ranges,
        settings=(),
    )
    return PreflightRequest(method, (group,), experts, base, **options)


def check(*paths, **options):
    return check_models(request(*paths, **options))


def messages(findings):
    return [str(f) for f in findings]


def only(findings):
    (found,) = findings
    return str(found)


@pytest.fixture
def pair(tmp_path):
    """Make two models, the second with the changes given."""

    def make(**changes):
        return write_model(tmp_path / "one"), write_model(tmp_path / "two", **changes)

    return make


def test_equal_models_pass(pair):
    seen = check(*pair())
    assert seen.findings == ()
    assert [f.layers for f in seen.facts.values()] == [2, 2]
    seen.raise_errors()


@pytest.mark.parametrize(
    ("method", "inputs", "base", "said"),
    [
        ("slrep", 2, None, "did you mean slerp?"),
        ("task-arithmetic", 2, None, "did you mean task_arithmetic?"),
        ("slerp", 3, 0, "requires exactly 2 inputs; got 3"),
        ("slerp", 2, None, "requires a base input"),
        ("task_arithmetic", 2, None, "requires a base input"),
        ("ties", 2, None, "ties takes at least 1 model, the base included, and needs base_model"),
        ("model_stock", 2, 0, "requires at least 3 inputs; got 2"),
        ("nuslerp", 3, None, "requires exactly 2 non-base inputs; got 3"),
        ("passthrough", 2, None, "requires exactly 1 inputs; got 2"),
        ("linear", 1, None, "models: merges one expert only, so there"),
        ("task_arithmetic", 2, 0, "models: merges one expert only, besides its base"),
    ],
)
def test_rules_of_methods(tmp_path, method, inputs, base, said):
    paths = [write_model(tmp_path / str(i)) for i in range(inputs)]
    seen = check(*paths, method=method, base=None if base is None else paths[base])
    assert said in only(seen.errors)
    with pytest.raises(InvalidRecipeError):
        seen.raise_errors()


def test_recipes_within_the_rules(tmp_path):
    one, two, three = (write_model(tmp_path / str(i)) for i in range(3))
    assert check(one, two, method="slerp", base=one).findings == ()
    assert check(one, two, method="slerp", base=one, ranges=((0, 2), (0, 2))).findings == ()
    assert check(one, two, method="task_arithmetic", base=three).findings == ()
    assert check(one, two, method="model_stock", base=three).findings == ()
    assert check(one, method="passthrough").findings == ()
    assert check(one, method="passthrough", ranges=((0, 1),)).findings == ()


def test_only_the_models_form_adds_a_base(tmp_path):
    one, two, base = (write_model(tmp_path / str(i)) for i in range(3))
    seen = check(one, two, method="ties", base=base, ranges=((0, 2), (0, 2)))
    assert "Base input is not present in merge inputs" in only(seen.errors)
    assert "in slices must be one of the sources" in only(seen.errors)


def test_one_model_twice(pair, monkeypatch, tmp_path):
    one, two = pair()
    assert "stands twice" in only(check(one, two, one).errors)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(two)
    for spelling in ("./two/", str(two), "one/../two", "link"):
        said = only(check("one", "two", spelling).errors)
        assert f"{spelling} is the same model as two" in said
    # MergeKit takes another spelling of the base for one more model, and adds the base again.
    said = only(check("one", "two", method="task_arithmetic", base="./two").errors)
    assert "./two is the same model as two" in said
    assert all(f.invalid_recipe for f in check("one", "two", "./two").errors)
    main, plain = refs("some/hub-model@main", "some/hub-model")
    assert identity(main) == identity(plain)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        (((0, 3), (0, 3)), "layer_range [0, 3] goes past the 2 layers of"),
        (((0, 2), (0, 1)), "its sources have 1 and 2 layers"),
        (((1, 1), (0, 1)), "holds no layer"),
        (((-1, 1), (0, 2)), "holds no layer"),
    ],
)
def test_layer_ranges(pair, ranges, said):
    seen = check(*pair(), ranges=ranges)
    assert said in messages(seen.errors)[0]
    with pytest.raises(InvalidRecipeError):
        seen.raise_errors()


def test_depths(pair):
    one, two = pair(num_hidden_layers=3)
    said = only(check(one, two).errors)
    assert f"{two}: has 3 layers, but {one} 2" in said
    assert check(one, two, ranges=((0, 2), (1, 3))).errors == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 16}, "hidden size is 16, but 8 in"),
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, "attention heads is 4, but 2 in"),
        ({"num_key_value_heads": 1}, "key/value heads is 1, but 2 in"),
        ({"intermediate_size": 32}, "intermediate size is 32, but 16 in"),
    ],
)
def test_sizes(pair, change, said):
    seen = check(*pair(**change))
    assert any(said in m for m in messages(seen.errors))
    with pytest.raises(EvaluationError):
        seen.raise_errors()


def test_architectures(pair):
    one, two = pair(architectures=["MistralForCausalLM"], model_type="mistral")
    said = only(check(one, two).errors)
    assert "the architecture is MistralForCausalLM, but LlamaForCausalLM in" in said
    crimes = check(one, two, allow_crimes=True)
    assert crimes.errors == ()
    assert "the architecture is" in messages(crimes.warnings)[0]


def test_vocabularies(pair):
    one, two = pair(vocab_size=272)
    assert "embedding rows is 272, but 260 in" in only(check(one, two).errors)
    for option in ("tokenizer_configured", "unsafe_truncate_embeddings"):
        seen = check(one, two, **{option: True})
        assert seen.errors == ()
        assert "embedding rows" in only(seen.warnings)


def test_config_against_embedding(pair):
    one, two = pair()
    (two / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 300}))
    assert "says vocab_size 300, but the embedding has 260 rows" in only(check(one, two).errors)


def test_tokenizer_against_embedding(tmp_path):
    paths = [write_model(tmp_path / n, vocab_size=259) for n in "xy"]
    found = messages(check(*paths).errors)
    assert len(found) == 2
    assert "gives ids up to 259, but the embedding has 259 rows" in found[0]


def test_added_tokens_past_the_embedding(tmp_path):
    large = byte_tokenizer(added=["<a>", "<b>"])
    paths = [write_model(tmp_path / n, tokenizer=large) for n in "xy"]
    seen = check(*paths)
    assert seen.errors == ()
    assert "but the embedding has 260 rows, none left for '<a>', '<b>'" in str(seen.warnings[0])


def test_tokenizers(pair):
    one, two = pair(tokenizer=byte_tokenizer(swap=("q", "z")))
    assert "the same text gives different ids: 'The quick" in only(check(one, two).errors)
    # Aligning rows does not make text the same.
    assert len(check(one, two, tokenizer_configured=True).errors) == 1


def test_missing_tokenizers(tmp_path):
    one, two = (write_model(tmp_path / n, tokenizer=None) for n in "xy")
    assert "no model of the recipe has one" in only(check(one, two).errors)
    byte_tokenizer().save_pretrained(one)
    seen = check(one, two)
    assert seen.errors == ()
    assert f"{two}: has no tokenizer" in only(seen.warnings)


def test_missing_tensors(pair):
    lost = "model.layers.1.mlp.up_proj.weight"
    one, two = pair(without=[lost])
    said = only(check(one, two).errors)
    assert (
        f"{two}: lacks 1 of the tensors that MergeKit needs for a LlamaForCausalLM: {lost}" in said
    )


def test_tensors_that_mergekit_leaves_out(pair):
    bias = "model.layers.0.self_attn.q_proj.bias"
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    seen = check(*pair(extra={bias: [8], buffer: [4]}))
    assert seen.errors == ()
    said = only(seen.warnings)
    assert "MergeKit leaves 1 of its tensors out" in said
    assert bias in said


def test_tied_embeddings_need_no_head(tmp_path):
    one, two = (write_model(tmp_path / n, tie_word_embeddings=True) for n in "xy")
    assert check(one, two).findings == ()
    untied = write_model(tmp_path / "untied")
    assert "tie_word_embeddings is False, but True in" in only(check(one, untied).findings)


def test_optional_tensors_that_the_base_lacks(tmp_path):
    """MergeKit stops in the middle of a merge where only some models have the head."""
    config = {"architectures": ["LlamaForSequenceClassification"], "tie_word_embeddings": True}
    one, two = (write_model(tmp_path / n, extra={"score.weight": [2, 8]}, **config) for n in "xy")
    base = write_model(tmp_path / "base", **config)
    found = messages(check(one, two, method="task_arithmetic", base=base).errors)
    assert any("score.weight" in m for m in found), found


def test_architecture_without_definition(tmp_path):
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "ffn_dim": 16,
        "max_position_embeddings": 8,
        "word_embed_proj_dim": 8,
    }
    one = write_model(tmp_path / "one", **config)
    two = write_model(tmp_path / "two", without=["model.norm.weight"], **config)
    said = only(check(one, two).errors)
    assert f"{two}: lacks 1 tensors that the other models have: model.norm.weight" in said


def test_shapes(pair):
    name = "model.layers.0.mlp.up_proj.weight"
    said = only(check(*pair(extra={name: [16, 9]})).errors)
    assert f"{name} [16, 9] (there [16, 8])" in said


def test_dtypes(pair):
    one, two = pair(dtype="BF16")
    assert "the dtype is BF16, but F32 in" in only(check(one, two).findings)
    assert check(one, two, dtype="float16").findings == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": 500000.0}, "rope_parameters.rope_theta 500000.0 (there 10000.0)"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05 (there 1e-06)"),
        ({"hidden_act": "gelu"}, "hidden_act gelu (there silu)"),
    ],
)
def test_settings(pair, change, said):
    assert said in only(check(*pair(**change)).warnings)


def test_settings_that_change_nothing(pair):
    changes = {"use_cache": False, "eos_token_id": 7, "attention_dropout": 0.1}
    assert check(*pair(transformers_version="4.0.0", **changes)).findings == ()


def test_chat_templates(tmp_path):
    paths = [
        write_model(tmp_path / t, tokenizer=byte_tokenizer(chat_template=t)) for t in ("a", "b")
    ]
    assert "its chat template differs" in only(check(*paths).findings)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_models(pair, method):
    said = only(check(*pair(quantization_config={"quant_method": method})).errors)
    assert f"is quantised ({method})" in said


def test_quantised_without_saying_so(pair):
    assert "is quantised (U8)" in messages(check(*pair(dtype="U8")).errors)[0]


def test_adapters(tmp_path):
    base, other = write_model(tmp_path / "base"), write_model(tmp_path / "other")
    one, two = (write_adapter(tmp_path / n, base) for n in ("a", "b"))
    assert check(f"{base}+{one}", f"{base}+{two}").findings == ()
    said = only(check(f"{base}+{one}", f"{other}+{two}").findings)
    assert f"the adapter was trained on {base}, and its shapes fit {other}" in said
    wide = write_adapter(tmp_path / "wide", "org/another", wide=16)
    found = check(f"{base}+{one}", f"{base}+{wide}").errors
    assert "does not fit its base: model.layers.0.self_attn.q_proj.weight is 8x16" in only(found)
    assert "it was trained on org/another" in only(found)


def test_an_adapter_knows_its_base_by_another_name(tmp_path):
    base = write_model(tmp_path / "base", _name_or_path="org/model")
    one, two = (write_adapter(tmp_path / n, "org/model") for n in ("a", "b"))
    assert check(f"{base}+{one}", f"{base}+{two}").findings == ()


def test_adapter_of_layers_that_the_base_lacks(tmp_path):
    base = write_model(tmp_path / "base", num_hidden_layers=1)
    one, two = (write_adapter(tmp_path / n, base) for n in ("a", "b"))
    found = messages(check(f"{base}+{one}", f"{base}+{two}").errors)
    assert "model.layers.1.self_attn.q_proj.weight is not in the base" in found[0]


def test_adapters_need_a_folder(tmp_path):
    base = write_model(tmp_path / "base")
    one, two = (f"{base}+{write_adapter(tmp_path / n, base)}" for n in ("a", "b"))
    seen = check(one, two, adapters_can_be_merged=False)
    assert "one of 2, and MergeKit has no folder to merge it in" in only(seen.errors)
    with pytest.raises(InvalidRecipeError, match="--lora-merge-cache"):
        seen.raise_errors()


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2"]
)
def test_real_checkpoints_pass(tiny_model, architecture):
    """What transformers saves of these is what MergeKit's definitions ask for."""
    seen = check(tiny_model(architecture, 0), tiny_model(architecture, 1))
    assert seen.errors == ()
    facts = next(iter(seen.facts.values()))
    assert facts.weights is not None
    assert facts.embedding_rows == facts.vocab_size


@pytest.mark.parametrize(
    ("architecture", "lost"),
    [("bert", "bert.pooler.dense.weight"), ("t5", "DenseReluDense.wi_0.weight")],
)
def test_checkpoints_that_mergekit_cannot_merge(tiny_model, architecture, lost):
    """MergeKit 0.1.5 asks for tensors that these do not have, and stops in the merge."""
    found = messages(check(tiny_model(architecture, 0), tiny_model(architecture, 1)).errors)
    assert len(found) == 2
    assert all(lost in message for message in found)


def test_all_errors_in_one_message(pair, tmp_path):
    one, two = pair()
    os.truncate(two / "model.safetensors", 5000)
    absent = tmp_path / "absent"
    seen = check(one, two, absent)
    with pytest.raises(EvaluationError) as caught:
        seen.raise_errors()
    said = str(caught.value)
    assert said.startswith("2 errors:\n  - ")
    assert "is truncated" in said
    assert f"{absent}" in said
    assert list(seen.facts) == list(refs(one))
    # A wrong recipe is what must be mended first, whatever else is wrong.
    with pytest.raises(InvalidRecipeError) as caught:
        check(one, absent, method="slrep").raise_errors()
    assert "there is no such folder" in str(caught.value)


def test_every_finding_says_what_to_do(pair):
    seen = check(*pair(hidden_size=16, num_hidden_layers=3, dtype="U8", rms_norm_eps=0.5))
    assert len(seen.findings) >= 4
    assert all(f.advice and f.message and f.subject for f in seen.findings)
    kinds = [f.severity for f in seen.findings]
    assert kinds == sorted(kinds)


@pytest.mark.timeout(60)
def test_huge_models_take_no_time(tmp_path):
    """Sixteen models of 70 billion parameters, of which only the headers are there."""
    size = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    config = LLAMA | size | {"num_attention_heads": 64, "num_key_value_heads": 8}
    assert len(llama_shapes(config)) == 723
    config |= {"vocab_size": 128256}
    paths = [write_model(tmp_path / str(i), **config) for i in range(16)]
    assert check(*paths).findings == ()


def test_names_from_files_cannot_steer_the_terminal(pair):
    seen = check(*pair(extra={"\x1b[2J\ud800evil": [1]}))
    assert "\\x1b[2J\\ud800evil" in only(seen.warnings)
