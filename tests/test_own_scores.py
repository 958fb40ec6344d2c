"""An expert's own scores on disk: found again only where nothing has changed."""

import json
import os
import shutil

import pytest
import tiny_models
import torch
from mergekit.common import ModelReference
from safetensors.torch import load_file, save_file

import mergekit_collapse
from mergekit_collapse.cached_files import CachedFiles
from mergekit_collapse.caches import open_caches
from mergekit_collapse.evaluation.own_scores import OwnScores, score_key
from mergekit_collapse.evaluation.scoring_set import scoring_set
from mergekit_collapse.kept_values import KeptValues
from mergekit_collapse.probes.probes import Probe, ProbeSet, ProbeTask
from mergekit_collapse.recipe.schema import CacheBlock
from mergekit_collapse.states.loader import LoadOptions

OPTIONS = LoadOptions(device="cpu", dtype=torch.float32, progress=False)
KEY = "ab" + 62 * "0"


def scoring(prompt="Two plus three is", tokenizer=None):
    tasks = (ProbeTask("sums", 0, "here", 1), ProbeTask("films", 1, "here", 1))
    probes = (Probe(0, prompt, "five"), Probe(1, "The film was", "good"))
    tokenizer = tokenizer or tiny_models.make_tokenizer()
    return scoring_set(
        ProbeSet(tasks, probes, "d"), [None, None], tokenizer, 64, encoder_decoder=False
    )


def opened(**block):
    return open_caches(CacheBlock(**block)).own_scores


@pytest.fixture
def cache():
    return opened()


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def key(folder, *, task=0, options=OPTIONS, lora=None, asked=None):
    text = f"{folder}+{lora}" if lora else str(folder)
    return score_key(ModelReference.parse(text), asked or scoring(), task, options)


def test_a_score_is_found_again_to_the_last_bit(cache, own_cache):
    assert cache.get(KEY) is None
    cache.put(KEY, 1 / 3, model="./sums", task="sums")
    assert cache.get(KEY) == opened().get(KEY) == 1 / 3
    assert cache.get("cd" + KEY[2:]) is None
    (file,) = (p for p in own_cache.rglob("*") if p.is_file())
    assert json.loads(file.read_text())["value"]["what"] == "task sums"


def test_nothing_is_kept_or_found_where_it_is_switched_off(cache):
    cache.put(KEY, 0.5, model="m", task="t")
    off = opened(enabled=False)
    assert off.get(KEY) is None
    off.put("cd" + KEY[2:], 0.5, model="m", task="t")
    assert cache.get("cd" + KEY[2:]) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"value": {"score": 0.5}}',
        '{"value": {"score": 0.5}, "sha256": "0"}',
        '{"value": [], "sha256": null}',
        "\xff",
    ],
)
def test_a_corrupt_entry_is_no_entry_and_said(cache, content, caplog):
    cache.put(KEY, 0.5, model="m", task="t")
    cache.values.files.path(KEY).write_bytes(content.encode("latin-1"))
    assert cache.get(KEY) is None
    assert "its checksum is not that of its content; made again" in caplog.text
    cache.put(KEY, 0.25, model="m", task="t")
    assert cache.get(KEY) == 0.25


def test_a_cache_that_cannot_be_written_is_no_cache(tmp_path):
    # A file where a folder should be stops even root.
    (tmp_path / "file").write_text("")
    cache = in_folder(tmp_path / "file" / "below")
    cache.put(KEY, 0.5, model="m", task="t")
    assert cache.get(KEY) is None
    # And where the last step fails, nothing half-written stays behind.
    taken = in_folder(tmp_path / "taken")
    (tmp_path / "taken" / KEY[:2] / f"{KEY}.json").mkdir(parents=True)
    taken.put(KEY, 0.5, model="m", task="t")
    assert os.listdir(tmp_path / "taken" / KEY[:2]) == [f"{KEY}.json"]


def in_folder(folder):
    return OwnScores(KeptValues(CachedFiles(folder, ".json")))


def test_a_flipped_bit_anywhere_is_noticed(cache):
    cache.put(KEY, 0.5, model="m", task="t")
    path = cache.values.files.path(KEY)
    written = path.read_bytes()
    for place in range(len(written)):
        if written[place : place + 1].isspace():
            continue  # between the values of a JSON document it says nothing
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        assert cache.get(KEY) is None


@pytest.mark.parametrize("score", ["0.5", True, 1, 1.5, -0.1, None])
def test_what_was_kept_and_is_no_score_is_not_found(cache, score):
    cache.values.put(KEY, {"score": score})
    assert cache.get(KEY) is None


def test_a_score_under_the_name_of_another_is_not_found(cache):
    cache.put(KEY, 0.5, model="m", task="t")
    files, other = cache.values.files, "cd" + KEY[2:]
    files.write(other, files.path(KEY).read_bytes())
    assert cache.get(other) is None


def test_what_is_no_score_is_not_kept(cache):
    cache.put(KEY, float("nan"), model="m", task="t")
    assert cache.get(KEY) is None


def test_the_key_is_of_the_content_and_not_of_the_place(model, tmp_path):
    # copytree keeps times, as a move would.
    assert key(model) == key(shutil.copytree(model, tmp_path / "moved"))


def test_the_key_follows_everything_that_a_score_depends_on(model, tmp_path, monkeypatch):
    keys = [key(model)]
    keys.append(key(model, task=1))
    keys.append(key(model, asked=scoring("Two plus four is")))
    keys.append(key(model, options=LoadOptions(device="cpu", dtype=torch.bfloat16)))
    keys.append(key(model, options=LoadOptions(device="cuda:0", dtype=torch.float32)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(2)}, adapter / "adapter_model.safetensors")
    keys.append(key(model, lora=adapter))
    save_file({"x": torch.zeros(3)}, adapter / "adapter_model.safetensors")
    keys.append(key(model, lora=adapter))
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    keys.append(key(model, lora=adapter))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    keys.append(key(model))
    # The same sizes at another time, then at the same time under another name.
    weights = model / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    keys.append(key(model))
    tensors = load_file(weights)
    tensors["model.norm_.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, weights)
    os.utime(weights, ns=(1, 1))
    keys.append(key(model))
    monkeypatch.setattr(mergekit_collapse, "__version__", "99")
    keys.append(key(model))
    assert len(set(keys)) == len(keys)


def test_a_shard_in_a_folder_below_counts(model):
    (model / "below").mkdir()
    shard = (model / "model.safetensors").rename(model / "below" / "shard.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(shard), "below/shard.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    before = key(model)
    os.utime(shard, ns=(1, 1))
    assert key(model) != before
