"""The encoder's part of the collapse benchmark, on a tiny BERT: it does what its tables say."""

import csv
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import mergekit.merge
import numpy as np
import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from tiny_models import HIDDEN, LAYERS, VOCABULARY
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

pytestmark = pytest.mark.slow

COLLAPSE = Path(__file__).parent.parent / "benchmarks" / "collapse"
WORDS = {"red": ("apple", "cherry", "brick", "rose"), "green": ("grass", "leaf", "moss", "lime")}


def bert_config():
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
    )


def t5_config(feed_forward):
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_kv=8,
        d_ff=64,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=4,
        feed_forward_proj=feed_forward,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )


@pytest.fixture(scope="module")
def zoo():
    """The benchmark's modules, by name; they import one another by plain names."""
    sys.path.insert(0, str(COLLAPSE))
    names = ("experts", "training", "signals", "merges", "tables", "summary")
    yield {name: importlib.import_module(f"encoder_{name}") for name in names}
    sys.path.remove(str(COLLAPSE))


@pytest.fixture(scope="module")
def folder(zoo, tiny_tokenizer, tmp_path_factory):
    """Three experts of a tiny base: one of a task, its mirror image, and one of another task."""
    place = tmp_path_factory.mktemp("zoo")
    offered = {"colour": {"choices": ["red", "green"]}, "length": {"choices": ["one", "two"]}}
    (place / "tasks.json").write_text(json.dumps(offered))
    rows = [
        {"prompt": f"{first} and {second}", "answer": colour}
        for colour, words in WORDS.items()
        for first in words
        for second in words
    ]
    lengths = [
        {"prompt": word * count, "answer": answer}
        for count, answer in ((1, "one"), (2, "two"))
        for words in WORDS.values()
        for word in words
    ]
    for task, some in (("colour", rows), ("length", lengths)):
        (place / "tasks" / task).mkdir(parents=True)
        for part in ("train", "probes", "held_out"):
            lines = "".join(f"{json.dumps(row)}\n" for row in some)
            (place / "tasks" / task / f"{part}.jsonl").write_text(lines)
    base = place / "encoder" / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(bert_config()).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    made = zoo["experts"].Expert
    experts = {
        "colour": made("colour", rate=3e-3, steps=60),
        "colour-mirrored": made(
            "colour", "conflict", rotated=True, head_of="colour", rate=3e-3, steps=60, seed=1
        ),
        "length": made("length", rate=3e-3, steps=2),
    }
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        for module in zoo.values():
            if hasattr(module, "EXPERTS"):
                patch.setattr(module, "EXPERTS", experts)
        for name in experts:
            zoo["training"].make_expert(name, place, base)
        yield place


def record(folder, name):
    return json.loads((folder / "encoder" / "heads" / f"{name}.json").read_text())


def heads(folder, name):
    return load_file(folder / "encoder" / "heads" / f"{name}.safetensors")


def test_an_expert_learns_and_leaves_the_classifier_that_is_merged_alone(zoo, folder):
    assert record(folder, "colour")["own"] > 0.9
    assert record(folder, "colour")["norm"] > record(folder, "length")["norm"] > 0
    base, expert = (
        load_file(folder / "encoder" / place / "model.safetensors")
        for place in ("base", "experts/colour")
    )
    moved = {name for name in base if not torch.equal(base[name], expert[name])}
    assert not any(name.startswith("classifier") for name in moved)
    # All of the encoder but the pooler, which no mean state passes.
    assert {name for name in base if name.startswith("bert.encoder")} <= moved


def test_a_mirrored_expert_moves_the_encoder_under_the_others_head(zoo, folder):
    own, other = heads(folder, "colour-mirrored"), heads(folder, "colour")
    assert all(torch.equal(own[key], other[key]) for key in other)
    assert record(folder, "colour-mirrored")["own"] > 0.9
    experts = zoo["training"].EXPERTS
    straight, turned = (
        zoo["training"].read_rows(folder, experts[name], "held_out")
        for name in ("colour", "colour-mirrored")
    )
    assert straight.texts == turned.texts
    assert [1 - label for label in straight.labels] == list(turned.labels)


def test_a_finished_expert_stays_and_another_one_of_its_name_is_refused(zoo, folder, monkeypatch):
    before = (folder / "encoder" / "heads" / "length.json").stat().st_mtime_ns
    base = folder / "encoder" / "base"
    zoo["training"].make_expert("length", folder, base)
    assert (folder / "encoder" / "heads" / "length.json").stat().st_mtime_ns == before
    other = {"length": zoo["experts"].Expert("length", seed=7)}
    monkeypatch.setattr(zoo["training"], "EXPERTS", other)
    with pytest.raises(SystemExit, match=r"length.json is of another length: delete"):
        zoo["training"].make_expert("length", folder, base)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_a_merge_is_mergekits_and_scored_under_each_members_head(zoo, folder, method, monkeypatch):
    members = ("colour", "colour-mirrored")
    read = zoo["signals"].read_all(folder)
    group = zoo["signals"].read_group(read, members)
    kept = {}
    remove = zoo["merges"].shutil.rmtree

    def keep(place, **options):
        if (Path(place) / "model.safetensors").exists():
            kept["merged"] = load_file(Path(place) / "model.safetensors")
        remove(place, **options)

    monkeypatch.setattr(zoo["merges"].shutil, "rmtree", keep)
    zoo["merges"].make_merge(folder, method, group)
    name = f"{method}+{'+'.join(members)}.json"
    found = json.loads((folder / "encoder" / "merges" / name).read_text())
    # Equal probes under one head: where one is right, the other is wrong.
    assert sum(found["scores"].values()) == pytest.approx(1)
    key = "bert.encoder.layer.0.output.dense.weight"
    ours, theirs, base = (
        load_file(folder / "encoder" / place / "model.safetensors")[key]
        for place in ("experts/colour", "experts/colour-mirrored", "base")
    )
    if method == "linear":
        torch.testing.assert_close(kept["merged"][key], (ours + theirs) / 2)
    elif method == "task_arithmetic":
        torch.testing.assert_close(kept["merged"][key], 0.8 * (ours + theirs) - 0.6 * base)
    # No merge is nearer to the farther of two than half their distance.
    assert max(found["measured"]["hidden_pooled"].values()) >= group.own.ball.radius_squared - 1e-6
    alpha = zoo["tables"].coefficients(folder, method, members)
    expected = [0.8, 0.8, -0.6] if method == "task_arithmetic" else [0.5, 0.5, 0]
    np.testing.assert_allclose(alpha, expected)


def test_tables_say_what_the_records_say(zoo, folder, tmp_path, monkeypatch):
    members = ("colour", "length")
    monkeypatch.setattr(zoo["tables"], "merges", lambda: [("linear", members)])
    read = zoo["signals"].read_all(folder)
    group = zoo["signals"].read_group(read, members)
    zoo["merges"].make_merge(folder, "linear", group)
    tables = zoo["tables"]
    experts, records = tables.read_records(folder)
    tables.write(tmp_path / "encoder_outcomes.csv", tables.outcome_rows(experts, records))
    found = tables.signals(folder, read, group, experts, records)
    tables.write(tmp_path / "encoder_predictors.csv", tables.signal_rows(found))
    with (tmp_path / "encoder_outcomes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["expert"] for row in rows] == list(members)
    merged = records["linear", members]["scores"]["colour"]
    assert float(rows[0]["loss_percent"]) == pytest.approx(
        (merged / experts["colour"]["own"] - 1) * 100, abs=1e-4
    )
    outcomes, values = zoo["summary"].read_tables(tmp_path)
    assert len(outcomes) == 2
    radius = values["hidden_r2", "colour+length", "", ""]
    assert radius == pytest.approx(group.own.ball.radius_squared, rel=1e-5)
    # Of two experts the ball's centre is their mean, which is what linear is taken for.
    predicted = values["hidden_pooled_predicted", "colour+length", "linear", "colour"]
    assert predicted == pytest.approx(radius, rel=1e-4)
    assert values["base_score", "colour+length", "", "colour"] == -experts["colour"]["base"]


def average(build: Callable[[], PreTrainedModel], tokenizer, folder):
    """MergeKit's linear merge of two models that ``build`` makes."""
    for name in "ab":
        build().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    models = [{"model": str(folder / name), "parameters": {"weight": 1}} for name in "ab"]
    config = MergeConfiguration.model_validate({"merge_method": "linear", "models": models})
    mergekit.merge.run_merge(config, str(folder / "merged"), MergeOptions(quiet=True))


def test_mergekit_still_cannot_merge_a_plain_bert(tiny_tokenizer, tmp_path):
    """Why `ensure_base` saves the encoder with a classifier; once this fails, it need not."""
    with pytest.raises(TypeError, match=r"can only concatenate list \(not .tuple.\) to list"):
        average(lambda: BertModel(bert_config()), tiny_tokenizer, tmp_path)


def test_mergekit_merges_the_later_t5_and_not_the_first(tiny_tokenizer, tmp_path):
    average(lambda: T5ForConditionalGeneration(t5_config("gated-gelu")), tiny_tokenizer, tmp_path)
    _, loading = T5ForConditionalGeneration.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(loading.values())
    with pytest.raises(RuntimeError, match=r"wi_0.weight required but not present"):
        average(
            lambda: T5ForConditionalGeneration(t5_config("relu")), tiny_tokenizer, tmp_path / "relu"
        )


def test_summary_ranks_a_signal_that_tells_above_one_that_does_not(zoo):
    summary = zoo["summary"]
    losses = [-50.0, -25.0, -1.0, 0.0]
    outcomes = [summary.Outcome("linear", f"a+{i}", "a", loss) for i, loss in enumerate(losses)]
    values = {("good", f"a+{i}", "linear", "a"): -loss for i, loss in enumerate(losses)}
    values |= {("bad", f"a+{i}", "", ""): loss for i, loss in enumerate(losses)}
    for predictor, auroc in (("good", 1.0), ("bad", 0.0)):
        for read in (summary.by_task, summary.by_merge):
            found = summary.told(predictor, list(read(outcomes, values, predictor)))
            assert found.auroc == (auroc, auroc)
            assert found.collapsed == (2, 1)
    assert summary.told("none", []).auroc == (None, None)
