"""Models come into memory whole, unaltered and one at a time, or not at all."""

import json
import pickle
import shutil
import warnings
import weakref

import peft
import pytest
import tiny_models
import torch
import transformers
from huggingface_hub import constants
from mergekit.common import ModelReference
from safetensors.torch import load_file, save_file

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.states import loader
from mergekit_collapse.states.loader import LoadOptions, choose_dtype, each_model
from mergekit_collapse.states.weights import fingerprint

pytestmark = pytest.mark.slow

OPTIONS = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
IDS = torch.tensor([[1, 40, 41, 42, 200]])


def load(*references, options=OPTIONS, look=lambda model: model(input_ids=IDS).logits):
    """What ``look`` sees of each model, by the references' order, and the order of the visits."""
    seen = {}

    def visit(index, model):
        with torch.no_grad():
            seen[index] = look(model)

    parsed = [
        r if isinstance(r, ModelReference) else ModelReference.parse(str(r)) for r in references
    ]
    each_model(parsed, options, visit)
    return [seen[i] for i in range(len(references))], list(seen)


def counted_loads(monkeypatch):
    """A list that grows by one with every model that is loaded."""
    loads, real = [], loader._load
    monkeypatch.setattr(loader, "_load", lambda *args: loads.append(args) or real(*args))
    return loads


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_adapter(base, folder, seed=0, **config):
    """A LoRA adapter with random weights in both factors, saved by PEFT itself."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], **config}
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for _, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(folder)
    return folder


def merged(base, adapter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_single_sharded_and_bin_files_are_the_same_model(tiny_model, tmp_path, architecture):
    single = tiny_model(architecture)
    model_class = getattr(
        transformers, json.loads((single / "config.json").read_text())["architectures"][0]
    )
    model = model_class.from_pretrained(single)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert (tmp_path / "sharded/model.safetensors.index.json").exists()
    pickled = copy_of(single, tmp_path)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    prints, _ = load(single, tmp_path / "sharded", pickled, look=fingerprint)
    assert prints[0] == prints[1] == prints[2]


def test_one_model_at_a_time(tiny_model):
    alive = []

    def look(model):
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(model))

    load(tiny_model("llama"), tiny_model("llama", 1), tiny_model("gpt2"), look=look)
    assert len(alive) == 3


def test_adapters_share_one_load_and_equal_the_merged_model(tiny_model, tmp_path, monkeypatch):
    base = tiny_model("llama")
    adapters = [
        make_adapter(base, tmp_path / "plain", 1),
        make_adapter(base, tmp_path / "dora", 2, use_dora=True, target_modules=["up_proj"]),
        make_adapter(base, tmp_path / "scaled", 3, lora_alpha=32, target_modules=["lm_head"]),
    ]
    due = [merged(base, adapter) for adapter in adapters]
    loads = counted_loads(monkeypatch)
    (first, second, plain, third), order = load(
        f"{base}+{adapters[0]}", f"{base}+{adapters[1]}", base, f"{base}+{adapters[2]}"
    )
    assert len(loads) == 1
    assert order[0] == 2, "the bare base first"
    for got, expected in zip((first, second, third), due, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert (got - plain).abs().max() > 1e-2
    assert torch.equal(plain, load(base)[0][0])


@pytest.mark.parametrize(
    ("architecture", "config", "loads"),
    [
        ("llama", {"modules_to_save": ["lm_head"]}, 1),
        ("llama", {"modules_to_save": ["embed_tokens"]}, 1),
        ("llama", {"trainable_token_indices": [40, 41]}, 1),
        ("qwen2", {"bias": "all"}, 2),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}, 2),
        ("llama", {"init_lora_weights": "pissa"}, 2),
    ],
)
def test_no_adapter_leaves_a_trace_in_the_next(
    tiny_model, tmp_path, monkeypatch, architecture, config, loads
):
    base = tiny_model(architecture)
    greedy = make_adapter(base, tmp_path / "greedy", 1, **config)
    targets = {"target_modules": ["c_attn"]} if architecture == "gpt2" else {}
    modest = make_adapter(base, tmp_path / "modest", 2, **targets)
    count = counted_loads(monkeypatch)
    (first, second), _ = load(f"{base}+{greedy}", f"{base}+{modest}")
    assert len(count) == loads
    torch.testing.assert_close(first, merged(base, greedy), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, merged(base, modest), rtol=1e-4, atol=1e-5)


def test_an_adapter_from_a_bin_file(tiny_model, tmp_path):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "adapter")
    due, _ = load(f"{base}+{adapter}")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    got, _ = load(f"{base}+{adapter}")
    assert torch.equal(got[0], due[0])


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_malicious_pickle_is_refused_and_never_run(tiny_model, tmp_path, kind, zipped):
    base, sign = tiny_model("llama"), tmp_path / "executed"
    if kind == "model":
        folder, file = copy_of(base, tmp_path), "pytorch_model.bin"
        (folder / "model.safetensors").unlink()
        reference = str(folder)
    else:
        folder, file = make_adapter(base, tmp_path / "adapter"), "adapter_model.bin"
        (folder / "adapter_model.safetensors").unlink()
        reference = f"{base}+{folder}"
    payload = {"model.norm.weight": Bomb(sign)}
    if zipped:
        torch.save(payload, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(
        EvaluationError, match=r"holds more than tensors.*was not read; use safetensors"
    ):
        load(reference)
    assert not sign.exists()


def test_a_missing_tensor_is_never_made_up(tiny_model, tmp_path):
    folder = copy_of(tiny_model("llama"), tmp_path)
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        EvaluationError, match=r"copy: the checkpoint lacks .*layers\.1\.mlp\.up_proj"
    ):
        load(folder)


def test_a_missing_head_is_never_made_up(tiny_model, tmp_path):
    folder = copy_of(tiny_model("llama"), tmp_path)
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(EvaluationError, match=r"the checkpoint lacks lm_head\.weight"):
        load(folder)


def test_a_bert_without_its_unused_pooler_is_complete(tiny_model):
    reference = ModelReference.model_validate(
        {"model": str(tiny_model("bert")), "override_architecture": "BertModel"}
    )
    (name,), _ = load(reference, look=lambda model: type(model).__name__)
    assert name == "BertModel"


def test_mismatched_shapes_are_named(tiny_model, tmp_path):
    folder = copy_of(tiny_model("llama"), tmp_path)
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": torch.ones(8)}))
    with pytest.raises(EvaluationError, match=r"model\.norm\.weight \(\[8\], not \[32\]\)"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(tiny_model, tmp_path, value):
    folder = copy_of(tiny_model("llama"), tmp_path)
    edit_tensors(folder, lambda t: t["model.layers.0.mlp.gate_proj.weight"][3].fill_(value))
    with pytest.raises(EvaluationError, match=r"copy: NaN or inf.*layers\.0\.mlp\.gate_proj"):
        load(folder)


def test_a_truncated_file_is_refused(tiny_model, tmp_path):
    folder = copy_of(tiny_model("llama"), tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaluationError, match=r"copy: .*copy or download the model again"):
        load(folder)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_shard_is_refused(tiny_model, tmp_path, damage):
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_model("llama"))
    folder = tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="60KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    if damage == "missing":
        shard.unlink()
    with pytest.raises(EvaluationError, match=r"sharded: .*copy or download the model again"):
        load(folder)


def test_an_adapter_for_another_base_is_refused(tiny_model, tmp_path):
    base = tiny_model("llama")
    config = transformers.AutoConfig.from_pretrained(base, hidden_size=16, num_hidden_layers=3)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    config = transformers.AutoConfig.from_pretrained(base, num_hidden_layers=3)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    narrow = make_adapter(tmp_path / "narrow", tmp_path / "a")
    deep = make_adapter(tmp_path / "deep", tmp_path / "b")
    shallow = make_adapter(base, tmp_path / "c")
    mend = "was trained on this base model"
    with pytest.raises(EvaluationError, match=rf"adapter .*a on .*size mismatch.*{mend}"):
        load(f"{base}+{narrow}")
    with pytest.raises(EvaluationError, match=rf"base has no place for .*layers\.2.*{mend}"):
        load(f"{base}+{deep}")
    with pytest.raises(EvaluationError, match=rf"adapter lacks .*layers\.2.*{mend}"):
        load(f"{tmp_path / 'deep'}+{shallow}")
    with pytest.raises(EvaluationError, match=rf"Target modules.*{mend}"):
        load(f"{tiny_model('gpt2')}+{shallow}")


def test_an_adapter_with_nan_is_refused(tiny_model, tmp_path):
    adapter = make_adapter(tiny_model("llama"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    sorted(tensors.items())[0][1].fill_(float("nan"))
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(EvaluationError, match=r"adapter .*NaN or infinite.*lora_A"):
        load(f"{tiny_model('llama')}+{adapter}")


def test_folders_that_are_not_one_model_are_refused(tiny_model, tmp_path):
    base = tiny_model("llama")
    adapter = make_adapter(base, tmp_path / "adapter")
    with pytest.raises(EvaluationError, match=r"holds an adapter, not a model; write it as base\+"):
        load(adapter)
    with pytest.raises(EvaluationError, match=r"lacks adapter_config\.json"):
        load(f"{base}+{tiny_model('gpt2')}")
    both = copy_of(base, tmp_path)
    (both / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"has both model\.safetensors and .*stale"):
        load(both)
    (both / "model.safetensors.index.json").unlink()
    shutil.copy(adapter / "adapter_config.json", both)
    with pytest.raises(EvaluationError, match=r"both a model and an adapter"):
        load(both)
    (both / "adapter_config.json").unlink()
    (both / "model.safetensors").unlink()
    with pytest.raises(EvaluationError, match=r"no model\.safetensors or pytorch_model\.bin"):
        load(both)


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    options = LoadOptions("cpu", torch.float32, cache_dir=str(tmp_path), progress=False)
    with pytest.raises(
        EvaluationError,
        match=r"model someone/model: is not a folder here, and the hub cannot be .*; go online",
    ):
        load("someone/model", options=options)
    with pytest.raises(
        EvaluationError, match=r"is neither a folder here nor a public model on the hub"
    ):
        load("./no/such/folder", options=options)


def test_remote_code_needs_permission(tiny_model, tmp_path):
    folder = copy_of(tiny_model("llama"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "tiny_own", "architectures": ["TinyOwn"]}
    config["auto_map"] = {"AutoConfig": "own.TinyConfig", "AutoModelForCausalLM": "own.TinyOwn"}
    (folder / "config.json").write_text(json.dumps(config))
    sign = tmp_path / "executed"
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(sign)!r}, 'w').close()\n"
        "class TinyConfig(LlamaConfig):\n    model_type = 'tiny_own'\n"
        "class TinyOwn(LlamaForCausalLM):\n    config_class = TinyConfig\n"
    )
    with pytest.raises(EvaluationError, match="--trust-remote-code"):
        load(folder)
    assert not sign.exists()
    trusting = LoadOptions("cpu", torch.float32, trust_remote_code=True, progress=False)
    (logits,), _ = load(folder, options=trusting)
    assert sign.exists()
    assert torch.equal(logits, load(tiny_model("llama"))[0][0])


def test_an_unknown_architecture_is_refused(tiny_model, tmp_path):
    folder = copy_of(tiny_model("llama"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama99"}))
    with pytest.raises(EvaluationError, match=r"llama99.*check its config\.json"):
        load(folder)


def test_nothing_is_printed(tiny_model, capfd):
    load(tiny_model("llama"), tiny_model("bert"), look=lambda model: None)
    assert capfd.readouterr() == ("", "")


def test_the_precision_suits_the_device(monkeypatch):
    assert choose_dtype("cpu") in (torch.float32, torch.bfloat16)
    assert choose_dtype("meta") == torch.float32
    for version, dtype in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, v=version: v)
        assert choose_dtype("cuda:0") == dtype
    if hasattr(torch.cpu, "get_capabilities"):
        for able in ("amx_bf16", "avx512_bf16"):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {able: True})
            assert choose_dtype("cpu") == torch.bfloat16
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
        assert choose_dtype("cpu") == torch.float32


def test_tiny_models_are_what_they_are_called(tiny_model):
    names, _ = load(
        *(tiny_model(a) for a in tiny_models.BUILDERS), look=lambda model: model.config.model_type
    )
    assert names == list(tiny_models.BUILDERS)
