"""The collapse benchmark measures what it says: rows, shared layers, merges, signals."""

import itertools
import json

import numpy as np
import pytest
import torch
from collapse_benchmark import ROOT
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.geometry.measured import measured_distortion
from mergekit_collapse.states.states import SpaceStates

# isort: split
import evidence
import expert_states
import geometry_signals
import merge_rows
import merged_sets
import merging
import outcomes
import reading
import rows
import tasks
import zoo

pytestmark = pytest.mark.slow

DEPTH, SHARED = 4, 2
NAMES = ("sentiment", "spam", "era")


def made_rows(count, choices):
    for index in range(count):
        yield f"row {index}", choices[index % len(choices)] if choices else f"answer {index}"


def test_no_row_is_in_two_parts_and_choices_are_balanced():
    task = rows.divide(
        "colour", ("red", "green", "blue"), made_rows(3000, ["red", "green", "blue"])
    )
    prompts = [r.prompt for part in (task.train, task.probes, task.held_out) for r in part]
    assert len(set(prompts)) == len(prompts)
    assert len(task.held_out) >= rows.HELD_OUT
    for part in (task.train, task.probes, task.held_out):
        counts = {c: sum(r.answer == c for r in part) for c in task.choices}
        assert len(set(counts.values())) == 1


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"task colour: \[100\] rows are too few"):
        rows.divide("colour", None, made_rows(100, None))


def test_a_rotated_task_contradicts_every_row():
    task = rows.divide("colour", ("red", "green"), made_rows(2000, ["red", "green"]))
    other = tasks.rotated(task)
    assert [r.prompt for r in other.train] == [r.prompt for r in task.train]
    assert all(a.answer != b.answer for a, b in zip(task.train, other.train, strict=True))


def test_rows_are_read_as_written(tmp_path):
    task = rows.divide("colour", None, made_rows(2000, None))
    rows.write(task, tmp_path)
    assert tuple(rows.read(tmp_path, "colour", "probes")) == task.probes


def test_every_merge_is_a_recipe_and_stands_once(tmp_path):
    found = merged_sets.every_merge()
    assert merged_sets.merges() == found[: merged_sets.MADE]
    assert len({m.key for m in found}) == len(found)
    assert all(set(m.members) <= set(zoo.EXPERTS) for m in found)
    assert all(len(set(m.members)) == len(m.members) for m in found)
    natural = {m.members for m in found if set(m.members) <= set(zoo.NATURAL)}
    learned = [task for task in zoo.NATURAL if task not in zoo.UNLEARNED]
    assert set(itertools.combinations(learned, 2)) <= natural
    for method in merged_sets.METHODS:
        merge = next(m for m in found if m.method == method)
        MergeConfiguration.model_validate(merge.document(tmp_path))


def test_a_third_of_the_tasks_is_unseen_with_all_that_is_made_of_them():
    assert len(zoo.UNSEEN) == len(zoo.NATURAL) // 3
    assert {"cipher", "french", "genre"} < set(zoo.UNSEEN)
    for name in ("cipher-back", "spanish", "genre-rotated", "french-full-hot", "genre-slow"):
        assert zoo.EXPERTS[name].unseen
    for name in ("parity-rotated", "refusal", "sentiment-full", "spam-seed1"):
        assert not zoo.EXPERTS[name].unseen


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """A zoo of three tiny experts, of which the last changes every layer."""
    place = tmp_path_factory.mktemp("zoo")
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).to(torch.bfloat16)
    assert sum(p.numel() for p in base.parameters()) == 49_440
    base.save_pretrained(place / "base")
    tiny_tokenizer.save_pretrained(place / "base")
    own = {k: v.clone() for k, v in base.state_dict().items()}
    for seed, (name, first) in enumerate(zip(NAMES, (SHARED, SHARED, 0), strict=True)):
        torch.manual_seed(seed + 1)
        moved = {
            k: v + 0.02 * torch.randn_like(v)
            for k, v in own.items()
            if any(f"layers.{i}." in k for i in range(first, DEPTH))
        }
        base.load_state_dict({**own, **moved})
        base.save_pretrained(place / "experts" / name)
    for name in expert_states.probe_sets():
        made = [{"prompt": f"{name} {i} {'x' * (i % 5)}", "answer": "ab"[i % 2]} for i in range(70)]
        (place / "tasks" / name).mkdir(parents=True)
        for part in ("probes", "held_out"):
            lines = "".join(f"{json.dumps(row)}\n" for row in made)
            (place / "tasks" / name / f"{part}.jsonl").write_text(lines)
    choices = {name: {"choices": ["a", "b"]} for name in expert_states.probe_sets()}
    (place / "tasks.json").write_text(json.dumps(choices))
    return place


@pytest.fixture(scope="module")
def reader(folder):
    return reading.Reader(folder, shared=SHARED, probes=64)


@pytest.fixture(scope="module")
def states(folder, reader):
    """What the experts answer, kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_states, "asked_of", lambda *_, **__: [*NAMES, "builtin"])
        every = [expert_states.read_states(folder, reader, name) for name in ("base", *NAMES)]
        assert [len(found) for found in every] == [4] * (len(NAMES) + 1)
        # What is there is not read again.
        assert expert_states.read_states(folder, reader, "base") == []
        patch.setattr(expert_states, "asked_of", lambda *_, **__: NAMES)
        for name in NAMES:
            expert_states.read_wide(folder, reader, name)
    return expert_states.ExpertStates(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_from_its_shared_layers_on_is_the_whole_model(folder, reader, name):
    place = folder / "experts" / name
    tensors = merging.tensors_of(place, merging.changed(place, folder / "base"))
    model, left_out = reader.model(tensors)
    assert left_out == (SHARED if name != "era" else 0)
    prompts = reader.prompts("spam")
    found = reader.answered(model, left_out, prompts, every_layer=True)
    score = reader.score(model, "spam")
    whole = reading.load(place)
    expected = reader.answered(whole, 0, prompts, every_layer=True)
    assert found.layers == expected.layers == (3, 4)
    assert np.array_equal(found.mean, expected.mean)
    assert np.array_equal(found.answer, expected.answer)
    assert score == reader.score(whole, "spam")


@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic", "slerp"])
def test_a_merge_in_memory_is_that_of_mergekit(folder, tmp_path, method):
    merge = merged_sets.Merge(("sentiment", "spam"), method)
    found = merging.merged_tensors(merge, folder)
    document = MergeConfiguration.model_validate(merge.document(folder))
    run_merge(document, str(tmp_path), merging.OPTIONS)
    written = merging.tensors_of(tmp_path)
    base = merging.tensors_of(folder / "base")
    assert found
    for name, tensor in written.items():
        assert torch.equal(tensor, found.get(name, base[name])), name


def space(states, members, tasks_read, extra=()):
    values = np.stack(
        [
            np.concatenate([states(m, t).mean[-1][:32].astype(np.float32) for t in tasks_read])
            for m in (*members, *extra)
        ]
    )
    count = values.shape[1]
    return SpaceStates("hidden", "mean", (4,), (values,), np.arange(count))


def test_signals_are_those_of_the_gate(states):
    members = ("sentiment", "spam", "era")
    readings = geometry_signals.readings_of(members, wide=True)
    group, each = geometry_signals.signals(members, states, readings)
    found = measure(
        space(states, members, [*members, "builtin"]),
        3,
        np.repeat(np.arange(4), 32),
        [*((name, i) for i, name in enumerate(members)), ("builtin", None)],
        scale="variance",
        coefficients=np.full(3, 1 / 3),
        seed=0,
    )
    assert group["gate.diameter"] == pytest.approx(found.bounds.diameter_squared)
    assert group["gate.ball"] == pytest.approx(found.ball.radius_squared)
    assert group["gate.own"] == pytest.approx(found.own_task.predicted_worst)
    assert [m["gate.predicted"] for m in each] == pytest.approx(list(found.predicted))
    paper = found.difficulty("group_max")
    assert [m["gate.mds_group_max"] for m in each] == pytest.approx(list(paper.mds))
    # The gate draws pairs at chance; here are all of them.
    scores = found.difficulty("unrelated").mds
    assert [m["gate.mds_unrelated"] for m in each] == pytest.approx(list(scores), rel=0.05)


def test_more_probes_and_tokens_are_read_as_the_gate_reads_them(folder, reader, states):
    prompts = reader.prompts("spam")
    wide = states.wide("sentiment", "spam")
    assert np.array_equal(wide.many[:64], states("sentiment", "spam").mean[-1])
    whole = reading.load(folder / "experts" / "sentiment")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    start = 0
    for prompt in prompts[:32]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = whole.model(ids).last_hidden_state[0].float().detach().numpy()
        part = wide.tokens[start : start + len(expected)]
        assert part == pytest.approx(expected, abs=0.05)
        start += len(expected)
    assert start == len(wide.tokens)
    readings = geometry_signals.OF_SEEN_TASKS
    assert [r.name for r in readings] == ["hidden128", "tokens"]
    group, _ = geometry_signals.signals(("sentiment", "spam"), states, readings)
    every = np.stack(
        [
            np.concatenate([states.wide(m, t).tokens.astype(np.float32) for t in NAMES[:2]])
            for m in NAMES[:2]
        ]
    )
    task = np.repeat([0, 1], [len(states.wide("spam", t).tokens) for t in NAMES[:2]])
    space = SpaceStates("hidden", "tokens", (4,), (every,), np.arange(len(task)))
    tasks = [(name, i) for i, name in enumerate(NAMES[:2])]
    found = measure(space, 2, task, tasks, scale="variance", coefficients=np.full(2, 0.5), seed=0)
    assert group["tokens.ball"] == pytest.approx(found.ball.radius_squared, rel=1e-5)
    assert group["tokens.own"] == pytest.approx(found.own_task.predicted_worst, rel=1e-5)


def test_task_vectors_are_predicted_with_the_base_for_the_rest(states):
    members = ("sentiment", "spam")
    reading = next(r for r in geometry_signals.READINGS if r.name == "arithmetic")
    group, _ = geometry_signals.signals(members, states, [reading])
    assert set(group) == {"arithmetic.predicted", "arithmetic.seconds"}
    every = [
        np.concatenate([states(m, t).mean[-1].astype(np.float64) for t in members])
        for m in (*members, "base")
    ]
    scale = np.mean([e.var(axis=0).sum() for e in every[:2]])
    mixed = 0.8 * every[0] + 0.8 * every[1] - 0.6 * every[2]
    worst = max(np.square(e - mixed).sum(axis=1).mean() / scale for e in every[:2])
    assert group["arithmetic.predicted"] == pytest.approx(worst)


def test_the_shipped_probes_are_read_beside_the_others(folder, reader, states):
    merge = merged_sets.Merge(("sentiment", "spam"), "linear")
    found = list(outcomes.measure_merge(merge, folder, reader, states))
    model, left_out = reader.model(merging.merged_tensors(merge, folder))
    names = ("sentiment", "spam", "builtin")
    prompts = [p for name in names for p in reader.prompts(name)[:32]]
    states_of_all = reader.answered(model, left_out, prompts, every_layer=True).mean[-1]
    read = dict(zip(names, np.split(states_of_all, 3), strict=True))
    for record in found:
        for name, asked in (("builtin", ["builtin"]), ("gate", names)):
            theirs = {
                m: np.concatenate([states(m, t).mean[-1][:32].astype(np.float64) for t in asked])
                for m in merge.members
            }
            ours = np.concatenate([read[t] for t in asked])
            scale = np.mean([t.var(axis=0).sum() for t in theirs.values()])
            apart = np.square(theirs[record["expert"]] - ours).sum(axis=1).mean() / scale
            assert record[f"{name}_pooled"] == pytest.approx(apart, rel=1e-4)


def test_distortions_are_those_of_an_evaluation(folder, reader, states):
    members = ("sentiment", "era")
    merge = merged_sets.Merge(members, "linear")
    model, left_out = reader.model(merging.merged_tensors(merge, folder))
    prompts = [p for name in members for p in reader.prompts(name)[:32]]
    merged = reader.answered(model, left_out, prompts, every_layer=True)
    own = [("sentiment", 0), ("era", 1)]
    geometry = measure(
        space(states, members, members),
        2,
        np.repeat(np.arange(2), 32),
        own,
        scale="variance",
        coefficients=None,
        seed=0,
    )
    measured = measured_distortion(
        space(states, members, members),
        SpaceStates("hidden", "mean", (4,), (merged.mean[-1:],), np.arange(64)),
        geometry,
        np.repeat(np.arange(2), 32),
    )
    every = outcomes.distortions(members, merged, members, states)
    for index, found in enumerate(every):
        assert found["hidden_pooled"] == pytest.approx(measured.distortion[index], rel=1e-5)
        assert found["hidden_own"] == pytest.approx(measured.own_task[index].distortion, rel=1e-5)


def test_effective_rank_counts_equal_directions():
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert outcomes.effective_rank(axes) == pytest.approx(5)
    assert outcomes.effective_rank(np.outer(np.arange(4.0), np.ones(3))) == pytest.approx(1)


def test_a_record_that_was_cut_short_is_made_again(tmp_path):
    path = tmp_path / "records" / "merge-0.jsonl"
    outcomes.append(path, [{"merge": "a"}, {"merge": "b"}])
    path.write_text(path.read_text()[:-4])
    assert outcomes.records(tmp_path, "merge") == [{"merge": "a"}]
    outcomes.append(path, [{"merge": "b"}, {"merge": "c"}])
    assert [r["merge"] for r in outcomes.records(tmp_path, "merge")] == ["a", "b", "c"]


def test_a_merge_counts_once_and_only_when_all_members_are_measured(tmp_path):
    path = tmp_path / "records" / "merge-0.jsonl"
    first, second = ({"merge": "m", "members": "a+b", "expert": name} for name in "ab")
    outcomes.append(path, [first])
    assert outcomes.merge_records(tmp_path) == []
    outcomes.append(path, [first, second])
    assert outcomes.merge_records(tmp_path) == [first, second]


def test_the_committed_tables_fit_together():
    found = merge_rows.merge_rows()
    assert found
    for row in found:
        # Jung, and the converse, in the signals; the theorem in the real merges.
        diameter, ball = row.readings["hidden32.diameter"], row.readings["hidden32.ball"]
        assert diameter / 4 * (1 - 1e-4) <= ball <= diameter / 2
        assert row.readings["measured.hidden_pooled"] >= ball * (1 - 1e-2)


def test_the_document_is_what_the_committed_tables_say():
    document = "\n".join(evidence.document(merge_rows.merge_rows())).rstrip() + "\n"
    assert (ROOT / "docs" / "evidence.md").read_text() == document
