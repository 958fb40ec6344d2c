"""Checks on finished merges, each with a merge that fails it and no other."""

import functools
import json
import pickle
import re
import shutil

import pytest
import torch
import transformers
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.evaluation import generation
from mergekit_collapse.evaluation.merged_files import require_merge
from mergekit_collapse.evaluation.smoke import check_merge
from mergekit_collapse.states.loader import LoadOptions

OPTIONS = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
ALL = ["complete", "finite", "dtype", "keys", "vocabulary", "generates"]


@pytest.fixture
def merge(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("llama"), tmp_path / "merge")


@pytest.fixture
def sharded(tiny_model, tiny_tokenizer, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    tiny_tokenizer.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def check(folder, dtype="float32"):
    require_merge(folder)
    return check_merge(folder, dtype=dtype, load_options=OPTIONS)


def failed(folder, **keys):
    """The checks that fail, by name, of a merge whose model must then not be measured."""
    checks, model = check(folder, **keys)
    found = {c.name: c.detail for c in checks if not c.passed}
    assert (model is None) == bool(set(found) & {"complete", "finite", "keys"})
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2", "t5", "bert"])
def test_a_sound_model_passes(tiny_model, architecture):
    checks, model = check(tiny_model(architecture))
    assert [c.name for c in checks] == ALL
    assert all(c.passed for c in checks), checks
    assert model.num_parameters() > 30_000
    details = {c.name: c.detail for c in checks}
    assert "with a tokenizer" in details["complete"]
    assert "384 embeddings; the tokenizer's largest token is 383" in details["vocabulary"]
    speaks = "no language head" if architecture == "bert" else "'The capital of France is' → '"
    assert speaks in details["generates"]
    assert all(detail.isprintable() for detail in details.values())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "t5"])
def test_prompts_are_continued_together_as_each_by_itself(tiny_model, architecture):
    """One that ends goes on no longer, whatever the others do."""
    causal = transformers.AutoModelForCausalLM
    auto = transformers.AutoModelForSeq2SeqLM if architecture == "t5" else causal
    model = auto.from_pretrained(tiny_model(architecture), dtype=torch.float32).eval()
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18]]
    alone = [generation._continue(model, [prompt])[0] for prompt in prompts]
    assert len({tuple(tokens) for tokens, _ in alone}) == 3
    model.generation_config.eos_token_id = alone[1][0][2]
    due = [generation._continue(model, [prompt])[0] for prompt in prompts]
    assert len(due[1][0]) <= 3
    assert generation._continue(model, prompts) == due


def test_prompts_are_continued_each_by_itself_where_padding_breaks_the_model(tiny_model):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    prompts = [[5, 6, 7, 8], [12, 13, 14]]
    due = [generation._continue(model, [prompt])[0] for prompt in prompts]
    forward = model.forward

    @functools.wraps(forward)
    def breaks(*args, **keywords):
        output, mask = forward(*args, **keywords), keywords.get("attention_mask")
        if mask is not None and not mask.all():
            output.logits[:] = float("nan")
        return output

    model.forward = breaks
    assert not generation._continue(model, prompts)[1][1]
    assert generation._continued(model, prompts) == due


def test_shards_pass(sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert failed(sharded) == {}


@pytest.mark.parametrize("options", [{}, {"safe_serialization": False}])
def test_what_mergekit_writes_passes(tiny_model, tmp_path, options):
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": str(tiny_model("llama", seed)), "parameters": {"weight": 0.5}}
            for seed in range(2)
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    run_merge(
        MergeConfiguration.model_validate(recipe),
        str(tmp_path / "out"),
        MergeOptions(quiet=True, out_shard_size=60_000, copy_tokenizer=True, **options),
    )
    assert len(list((tmp_path / "out").glob("*-of-*"))) > 1
    assert failed(tmp_path / "out", dtype="bfloat16") == {}
    assert list(failed(tmp_path / "out", dtype="float32")) == ["dtype"]


def test_a_merge_without_a_tokenizer_passes_and_says_so(merge):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (merge / name).unlink()
    checks, _ = check(merge)
    assert all(c.passed for c in checks)
    assert "without a tokenizer" in checks[0].detail
    assert "tokens [1, 192]" in checks[-1].detail


def test_what_is_no_merge_is_the_callers_mistake(tmp_path, merge):
    with pytest.raises(InvalidRecipeError, match="does not exist"):
        require_merge(tmp_path / "nowhere")
    with pytest.raises(InvalidRecipeError, match="is a file"):
        require_merge(merge / "config.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.json").write_text("{}")
    with pytest.raises(InvalidRecipeError, match=r"neither config\.json nor weights"):
        require_merge(tmp_path / "other")
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidRecipeError, match="LoRA adapter"):
        require_merge(tmp_path / "other")


def lose_a_shard(folder):
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()


def cut_a_shard(folder):
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-7])


def lose_the_index(folder):
    (folder / "model.safetensors.index.json").unlink()


def lose_the_config(folder):
    (folder / "config.json").unlink()


def break_the_config(folder):
    (folder / "config.json").write_text('{"model_type": ')


def stop_half_way(folder):
    """What MergeKit leaves when it is killed: shards under their first names."""
    for number, shard in enumerate(sorted(folder.glob("*.safetensors")), 1):
        shard.rename(folder / f"model-{number}.safetensors")
    lose_the_index(folder)
    lose_the_config(folder)


def forget_a_tensor(folder):
    index = folder / "model.safetensors.index.json"
    edit_json(index, lambda value: value["weight_map"].pop("model.norm.weight"))


def misplace_a_tensor(folder):
    def move(value):
        placed = value["weight_map"]
        placed["model.norm.weight"] = next(
            shard for shard in placed.values() if shard != placed["model.norm.weight"]
        )

    edit_json(folder / "model.safetensors.index.json", move)


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lose_a_shard, "shards that .* are missing"),
        (cut_a_shard, "is truncated"),
        (lose_the_index, "lacks model.safetensors"),
        (lose_the_config, "config.json is missing"),
        (break_the_config, "config.json is not valid JSON"),
        (stop_half_way, "interrupted: model-1.safetensors"),
        (forget_a_tensor, "does not name model.norm.weight"),
        (misplace_a_tensor, "not in the shard where"),
    ],
)
def test_an_interrupted_merge_is_incomplete_and_not_read(sharded, damage, detail):
    damage(sharded)
    checks, model = check(sharded)
    assert [(c.name, c.passed) for c in checks] == [("complete", False)]
    assert re.search(detail, checks[0].detail)
    assert model is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_broken_number_is_found_and_named(merge, value):
    def poison(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value

    edit(merge, poison)
    assert failed(merge) == {
        "finite": "NaN or infinite values in model.layers.1.mlp.up_proj.weight"
    }


def test_a_missing_tensor_is_named(merge):
    edit(merge, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"))
    assert failed(merge) == {"keys": "missing: model.layers.0.self_attn.q_proj.weight"}


def test_a_tensor_without_a_place_is_named(merge):
    edit(merge, lambda tensors: tensors.update({"model.extra\x1b.weight": torch.zeros(3)}))
    assert failed(merge) == {"keys": r"unexpected: model.extra\x1b.weight"}


def test_a_vocabulary_of_another_size_is_told(merge):
    def widen(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.zeros(8, 32)])

    edit(merge, widen)
    found = failed(merge)
    assert found["vocabulary"] == "config.json says 384 tokens, the embeddings have 392"
    assert "model.embed_tokens.weight ([392, 32], not [384, 32])" in found["keys"]


def test_a_head_of_another_size_is_told(merge):
    edit(merge, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:380].clone()}))
    assert failed(merge)["vocabulary"] == "the head has 380 tokens, the embeddings have 384"


def test_a_tokenizer_that_knows_more_than_the_model_is_told(merge, tiny_tokenizer):
    tokenizer = transformers.AutoTokenizer.from_pretrained(merge)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(merge)
    assert failed(merge) == {
        "vocabulary": "the tokenizer has the token 384, but there are embeddings for 384 only"
    }


def test_a_broken_tokenizer_is_told(merge):
    (merge / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be loaded" in failed(merge)["vocabulary"]


def test_another_dtype_than_asked_for_is_told(merge):
    edit(merge, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].half()}))
    found = failed(merge)
    assert list(found) == ["dtype"]
    assert "float32 was asked for, but model.norm.weight" in found["dtype"]
    assert "float16 (1 tensors)" in found["dtype"]
    checks, _ = check(merge, dtype=None)
    assert checks[2].passed
    assert "config.json says float32" in checks[2].detail


def test_integers_keep_the_dtype_of_their_architecture(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "bert")
    ids = torch.arange(128).unsqueeze(0)
    edit(folder, lambda t: t.update({"bert.embeddings.position_ids": ids}))
    assert "dtype" not in failed(folder)


def test_logits_that_overflow_are_told(merge):
    edit(merge, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    found = failed(merge)
    assert list(found) == ["generates"]
    assert "NaN or infinite logits after 'The capital of France is'" in found["generates"]


def test_a_model_that_only_ends_is_told(merge):
    edit_json(merge / "generation_config.json", lambda v: v.update({"eos_token_id": [*range(384)]}))
    assert "ends at once after every prompt" in failed(merge)["generates"]


def test_a_pickled_merge_is_read_without_being_run(merge, tmp_path):
    tensors = load_file(merge / "model.safetensors")
    (merge / "model.safetensors").unlink()
    torch.save(tensors, merge / "pytorch_model.bin")
    assert failed(merge) == {}
    tensors["model.norm.weight"][0] = torch.nan
    torch.save(tensors, merge / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert failed(merge) == {"finite": "NaN or infinite values in model.norm.weight"}

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({**tensors, "bomb": Bomb()}, merge / "pytorch_model.bin")
    assert "could run code" in failed(merge)["finite"]
    (merge / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "could run code" in failed(merge)["finite"]
    assert not (tmp_path / "exploded").exists()
