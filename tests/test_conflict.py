"""Conflict of task vectors: its formulas, and the streamed weights against whole models."""

import json
import math
import shutil
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers
from mergekit.common import ModelReference
from safetensors.torch import load_file, save_file

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.parameters.conflict import READINGS, ConflictSums
from mergekit_collapse.parameters.conflict_document import conflict_document, conflict_text
from mergekit_collapse.parameters.parameter_conflict import base_of, parameter_conflict

pytestmark = pytest.mark.slow


def vectors(experts=4, elements=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(experts, elements, generator=generator, dtype=torch.float64)


def conflict(rows, chunk=10**9):
    sums = ConflictSums(len(rows))
    for start in range(0, rows.shape[1], chunk):
        sums.add(rows[:, start : start + chunk])
    return sums.result("base", tuple(f"expert {i}" for i in range(len(rows))), 1)


def oracle(rows):
    """The formulas of the docstring, pair by pair on whole vectors."""
    count = len(rows)
    found = {name: np.empty((count, count)) for name in READINGS}
    for i, one in enumerate(np.asarray(rows)):
        for j, two in enumerate(np.asarray(rows)):
            a, b, clash = abs(one), abs(two), one * two < 0
            values = (
                1 - np.minimum(a, b).sum() / np.maximum(a, b).sum(),
                clash.sum() / ((one != 0) | (two != 0)).sum(),
                (a + b)[clash].sum() / (a + b).sum(),
                one @ two / math.sqrt((one @ one) * (two @ two)),
            )
            for name, value in zip(READINGS, values, strict=True):
                found[name][i, j] = value
    return found


def assert_same(found, expected, **tolerance):
    for name in READINGS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), err_msg=name, **tolerance
        )


# Mathematics


def test_the_formulas_pair_by_pair():
    rows = vectors()
    rows[0, :100], rows[1, 50:200], rows[2, ::3] = 0, 0, 0
    found = conflict(rows)
    for name, expected in oracle(rows).items():
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.norm, rows.norm(dim=1), rtol=1e-12)
    np.testing.assert_allclose(found.changed, (rows != 0).double().mean(dim=1), rtol=1e-12)


def test_by_hand():
    found = conflict(torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64))
    assert found.mean("sign_change_ratio") == 0.5
    assert found.mean("conflicting_magnitude_change_ratio") == pytest.approx(2 / 3)
    assert found.mean("magnitude_change_ratio") == 0.5
    assert found.mean_cosine == pytest.approx(-1 / math.sqrt(2))


@pytest.mark.parametrize("seed", range(5))
def test_bounds_and_symmetry(seed):
    rows = vectors(seed=seed) * 10.0 ** torch.arange(-6, 6, 3, dtype=torch.float64)[:, None]
    found = conflict(rows)
    for name in READINGS:
        values = getattr(found, name)
        assert (values == values.T).all(), name
        assert (values <= 1).all()
        assert (values >= (-1 if name == "cosine" else 0)).all()
        assert (np.diag(values) == (name == "cosine")).all()


@pytest.mark.parametrize(("factor", "expected"), [(1.0, (0, 0, 0, 1)), (-1.0, (0, 1, 1, -1))])
def test_the_same_and_the_opposite_task_vector(factor, expected):
    one = vectors(1)
    found = conflict(torch.cat([one, factor * one]))
    for name, value in zip(READINGS, expected, strict=True):
        assert found.mean(name) == pytest.approx(value, abs=1e-12), name


def test_unrelated_task_vectors():
    found = conflict(vectors(2, 400_000))
    assert found.mean("sign_change_ratio") == pytest.approx(0.5, abs=0.005)
    assert found.mean("conflicting_magnitude_change_ratio") == pytest.approx(0.5, abs=0.005)
    assert found.mean_cosine == pytest.approx(0, abs=0.01)
    # E min / E max of two half-normals is (√2 − 1)/1.
    assert found.mean("magnitude_change_ratio") == pytest.approx(2 - math.sqrt(2), abs=0.005)


def test_invariance_under_scaling():
    rows = vectors()
    assert_same(conflict(1e-3 * rows), conflict(rows), rtol=1e-9, atol=1e-12)
    own = conflict(torch.tensor([[1.0], [2.0], [0.5], [9.0]], dtype=torch.float64) * rows)
    for name in ("sign_change_ratio", "cosine"):
        np.testing.assert_allclose(getattr(own, name), getattr(conflict(rows), name), atol=1e-12)
    assert not np.allclose(own.magnitude_change_ratio, conflict(rows).magnitude_change_ratio)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_chunks_do_not_matter(chunk):
    assert_same(conflict(vectors(3, 500), chunk), conflict(vectors(3, 500)), atol=1e-12)


def test_frozen_elements_change_only_their_share():
    rows = vectors(elements=1000)
    frozen = torch.cat([rows, torch.zeros(4, 1000, dtype=torch.float64)], dim=1)
    assert_same(conflict(frozen), conflict(rows), atol=1e-12)
    np.testing.assert_allclose(conflict(frozen).changed, 0.5)
    skipped = ConflictSums(4)
    skipped.skip(1000)
    skipped.add(rows)
    assert (skipped.result("b", tuple("wxyz"), 2).changed == conflict(frozen).changed).all()


def test_the_base_among_the_experts():
    rows = vectors(3)
    rows[1] = 0
    found = conflict(rows)
    assert np.isnan(found.cosine[1]).all()
    assert np.isfinite(found.cosine[0, 2])
    assert found.sign_change_ratio[0, 1] == 0
    document = json.loads(json.dumps(conflict_document(found), allow_nan=False))
    assert document["cosine"][0][1] is document["mean_cosine"] is None
    for key in ("cosine_reason", "mean_cosine_reason"):
        assert document[key] == "no parameter of expert 1 differs from the base base"
    assert "mean_sign_change_ratio_reason" not in document
    assert "undefined: no parameter of expert 1" in conflict_text(found)


def test_one_expert_makes_no_pair():
    document = conflict_document(conflict(vectors(1)))
    assert document["mean_cosine"] is None
    assert document["mean_cosine_reason"] == "one expert makes no pair"
    assert document["cosine"] == [[1.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_what_is_not_finite_has_no_readings(bad):
    rows = vectors(2)
    rows[1, 3] = bad
    with pytest.raises(EvaluationError, match="expert 0, expert 1 are not finite, or too large"):
        conflict(rows)


def test_text_gives_mean_and_range():
    lines = conflict_text(conflict(vectors(3))).splitlines()
    assert lines[0] == "parameter conflict of 3 experts, over the 5,000 parameters of base"
    assert len(lines) == 5
    assert "sign change ratio" in lines[2]
    assert lines[2].endswith("; unrelated: .5)")


# Weights


def measured(*references, base, **options):
    parsed = [ModelReference.parse(str(r)) for r in references]
    names = [f"e{i}" for i in range(len(parsed))]
    base = ModelReference.parse(str(base))
    return parameter_conflict(parsed, names, base, progress=False, **options)


def task_vector(model, base):
    """Of two checkpoints with the same names, in one piece."""
    one, two = load_file(model / "model.safetensors"), load_file(base / "model.safetensors")
    return torch.cat([(one[n].double() - two[n].double()).flatten() for n in sorted(two)])


def edited(folder, target, change, file="model.safetensors"):
    shutil.copytree(folder, target)
    tensors = load_file(target / file)
    change(tensors)
    save_file(tensors, target / file, metadata={"format": "pt"})
    return target


def make_adapter(base, folder, seed=0, **config):
    """A LoRA with random weights in both factors, saved by PEFT itself."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], **config}
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(folder)
    return folder


def merged(base, adapter, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chunk", [50, 2**15])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "bert", "t5"])
def test_checkpoints_as_whole_vectors(tiny_model, variant, architecture, chunk):
    base = tiny_model(architecture)
    experts = [variant(base, 0.1, seed) for seed in (1, 2, 3)]
    found = measured(*experts, base=base, chunk=chunk)
    rows = torch.stack([task_vector(expert, base) for expert in experts])
    assert found.elements == rows.shape[1]
    assert_same(found, conflict(rows), atol=1e-12)
    assert not found.notes
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("llama", {"lora_alpha": 32}),
        ("llama", {"use_rslora": True, "r": 9}),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v": 1}}),
        ("llama", {"alpha_pattern": {"layers.1.self_attn.v_proj": 64, "q_proj": 1}}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head", "up_proj"]}),
        ("qwen2", {"bias": "lora_only"}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "bias": "all"}),
    ],
)
def test_adapters_as_merged_models(tiny_model, tmp_path, architecture, config):
    base = tiny_model(architecture)
    adapters = [make_adapter(base, tmp_path / f"a{s}", s, **config) for s in (1, 2)]
    wholes = [merged(base, a, tmp_path / f"m{s}") for s, a in enumerate(adapters)]
    streamed = measured(*(f"{base}+{a}" for a in adapters), base=base)
    # θ + τ − θ in float32 is off by rounding, also where τ is 0.
    expected = measured(*wholes, base=base)
    for name in ("magnitude_change_ratio", "conflicting_magnitude_change_ratio", "cosine"):
        np.testing.assert_allclose(
            getattr(streamed, name), getattr(expected, name), atol=2e-5, err_msg=name
        )
    np.testing.assert_allclose(streamed.norm, expected.norm, rtol=1e-5)
    np.testing.assert_allclose(streamed.sign_change_ratio, expected.sign_change_ratio, atol=2e-3)
    assert streamed.elements == expected.elements


def test_an_adapter_on_another_model_than_the_base(tiny_model, variant, tmp_path):
    base, other = tiny_model("llama"), variant(tiny_model("llama"), 0.1, 1)
    adapter = make_adapter(other, tmp_path / "a", 1)
    whole = merged(other, adapter, tmp_path / "m")
    pair = variant(base, 0.1, 2)
    assert_same(
        measured(f"{other}+{adapter}", pair, base=base), measured(whole, pair, base=base), atol=1e-4
    )


def test_the_adapter_of_the_base_is_taken_off(tiny_model, tmp_path):
    base = tiny_model("llama")
    one, two = (make_adapter(base, tmp_path / f"a{s}", s) for s in (1, 2))
    found = measured(f"{base}+{one}", f"{base}+{two}", base=f"{base}+{one}")
    assert found.norm[0] == 0
    assert found.norm[1] > 0


def test_bfloat16(tiny_model, variant, tmp_path):
    def halve(tensors):
        tensors.update({n: t.bfloat16() for n, t in tensors.items()})

    base = edited(tiny_model("llama"), tmp_path / "base", halve)
    experts = [
        edited(variant(tiny_model("llama"), 0.01, s), tmp_path / str(s), halve) for s in (1, 2)
    ]
    rows = torch.stack([task_vector(expert, base) for expert in experts])
    found = measured(*experts, base=base)
    assert_same(found, conflict(rows), atol=1e-12)
    # Small steps are lost in rounding: not every parameter differs any more.
    assert (found.changed < 1).all()


def test_pickled_weights_are_read_without_running_them(tiny_model, variant, tmp_path):
    base, expert = tiny_model("llama"), variant(tiny_model("llama"), 0.1, 1)
    pickled = shutil.copytree(expert, tmp_path / "pickled")
    tensors = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(tensors, pickled / "pytorch_model.bin")
    assert measured(expert, pickled, base=base).mean_cosine == pytest.approx(1)
    torch.save({"x": print}, pickled / "pytorch_model.bin")
    with pytest.raises(EvaluationError, match="could run code"):
        measured(expert, pickled, base=base)


def test_nan_is_named(tiny_model, variant, tmp_path):
    base = tiny_model("llama")
    broken = edited(base, tmp_path / "x", lambda t: t["model.norm.weight"].fill_(math.nan))
    for models in ((broken, variant(base, 0.1, 1)), (variant(base, 0.1, 1), broken)):
        with pytest.raises(EvaluationError, match=r"/x: NaN or infinite .* model.norm.weight"):
            measured(*models, base=base)
    adapter = make_adapter(base, tmp_path / "a")
    file, key = "adapter_model.safetensors", "base_model.model.model.layers.0.self_attn.q_proj"
    bad = edited(adapter, tmp_path / "b", lambda t: t[f"{key}.lora_B.weight"].fill_(math.inf), file)
    with pytest.raises(EvaluationError, match=r"NaN or infinite .*layers.0.*q_proj.*lora_B"):
        measured(f"{base}+{bad}", f"{base}+{adapter}", base=base)


def test_a_head_that_is_tied_in_one_model_is_left_out(tiny_model, variant, tmp_path):
    base, expert = tiny_model("qwen2"), variant(tiny_model("qwen2"), 0.1, 1)

    def untie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    untied = edited(expert, tmp_path / "untied", untie)
    found = measured(expert, untied, base=base)
    assert found.mean_cosine == pytest.approx(1)
    assert found.notes == ("left out, since not all models have them: lm_head.weight",)
    assert "note: left out" in conflict_text(found)


def test_names_with_and_without_a_prefix(tiny_model, variant, tmp_path):
    base, expert = tiny_model("gpt2"), variant(tiny_model("gpt2"), 0.1, 1)

    def shorten(tensors):
        short = {n.removeprefix("transformer."): t.clone() for n, t in tensors.items()}
        tensors.clear()
        tensors.update(short)

    short = edited(expert, tmp_path / "short", shorten)
    for root in (base, edited(base, tmp_path / "base", shorten)):
        found = measured(expert, short, base=root)
        assert found.mean("sign_change_ratio") == 0
        assert not found.notes
        assert found.elements == task_vector(expert, base).numel()


def test_a_larger_vocabulary_is_compared_in_its_common_rows(tiny_model, variant, tmp_path):
    base, expert = tiny_model("llama"), variant(tiny_model("llama"), 0.1, 1)

    def grow(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.ones(8, 32)])

    grown = edited(expert, tmp_path / "grown", grow)
    found = measured(expert, grown, base=base)
    assert found.mean_cosine == pytest.approx(1)
    assert "model.embed_tokens.weight has 384 or 392 rows; the first 384" in " ".join(found.notes)


def test_other_shapes_are_refused(tiny_model, variant, tmp_path):
    base = tiny_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    other = edited(base, tmp_path / "x", lambda t: t.update({name: torch.ones(7, 32)}))
    with pytest.raises(EvaluationError, match=r"up_proj.weight is \[64, 32\] in .*\[7, 32\] in"):
        measured(variant(base, 0.1, 1), other, base=base)
    with pytest.raises(EvaluationError, match="have no tensor in common"):
        measured(tiny_model("bert"), base=base)


def test_masks_are_left_out(tiny_model, tmp_path):
    def mask(tensors):
        tensors["h.0.attn.attention.bias"] = torch.ones(4, 4, dtype=torch.bool)

    base = edited(tiny_model("llama"), tmp_path / "base", mask)
    found = measured(edited(base, tmp_path / "x", lambda t: None), base=base)
    assert found.notes == ("left out, since it holds no weights: h.0.attn.attention.bias",)


def test_quantized_weights_are_refused(tiny_model, tmp_path):
    base = tiny_model("llama")

    def quantize(tensors):
        tensors["model.norm.weight"] = torch.ones(32, dtype=torch.uint8)

    quantized = edited(base, tmp_path / "x", quantize)
    with pytest.raises(EvaluationError, match=r"model.norm.weight is stored as torch.uint8"):
        measured(quantized, base=base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "with use_dora its change is not"),
        ({"lora_bias": True}, "with lora_bias its change is not"),
        ({"init_lora_weights": "pissa"}, "began as 'pissa', which changes the base"),
        ({"trainable_token_indices": [1, 2]}, "with trainable_token_indices its change is not"),
    ],
)
def test_adapters_of_another_formula_are_refused(tiny_model, tmp_path, config, message):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "a", **config)
    with pytest.raises(EvaluationError, match=f"adapter .*{message}.*merge_and_unload"):
        measured(f"{base}+{adapter}", base=base)


def test_tensors_tell_what_a_config_hides(tiny_model, tmp_path):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "a", use_dora=True)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": False}))
    with pytest.raises(EvaluationError, match=r"lora_magnitude_vector.* belongs to no plain LoRA"):
        measured(f"{base}+{adapter}", base=base)


def test_an_adapter_of_another_base_is_refused(tiny_model, tmp_path):
    adapter = make_adapter(tiny_model("llama"), tmp_path / "a")
    gpt2 = tiny_model("gpt2")
    with pytest.raises(EvaluationError, match="which not all models have in their files"):
        measured(f"{gpt2}+{adapter}", base=gpt2)
    file, key = "adapter_model.safetensors", "base_model.model.model.layers.0.self_attn.v_proj"

    def change(tensors, shape):
        tensors[f"{key}.lora_B.weight"] = torch.ones(shape)

    base = tiny_model("llama")
    for shape, message in (((17, 4), "as 17 × 32, but in the base"), ((16, 3), "the factors of")):
        bad = edited(adapter, tmp_path / str(shape), lambda t, s=shape: change(t, s), file)
        with pytest.raises(EvaluationError, match=message):
            measured(f"{base}+{bad}", base=base)
    half = edited(adapter, tmp_path / "half", lambda t: t.pop(f"{key}.lora_A.weight"), file)
    with pytest.raises(EvaluationError, match=r"lacks half of the pair for model\.layers\.0"):
        measured(f"{base}+{half}", base=base)


def test_the_base_of_a_recipe_without_one():
    parse = ModelReference.parse
    assert base_of([parse("m+a"), parse("m+b")], None) == parse("m")
    assert base_of([parse("m+a"), parse("n+b")], parse("z")) == parse("z")
    for others in (["m+a", "n+b"], ["m", "m+a"], ["m", "n"]):
        with pytest.raises(EvaluationError, match="the recipe has no base"):
            base_of([parse(other) for other in others], None)
