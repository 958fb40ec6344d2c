"""The watch sees the model that MergeKit makes, changes nothing of it, and ends what breaks.

Watched are the architectures of ``ARCHITECTURES`` and, by the same comparison, Arcee, Apertus,
Cohere 2, DistilBERT, Gemma 3, GLM 4, Granite, GPT-BigCode, LFM2, Mixtral, OLMo 2, Phi, Phi 3,
Qwen 3 MoE, RoBERTa, StableLM and StarCoder 2. Encoder-decoders and Mamba are merged unwatched.
"""

import errno
import inspect
import json
import re
import shutil
import tempfile
import weakref
from collections import Counter

import mergekit.merge
import numpy as np
import pytest
import tiny_models
import torch
import transformers
import yaml
from click.testing import CliRunner
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import load_file, save_file

from mergekit_collapse import gate, merge_options, mergekit_hook
from mergekit_collapse.assessment import assess
from mergekit_collapse.cli import main
from mergekit_collapse.errors import EvaluationError, MergeRefusedError, MergeRejectedError
from mergekit_collapse.recipe.recipe import read_recipe
from mergekit_collapse.watch.layer_order import WatchedExecutor
from mergekit_collapse.watch.layer_tasks import SetAside, watch_layers
from mergekit_collapse.watch.rehearsal import rehearse
from mergekit_collapse.watch.substitution import planned_with
from mergekit_collapse.watch.watch import Watch

pytestmark = pytest.mark.slow

QUIET = MergeOptions(quiet=True)
PROBES = {"samples": 4, "max_tokens": 16}
# Enough of them for intervals.
MORE_PROBES = {"samples": 8, "max_tokens": 16}
# Whatever the numbers are, the merge is made and read back.
OPEN = {"probes": PROBES, "on_violation": "warn", "rehearse": "never", "cache": False}
OPEN["evaluate"] = {"on_collapse": "warn"}
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2"]
DEPTH = 12


@pytest.fixture(scope="module", autouse=True)
def hooked():
    mergekit_hook.install()


@pytest.fixture(scope="module")
def models(tiny_model, variant):
    base = tiny_model("llama")
    return {
        "base": base,
        "one": variant(base, 0.02, 1),
        "two": variant(base, 0.02, 2),
        "three": variant(base, 0.02, 3),
        "far": variant(base, 3.0, 3),
    }


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory, tiny_tokenizer):
    """A llama whose head is its embeddings; qwen2's tokenizer class adds a token of its own."""
    folder = tmp_path_factory.mktemp("tied") / "model"
    settings = {**tiny_models._LLAMA_LIKE, "tie_word_embeddings": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory, tiny_tokenizer):
    """Three near models of twelve layers: MergeKit's order of them is that of text."""
    folder = tmp_path_factory.mktemp("deep")
    settings = {**tiny_models._LLAMA_LIKE, "num_hidden_layers": DEPTH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two"), 1):
        tiny_models.save_variant(folder / "base", 0.02, seed, folder / name)
    return {name: folder / name for name in ("base", "one", "two")}


def listed(*folders, **parameters):
    return [{"model": str(f), "parameters": {"weight": 1.0, **parameters}} for f in folders]


def write(folder, models, compat=OPEN, **keys):
    recipe = {"merge_method": "linear", "models": models, "dtype": "float32", **keys}
    recipe = {key: value for key, value in recipe.items() if value is not None}
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump({**recipe, "compat": compat}, sort_keys=False), encoding="utf-8")
    return path


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def tensors_in(folder):
    return {k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def stock(recipe, out, options=QUIET):
    """MergeKit's own merge of the same recipe."""
    inspect.unwrap(mergekit.merge.run_merge)(read_recipe(recipe).config, str(out), options)
    return tensors_in(out)


def require_same(watched, plain):
    assert watched.keys() == plain.keys()
    assert {n for n in plain if watched[n].dtype != plain[n].dtype} == set()
    assert {n for n in plain if not torch.equal(watched[n], plain[n])} == set()


def require_agreement(report):
    """What was watched is, number for number, what the finished folder gives."""
    assert report.monitor is not None, report.monitor_reason
    assert [reading.layer for reading in report.monitor.layers] == list(
        range(1, len(report.evaluation.layers) + 1)
    )
    assert report.monitor.layers == report.evaluation.layers
    assert report.monitor.hidden == report.evaluation.hidden
    assert report.monitor.predictive == report.evaluation.predictive


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_watched_is_what_is_read_back(
    tiny_model, variant, tmp_path, monkeypatch, architecture, dtype
):
    monkeypatch.setattr(merge_options, "choose_dtype", lambda _device: dtype)
    base = tiny_model(architecture)
    recipe = write(tmp_path, listed(variant(base, 0.02, 1), variant(base, 0.02, 2)))
    report = gate.run(recipe, tmp_path / "out", QUIET)
    require_agreement(report)
    require_same(tensors_in(tmp_path / "out"), stock(recipe, tmp_path / "plain"))


METHODS = {
    "task_arithmetic": {"base": True},
    "ties": {"base": True, "density": 0.5},
    "dare_ties": {"base": True, "density": 0.5},
    "dare_linear": {"base": True, "density": 0.5},
    "della": {"base": True, "density": 0.5, "epsilon": 0.1},
    "breadcrumbs": {"base": True, "density": 0.9, "gamma": 0.01},
    "model_stock": {"base": True},
    "slerp": {"base": "one", "t": 0.5},
    "nuslerp": {},
    "karcher": {},
    "multislerp": {},
    "weighted_karcher": {},
    "rescaled_mean": {},
}


# Each by another road through MergeKit; the others vary these.
SOONEST = {"task_arithmetic", "dare_ties", "della", "slerp", "weighted_karcher"}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m not in SOONEST)) for m in METHODS]
)
def test_every_method_is_watched_and_left_alone(models, tmp_path, method):
    """The seeded ones draw from one stream, so that their order of the tensors must be stock."""
    settings = dict(METHODS[method])
    base = {True: models["base"], "one": models["one"], None: None}[settings.pop("base", None)]
    names = ("one", "two", "three") if method == "model_stock" else ("one", "two")
    names = names[1:] if base == models["one"] else names
    members = listed(*(models[n] for n in names), **(settings if method != "slerp" else {}))
    keys = {"parameters": {"t": 0.5}} if method == "slerp" else {}
    if method == "slerp":
        members = listed(models["one"], *(models[n] for n in names))
    if base is not None:
        keys["base_model"] = str(base)
    recipe = write(tmp_path, members, merge_method=method, **keys)
    options = QUIET.model_copy(update={"random_seed": 7})
    report = gate.run(recipe, tmp_path / "out", options)
    require_agreement(report)
    require_same(tensors_in(tmp_path / "out"), stock(recipe, tmp_path / "plain", options))


def parts(models, *ranges):
    """Slices, each of two models with a layer range of its own."""
    return [
        {"sources": [{"model": str(models[n]), "layer_range": list(r)} for n, r in part.items()]}
        for part in ranges
    ]


def test_slices_are_watched_in_the_merged_models_own_order(models, tmp_path):
    slices = parts(models, {"one": (0, 2), "two": (0, 2)}, {"one": (1, 2), "two": (0, 1)})
    for part in slices:
        for source in part["sources"]:
            source["parameters"] = {"weight": 1.0}
    recipe = write(tmp_path, None, slices=slices)
    report = gate.run(recipe, tmp_path / "out", QUIET)
    require_agreement(report)
    assert len(report.monitor.layers) == 3
    require_same(tensors_in(tmp_path / "out"), stock(recipe, tmp_path / "plain"))


def test_a_layer_that_stands_twice_draws_as_in_stock_mergekit(models, tmp_path):
    """Two tensors of one name in the sources: MergeKit breaks the tie by the shape of its graph."""
    same = {"one": (0, 2), "two": (0, 2)}
    slices = parts(models, same, same, same)
    for part in slices:
        for source in part["sources"]:
            source["parameters"] = {"weight": 0.5, "density": 0.5}
        part["sources"].append({"model": str(models["base"]), "layer_range": [0, 2]})
    recipe = write(
        tmp_path, None, slices=slices, merge_method="dare_ties", base_model=str(models["base"])
    )
    options = QUIET.model_copy(update={"random_seed": 3})
    report = gate.run(recipe, tmp_path / "out", options)
    require_agreement(report)
    require_same(tensors_in(tmp_path / "out"), stock(recipe, tmp_path / "plain", options))


WAYS = {
    "gradient": ({"weights": [[0.0, 1.0, 0.3], [1.0, 0.2]]}, {}),
    "out_dtype": ({"out_dtype": "bfloat16"}, {}),
    "dtype": ({"dtype": "bfloat16"}, {}),
    "shards": ({}, {"out_shard_size": 20_000}),
    "asynchronous": ({}, {"async_write": True, "out_shard_size": 20_000, "write_threads": 2}),
    "cloned": ({}, {"clone_tensors": True}),
    "union": ({"tokenizer_source": "union"}, {}),
    "base": ({"tokenizer_source": "base", "base_model": True}, {}),
    "more tokens": ({"tokenizer": {"source": "union", "pad_to_multiple_of": 100}}, {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_way_of_writing_is_watched_and_left_alone(
    models, tied_model, variant, tmp_path, way, tied
):
    base = tied_model if tied else models["base"]
    keys, options = dict(WAYS[way][0]), QUIET.model_copy(update=WAYS[way][1])
    members = listed(variant(base, 0.02, 1), variant(base, 0.02, 2))
    for member, weight in zip(members, keys.pop("weights", ()), strict=False):
        member["parameters"]["weight"] = weight
    if keys.get("base_model"):
        keys["base_model"] = members[0]["model"]
    recipe = write(tmp_path, members, **keys)
    report = gate.run(recipe, tmp_path / "out", options)
    require_agreement(report)
    require_same(tensors_in(tmp_path / "out"), stock(recipe, tmp_path / "plain", options))
    if "out_shard_size" in WAYS[way][1]:
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert left_in(tmp_path) == ["out", "out.compat", "plain", "recipe.yml"]


def watched(recipe, **settings):
    """A rehearsal's watch, which has run."""
    read = read_recipe(recipe)
    material = assess(read, QUIET, profile=True).material
    watch = Watch(material, "rehearsal", stop_at=None, blocking=True, exit_code=3, **settings)
    rehearse(read, QUIET, watch, inspect.unwrap(mergekit.merge.run_merge))
    return watch, material


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        *((architecture, "linear") for architecture in ARCHITECTURES),
        *(("llama", method) for method in ("ties", "slerp", "karcher")),
    ],
)
def test_the_states_are_those_of_transformers(
    tiny_model, variant, tmp_path, monkeypatch, architecture, method
):
    monkeypatch.setattr(merge_options, "choose_dtype", lambda _device: torch.float32)
    base = tiny_model(architecture)
    one, two = variant(base, 0.02, 1), variant(base, 0.02, 2)
    base = {"slerp": one, "karcher": None, "linear": None}.get(method, base)
    keys = {"parameters": {"t": 0.3}} if method == "slerp" else {}
    keys |= {} if base is None else {"base_model": str(base)}
    settings = {"density": 0.5} if "ties" in method else {}
    recipe = write(tmp_path, listed(one, two, **settings), merge_method=method, **keys)
    watch, material = watched(recipe)
    stock(recipe, tmp_path / "plain")
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.float32
    ).eval()
    ours = watch._observer._profile.layers().pooled
    for index, probe in enumerate(material.probes.probes):
        with torch.inference_mode():
            found = whole(input_ids=torch.tensor([probe.prompt]), output_hidden_states=True)
        for layer, states in enumerate(found.hidden_states):
            due = states[0].mean(dim=0).numpy()
            np.testing.assert_allclose(ours[layer][index], due, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["t5", "mamba"])
def test_what_cannot_be_watched_is_merged_and_the_report_says_so(
    tmp_path, tiny_tokenizer, kind, caplog
):
    """MergeKit knows T5's gated variant; Mamba's first state is not what its embeddings give."""
    common = {"vocab_size": tiny_models.VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
    config, build = {
        "t5": (
            transformers.T5Config(
                **common,
                **{"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
                decoder_start_token_id=0,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            ),
            transformers.T5ForConditionalGeneration,
        ),
        "mamba": (
            transformers.MambaConfig(**common, hidden_size=32, num_hidden_layers=2, state_size=8),
            transformers.MambaForCausalLM,
        ),
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    sources = [
        tiny_models.save_variant(tmp_path / "base", 0.02, seed, tmp_path / str(seed))
        for seed in (1, 2)
    ]
    recipe = write(tmp_path, listed(*sources))
    report = gate.run(recipe, tmp_path / "out", QUIET)
    assert report.monitor is None
    assert {"t5": "encoder-decoder", "mamba": "differ"}[kind] in report.monitor_reason
    assert "the merge is not watched" in caplog.text
    assert report.evaluation.hidden is not None
    document = json.loads(report.path.read_text(encoding="utf-8"))
    assert document["monitor"] is None
    assert document["monitor_reason"] == report.monitor_reason
    # A rehearsal makes it whole and reads it back.
    always = write(tmp_path, listed(*sources), {**OPEN, "rehearse": "always"})
    checked = gate.check(always, QUIET)
    assert "made whole and read back" in checked.rehearsal.notes[0]
    assert checked.rehearsal.hidden == report.evaluation.hidden


def planned(recipe, out):
    """MergeKit's targets, as its run_merge plans them."""
    config = read_recipe(recipe).config
    info = get_architecture_info(config, QUIET)
    LoaderCache().setup(options=QUIET)
    settings = config.models[0].model.config()
    planner = MergePlanner(config, info, options=QUIET, out_model_config=settings)
    return planner.plan_to_disk(str(out))


def stage_by_name(name):
    if found := re.search(r"layers\.(\d+)\.", name):
        return int(found.group(1)) + 1
    return 0 if "embed" in name else DEPTH + 1


@pytest.mark.parametrize("in_layer_order", [True, False])
def test_the_schedule_is_mergekits_with_the_layers_in_order(deep, tmp_path, in_layer_order):
    recipe = write(tmp_path, listed(deep["one"], deep["two"]))
    targets = planned(recipe, tmp_path / "out")
    saves = [task for task in targets if isinstance(task, SaveTensor)]
    stages = watch_layers(
        saves,
        stage_by_name,
        DEPTH + 2,
        lambda *_: None,
        pytest.fail,
        in_layer_order=in_layer_order,
    )
    plain = [handle.task() for handle in Executor(targets).schedule.tasks]
    executor = WatchedExecutor([*targets, *stages], in_layer_order=in_layer_order)
    handles = executor.schedule.tasks
    tasks = [handle.task() for handle in handles]
    assert [task.stage for task in tasks if task in stages] == list(range(DEPTH + 2))
    others = [task for task in tasks if task not in stages and not isinstance(task, SetAside)]
    assert Counter(others) == Counter(plain)
    assert set(Counter(others).values()) == {1}
    assert (others == plain) is not in_layer_order
    place = {handle: index for index, handle in enumerate(handles)}
    last = executor.schedule.last_use_index
    for handle, index in place.items():
        assert last[handle] >= index
        for needed in handle.arguments().values():
            assert place[needed] < index <= last[needed]
    order = [stage_by_name(t.tensor_name) for t in others if isinstance(t, SaveTensor)]
    assert (order == sorted(order)) is in_layer_order


def test_a_plan_without_stages_is_scheduled_by_mergekit(models, tmp_path):
    """A merge in another thread meets this executor too, whatever a rehearsal here wants."""
    targets = planned(write(tmp_path, listed(models["one"], models["two"])), tmp_path / "out")
    plain = [handle.task() for handle in Executor(targets).schedule.tasks]
    executor = WatchedExecutor(targets, saving=False)
    assert [handle.task() for handle in executor.schedule.tasks] == plain


@pytest.mark.parametrize("in_layer_order", [True, False])
def test_a_watch_holds_the_tensors_of_one_layer(deep, tmp_path, monkeypatch, in_layer_order):
    """In whichever order MergeKit makes them, and each bit for bit what it saves."""
    recipe = write(tmp_path, listed(deep["one"], deep["two"]))
    due = stock(recipe, tmp_path / "plain")
    alive: list[tuple[int, weakref.ref]] = []
    seen = []

    def step(stage, tensors):
        assert {name for name in due if stage_by_name(name) == stage} == tensors.keys()
        assert all(torch.equal(tensor, due[name]) for name, tensor in tensors.items())
        alive.extend((stage, weakref.ref(tensor)) for tensor in tensors.values())
        assert {k for k, ref in alive if ref() is not None} == {stage}
        seen.append(stage)

    def plan(_config, saves, in_order):
        assert in_order is in_layer_order
        for kind in {type(save.tensor_task) for save in saves}:
            monkeypatch.setattr(kind, "execute", recorded(kind.execute, saves))
        return watch_layers(
            saves, stage_by_name, DEPTH + 2, step, pytest.fail, in_layer_order=in_order
        )

    def recorded(run, saves):
        stages = {save.tensor_task: stage_by_name(save.tensor_name) for save in saves}

        def execute(self, **arguments):
            tensor = run(self, **arguments)
            alive.append((stages[self], weakref.ref(tensor)))
            return tensor

        return execute

    with planned_with(plan, saving=False, in_layer_order=in_layer_order):
        config = read_recipe(recipe).config
        inspect.unwrap(mergekit.merge.run_merge)(config, str(tmp_path / "out"), QUIET)
    assert seen == list(range(DEPTH + 2))
    assert list((tmp_path / "out").glob("*.safetensors")) == []
    assert mergekit.merge.Executor is Executor
    assert mergekit.merge.MergePlanner is MergePlanner


def test_an_expert_with_a_nan_is_refused_before_anything_is_merged(deep, tmp_path):
    broken = tiny_models.save_variant(deep["base"], 0.02, 9, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.5.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    recipe = write(tmp_path, listed(deep["one"], broken))
    with pytest.raises(EvaluationError, match="NaN or infinite values in the weights"):
        gate.run(recipe, tmp_path / "out", QUIET)
    assert left_in(tmp_path) == ["broken", "recipe.yml"]


def one_layer(deep, layer, value):
    """A sum of two whose second weight is ``value`` in one layer (from 0), and 1 in all others."""
    members = listed(deep["one"], deep["two"])
    members[0]["parameters"]["weight"] = 0.5
    members[1]["parameters"]["weight"] = [
        {"filter": f"layers.{layer}.", "value": value},
        {"value": 0.5},
    ]
    return {"models": members, "parameters": {"normalize": False}}


def test_a_merge_that_overflows_ends_at_its_layer(deep, tmp_path):
    recipe = write(tmp_path, **one_layer(deep, 5, 1e38))
    with pytest.raises(MergeRejectedError) as caught:
        gate.run(recipe, tmp_path / "out", QUIET)
    assert caught.value.exit_code == 4
    document = json.loads((tmp_path / "out.compat" / "report.json").read_text(encoding="utf-8"))
    found = document["monitor"]
    assert found["stopped_at"] == 6
    assert [reading["layer"] for reading in found["layers"]] == [1, 2, 3, 4, 5]
    assert document["verdict"]["exit_code"] == found["verdict"]["exit_code"] == 4
    reason = document["verdict"]["reasons"][-1]
    assert (reason["rule"], reason["subject"]) == ("finite", "layer 6")
    assert left_in(tmp_path) == ["out.compat", "recipe.yml"]
    done = CliRunner().invoke(main, ["run", str(recipe), str(tmp_path / "out")])
    assert done.exit_code == 4, done.output
    assert left_in(tmp_path) == ["out.compat", "recipe.yml"]


def test_an_overflow_in_the_first_layer_has_no_layers_and_says_why(deep, tmp_path):
    recipe = write(tmp_path, **one_layer(deep, 0, 1e38))
    with pytest.raises(MergeRejectedError) as caught:
        gate.run(recipe, tmp_path / "out", QUIET)
    document = json.loads(caught.value.report.path.read_text(encoding="utf-8"))
    assert document["monitor"]["stopped_at"] == 1
    assert document["monitor"]["layers"] == []
    assert document["monitor"]["layers_reason"]


def test_broken_embeddings_end_the_merge_before_any_layer_was_read(deep, tmp_path):
    members = listed(deep["one"], deep["two"])
    members[0]["parameters"]["weight"] = [{"filter": "embed_tokens", "value": 1e39}, {"value": 0.5}]
    keys = {"models": members, "parameters": {"normalize": False}}
    for block in (OPEN, {**OPEN, "monitor": {"stop_at": 0.8}}):
        with pytest.raises(MergeRejectedError) as caught:
            gate.run(write(tmp_path, compat=block, **keys), tmp_path / "out", QUIET)
        assert caught.value.exit_code == 4
        assert caught.value.report.monitor.stopped_at == 0
        assert caught.value.report.verdict.reasons[-1].rule == "finite"
        assert left_in(tmp_path) == ["out.compat", "recipe.yml"]


def test_every_layer_is_told_in_the_log_and_in_the_bar(models, tmp_path, caplog, capsys):
    recipe = write(tmp_path, listed(models["one"], models["two"]))
    with caplog.at_level("INFO", logger="mergekit_collapse.watch.watch"):
        report = gate.run(recipe, tmp_path / "out", MergeOptions())
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in told] == [f"layer {k} of 2" for k in (0, 1, 2)]
    last = report.monitor.layers[-1]
    shown = f"distortion {last.worst:.3g}, variance {last.variance_ratio:.3g}"
    assert told[-1].startswith(f"layer 2 of 2: {shown}, rank {last.rank_ratio:.3g}")
    assert re.search(rf"watching: 100%.*2/2 .*{re.escape(shown)}", capsys.readouterr().err)


def test_an_overflow_is_seen_in_a_rehearsal(deep, tmp_path):
    block = {**OPEN, "rehearse": "always", "on_violation": "abort"}
    recipe = write(tmp_path, compat=block, **one_layer(deep, 5, 1e38))
    report = gate.check(recipe, QUIET)
    assert (report.verdict.exit_code, report.rehearsal.stopped_at) == (3, 6)
    with pytest.raises(MergeRefusedError) as caught:
        gate.run(recipe, tmp_path / "out", QUIET)
    assert caught.value.report.rehearsal.stopped_at == 6
    assert caught.value.report.monitor is None
    assert left_in(tmp_path) == ["out.compat", "recipe.compat", "recipe.yml"]
    done = CliRunner().invoke(main, ["check", str(recipe), "--rehearse"])
    assert done.exit_code == 3, done.output


def test_stop_at_ends_the_merge_at_the_first_layer_beyond_it(deep, tmp_path):
    recipe = write(tmp_path, **one_layer(deep, 7, 3.0))
    free = gate.run(recipe, tmp_path / "free", QUIET)
    require_agreement(free)
    worst = [reading.worst for reading in free.monitor.layers]
    assert worst[7] > 4 * max(worst[:7]), "the recipe must jump after layer 8"
    limit = (worst[7] + max(worst[:7])) / 2
    block = {**OPEN, "monitor": {"stop_at": limit}}
    recipe = write(tmp_path, compat=block, **one_layer(deep, 7, 3.0))
    with pytest.raises(MergeRejectedError) as caught:
        gate.run(recipe, tmp_path / "out", QUIET)
    stopped = caught.value.report.monitor
    assert stopped.stopped_at == 8
    assert [reading.worst for reading in stopped.layers] == worst[:8]
    reason = stopped.verdict.reasons[0]
    assert (reason.rule, reason.value, reason.limit) == ("stop_at", worst[7], limit)
    assert caught.value.report.verdict.exit_code == 4
    assert not [name for name in left_in(tmp_path) if name.startswith((".collapse-", "out.rej"))]
    assert not (tmp_path / "out").exists()


def test_a_poisoned_expert_ends_the_merge_at_its_layer(deep, tmp_path):
    """Weights of one layer that run no more, though every number in them is finite."""
    poisoned = tmp_path / "poisoned"
    shutil.copytree(deep["two"], poisoned)
    weights = load_file(poisoned / "model.safetensors")
    for name in weights:
        if name.startswith("model.layers.6.mlp."):
            weights[name] = -20 * weights[name]
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    for number, members in enumerate([("one", "two"), ("one", None)]):
        folders = [deep[name] if name else poisoned for name in members]
        recipe = write(tmp_path, listed(*folders), {**OPEN, "monitor": {"stop_at": 0.3}})
        out = tmp_path / f"out-{number}"
        if poisoned not in folders:
            assert gate.run(recipe, out, QUIET).monitor.stopped_at is None
            continue
        with pytest.raises(MergeRejectedError) as caught:
            gate.run(recipe, out, QUIET)
        stopped = caught.value.report.monitor
        assert stopped.stopped_at == 7
        assert max(reading.worst for reading in stopped.layers[:6]) < 0.05
        assert not out.exists()


@pytest.mark.slow
def test_a_rehearsal_stops_there_too_and_the_limit_itself_is_allowed(deep, tmp_path):
    changed = one_layer(deep, 7, 3.0)
    free = gate.run(write(tmp_path, **changed), tmp_path / "free", QUIET)
    worst = max(reading.worst for reading in free.monitor.layers)
    over = {**OPEN, "on_violation": "abort", "monitor": {"stop_at": worst * 0.999}}
    checked = gate.check(write(tmp_path, compat=over, **changed), QUIET, rehearse=True)
    assert checked.verdict.exit_code == 3
    assert checked.rehearsal.layers[-1].worst == worst
    assert checked.rehearsal.stopped_at == checked.rehearsal.layers[-1].layer
    exact = {**OPEN, "monitor": {"stop_at": worst}}
    made = gate.run(write(tmp_path, compat=exact, **changed), tmp_path / "out", QUIET)
    assert made.monitor.stopped_at is None


def test_a_stopped_merge_with_writing_threads_leaves_nothing(deep, tmp_path):
    recipe = write(tmp_path, **one_layer(deep, 5, 1e38))
    options = {"async_write": True, "out_shard_size": 1000, "write_threads": 4}
    with pytest.raises(MergeRejectedError):
        gate.run(recipe, tmp_path / "out", QUIET.model_copy(update=options))
    assert left_in(tmp_path) == ["out.compat", "recipe.yml"]


STRICT = {"probes": MORE_PROBES, "cache": False, "monitor": {"stop_at": 1e-9}}
STRICT["evaluate"] = {"max_distortion": 0.0}


@pytest.mark.parametrize("wanted", ["never", "always"])
def test_the_environments_warning_never_blocks(models, tmp_path, monkeypatch, wanted):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "warn")
    block = {**STRICT, "rehearse": wanted}
    recipe = write(tmp_path, listed(models["one"], models["far"]), block)
    report = gate.run(recipe, tmp_path / "out", QUIET)
    require_same(tensors_in(tmp_path / "out"), stock(recipe, tmp_path / "plain"))
    assert (report.verdict.decision, report.verdict.exit_code) == ("warn", 0)
    rules = [reason.rule for reason in report.verdict.reasons]
    assert set(rules) >= {"distortion", "stop_at", "max_distortion"}
    assert not (tmp_path / "out.rejected").exists()


def test_not_even_an_overflow_blocks_where_the_environment_only_warns(deep, tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "warn")
    report = gate.run(write(tmp_path, **one_layer(deep, 5, 1e38)), tmp_path / "out", QUIET)
    assert report.monitor.stopped_at == 6
    assert report.verdict.decision == "warn"
    assert {"finite", "check"} <= {reason.rule for reason in report.verdict.reasons}
    assert (tmp_path / "out" / "config.json").exists()


def test_on_violation_warn_is_about_the_gate_and_the_rehearsal_alone(models, tmp_path):
    members = listed(models["one"], models["far"])
    strict = {"max_distortion": 0.0}
    block = {**OPEN, "rehearse": "always", "probes": MORE_PROBES}
    block["evaluate"] = {"enabled": False, **strict}
    report = gate.run(write(tmp_path, members, block), tmp_path / "out", QUIET)
    assert report.verdict.decision == report.rehearsal.verdict.decision == "warn"
    assert {"distortion", "max_distortion"} <= {r.rule for r in report.verdict.reasons}
    for wanted in ("never", "always"):
        block = {**OPEN, "rehearse": wanted, "evaluate": strict}
        with pytest.raises(MergeRejectedError) as caught:
            gate.run(write(tmp_path, members, block), tmp_path / "second", QUIET)
        assert caught.value.report.evaluation.verdict.exit_code == 4
        assert not (tmp_path / "second").exists()
    # Nor does it hold a stop back.
    block = {**OPEN, "monitor": {"stop_at": 1e-9}}
    with pytest.raises(MergeRejectedError):
        gate.run(write(tmp_path, members, block), tmp_path / "second", QUIET)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of all temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


REHEARSED = {
    "linear": {},
    "dare_ties": {"seed": 5, "base_model": "base", "density": 0.5},
    "gradient": {"weight": [0.2, 0.9]},
    "tokenizer": {"tokenizer": {"source": "union", "pad_to_multiple_of": 100}},
    "slices": {"slices": [{"one": (0, 2), "two": (0, 2)}, {"one": (1, 2), "two": (0, 1)}]},
}


@pytest.mark.parametrize("way", REHEARSED)
def test_a_rehearsal_is_the_real_merge_and_leaves_no_trace(models, tmp_path, temporary, way):
    settings = dict(REHEARSED[way])
    options = QUIET.model_copy(update={"random_seed": settings.pop("seed", None)})
    keys = {"merge_method": way if way == "dare_ties" else "linear"}
    if base := settings.pop("base_model", None):
        keys["base_model"] = str(models[base])
    keys["tokenizer"] = settings.pop("tokenizer", None)
    ranges = settings.pop("slices", ())
    members = None if ranges else listed(models["one"], models["two"], **settings)
    if ranges:
        keys["slices"] = parts(models, *ranges)
        keys["parameters"] = {"weight": 1.0}
    recipe = write(tmp_path, members, **keys)
    checked = gate.check(recipe, options, rehearse=True)
    assert left_in(temporary) == []
    assert left_in(tmp_path) == ["recipe.compat", "recipe.yml", "temporary"]
    assert left_in(tmp_path / "recipe.compat") == ["report.json"]
    made = gate.run(recipe, tmp_path / "out", options)
    assert checked.rehearsal.source == "rehearsal"
    assert checked.rehearsal.hidden == made.evaluation.hidden
    assert checked.rehearsal.predictive == made.evaluation.predictive
    assert checked.rehearsal.layers == made.evaluation.layers
    assert left_in(temporary) == []


def test_rehearsed_adapters_are_forgotten_with_their_folder(
    models, tmp_path, temporary, monkeypatch
):
    from peft import LoraConfig, get_peft_model

    # The table is the process's: other tests in it may have merged adapters that stay.
    monkeypatch.setattr(LoaderCache, "loaders", {})
    members = []
    for seed in (1, 2):
        whole = transformers.AutoModelForCausalLM.from_pretrained(models["base"])
        settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            get_peft_model(whole, settings).save_pretrained(tmp_path / f"lora{seed}")
        members += listed(f"{models['base']}+{tmp_path / f'lora{seed}'}")
    recipe = write(tmp_path, members)
    first = gate.check(recipe, QUIET, rehearse=True)
    assert left_in(temporary) == []
    assert [model for model in LoaderCache.loaders if model.lora is not None] == []
    again = gate.check(recipe, QUIET, rehearse=True)
    assert again.rehearsal.hidden == first.rehearsal.hidden
    options = QUIET.model_copy(update={"lora_merge_cache": str(tmp_path / "adapters")})
    made = gate.run(recipe, tmp_path / "out", options)
    assert made.evaluation.hidden == first.rehearsal.hidden
    assert left_in(temporary) == []


@pytest.fixture(scope="module")
def interval(models, tmp_path_factory):
    """r² of two experts that are moderately far apart, and its interval."""
    block = {**OPEN, "probes": MORE_PROBES}
    folder = tmp_path_factory.mktemp("interval")
    recipe = write(folder, listed(models["one"], models["two"]), block)
    geometry = gate.check(recipe, QUIET).measurement.hidden
    found = geometry.confidence.ball_radius_squared
    assert found.low < geometry.ball.radius_squared < found.high
    return found.low, geometry.ball.radius_squared, found.high


def borderline(folder, models, limit, *, rehearse="auto", mds=None, **evaluate):
    block = {"probes": MORE_PROBES, "cache": False, "rehearse": rehearse, "evaluate": evaluate}
    block["budget"] = {"distortion": limit, "mds": mds}
    return write(folder, listed(models["one"], models["two"]), block)


def test_a_rehearsal_is_due_where_the_limit_is_within_the_interval(models, tmp_path, interval):
    low, value, high = interval
    for limit, due in [
        (low * 0.9, False),
        ((low + value) / 2, True),
        ((value + high) / 2, True),
        (high * 1.1, False),
    ]:
        report = gate.check(borderline(tmp_path, models, limit), QUIET)
        assert (report.rehearsal is not None) is due
        assert (report.verdict.decision == "allow") is (due or limit > high)


def test_a_good_rehearsal_overrules_a_borderline_refusal(models, tmp_path, interval):
    low, value, _ = interval
    limit = (low + value) / 2
    recipe = borderline(tmp_path, models, limit, rehearse="never")
    refused = gate.check(recipe, QUIET)
    assert (refused.verdict.decision, refused.rehearsal) == ("refuse", None)
    report = gate.run(borderline(tmp_path, models, limit), tmp_path / "out", QUIET)
    assert report.verdict.decision == report.rehearsal.verdict.decision == "allow"
    assert report.evaluation.hidden == report.rehearsal.hidden
    assert (tmp_path / "out" / "config.json").exists()
    # Without a limit of its own it has nothing to say about the distortion.
    silent = borderline(tmp_path, models, limit, max_distortion=None)
    assert {r.rule for r in gate.check(silent, QUIET).verdict.reasons} == {"distortion"}
    with pytest.raises(MergeRefusedError):
        gate.run(silent, tmp_path / "bad", QUIET)
    # A bad one does not, and neither does it publish.
    bad = borderline(tmp_path, models, limit, max_distortion=0.0)
    with pytest.raises(MergeRefusedError) as caught:
        gate.run(bad, tmp_path / "bad", QUIET)
    assert {reason.rule for reason in caught.value.report.verdict.reasons} == {"max_distortion"}
    # Nor is what is clearly over the limit rehearsed at all.
    with pytest.raises(MergeRefusedError) as caught:
        gate.run(borderline(tmp_path, models, low * 0.5), tmp_path / "bad", QUIET)
    assert caught.value.report.rehearsal is None
    assert left_in(tmp_path) == ["bad.compat", "out", "out.compat", "recipe.compat", "recipe.yml"]


def test_no_rehearsal_overrules_the_merging_difficulty(models, tmp_path, interval):
    low, value, _ = interval
    recipe = borderline(tmp_path, models, (low + value) / 2, mds=1.0)
    report = gate.check(recipe, QUIET)
    assert report.rehearsal.verdict.decision == "allow"
    assert (report.verdict.decision, report.verdict.exit_code) == ("refuse", 3)
    assert {reason.rule for reason in report.verdict.reasons} == {"mds"}
    with pytest.raises(MergeRefusedError) as caught:
        gate.run(recipe, tmp_path / "out", QUIET)
    assert "mds" in {reason.rule for reason in caught.value.report.verdict.reasons}
    assert not (tmp_path / "out").exists()


def test_no_room_for_what_waits_ends_the_watch_and_not_the_merge(deep, tmp_path, monkeypatch):
    """A drawn merge keeps MergeKit's order, in which layer 10 comes before layer 2."""
    members = [*listed(deep["one"], deep["two"], density=0.5)]
    keys = {"merge_method": "dare_ties", "base_model": str(deep["base"])}
    options = QUIET.model_copy(update={"random_seed": 3})
    recipe = write(tmp_path, members, **keys)
    plain = stock(recipe, tmp_path / "plain", options)

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    report = gate.run(recipe, tmp_path / "out", options)
    assert report.monitor is None
    assert "No space left on device" in report.monitor_reason
    assert report.evaluation.hidden is not None
    require_same(tensors_in(tmp_path / "out"), plain)
    # Where the watch decides, nothing passes unwatched.
    for keep in ({"monitor": {"stop_at": 0.8}}, {"rehearse": "always"}):
        block = {**OPEN, "on_violation": "abort", **keep}
        recipe = write(tmp_path, members, block, **keys)
        with pytest.raises(EvaluationError, match="No space left on device"):
            gate.run(recipe, tmp_path / "none", options)
        assert not (tmp_path / "none").exists()


def test_a_plan_is_the_threads_own(models, tmp_path):
    """What is planned while a watched merge runs elsewhere is stock."""
    import threading

    recipe = write(tmp_path, listed(models["one"], models["two"]))
    config, seen = read_recipe(recipe).config, []

    def other():
        merge = inspect.unwrap(mergekit.merge.run_merge)
        merge(config, str(tmp_path / "other"), QUIET)
        seen.append(True)

    with planned_with(lambda *_: pytest.fail("planned twice"), saving=False):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [True]
    require_same(tensors_in(tmp_path / "other"), stock(recipe, tmp_path / "plain"))


def test_a_gated_configuration_is_merged_as_run_merge_is_called(models, tmp_path):
    """In-process, with MergeKit's own record in the place of a file."""
    raw = yaml.safe_load(write(tmp_path, listed(models["one"], models["two"])).read_text())
    config = MergeConfiguration.model_validate(raw)
    report = mergekit.merge.run_merge(config, str(tmp_path / "out"), QUIET)
    require_agreement(report)
    assert report.evaluation.model == str(tmp_path / "out")
