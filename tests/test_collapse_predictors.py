"""What other work foretells collapse by, in benchmarks/collapse: the mathematics, and the rows."""

import csv
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from mergekit_collapse.parameters.conflict import ConflictSums

FOLDER = Path(__file__).parent.parent / "benchmarks" / "collapse"
sys.path.insert(0, str(FOLDER))

import cka_scores  # noqa: E402  (found by the path above)
import gradient_distance  # noqa: E402
import mergelens_scores  # noqa: E402
import parameter_conflict_scores  # noqa: E402
from cka_scores import linear_cka  # noqa: E402
from gradient_distance import compare, gradient, keep, readings  # noqa: E402
from mergelens_scores import answer_rows  # noqa: E402
from parameter_conflict_scores import conflict_rows  # noqa: E402
from predictor_rows import (  # noqa: E402
    PredictorRow,
    append,
    left_to_do,
    pair_rows,
    read_groups,
    row,
)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(size, seed=0):
    return np.linalg.qr(drawn(size, size, seed=seed))[0]


def value_of(rows, predictor, expert=""):
    (found,) = (r.value for r in rows if (r.predictor, r.expert) == (predictor, expert))
    return found


# Linear CKA


def feature_form(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return np.linalg.norm(y.T @ x) ** 2 / norms


def unbiased_hsic(k, lk):
    """The U-statistic over all quadruples of different probes, by its definition."""
    quadruples = list(itertools.permutations(range(len(k)), 4))
    total = sum(k[i, j] * (lk[i, j] + lk[q, r] - 2 * lk[i, q]) for i, j, q, r in quadruples)
    return total / len(quadruples)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_one_with_itself_and_symmetric(debiased):
    found = linear_cka(drawn(3, 12, 5), debiased=debiased)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T)
    assert found[0, 1] < 0.9


def test_cka_from_gram_matrices_is_cka_from_features():
    states = drawn(3, 20, 7)
    expected = [[feature_form(x, y) for y in states] for x in states]
    np.testing.assert_allclose(linear_cka(states), expected)


def test_debiased_cka_is_made_of_u_statistics():
    x, y = drawn(2, 7, 3)
    k, lk = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, lk) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(lk, lk))
    np.testing.assert_allclose(linear_cka(np.stack([x, y]), debiased=True)[0, 1], expected)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_sees_no_rotation_scale_or_shift(debiased):
    states = drawn(2, 30, 6)
    moved = states.copy()
    moved[1] = 1e-3 * states[1] @ orthogonal(6) + drawn(6, seed=3)
    expected = linear_cka(states, debiased=debiased)
    np.testing.assert_allclose(linear_cka(moved, debiased=debiased), expected)


def test_cka_sees_other_linear_maps():
    x = drawn(40, 6)
    stretched = x @ np.diag([10.0, 1, 1, 1, 1, 1])
    assert linear_cka(np.stack([x, stretched]))[0, 1] < 0.7


def test_of_unrelated_states_only_debiased_cka_is_about_zero():
    found = [
        [linear_cka(drawn(2, 24, 100, seed=s), debiased=debiased)[0, 1] for s in range(50)]
        for debiased in (False, True)
    ]
    assert min(found[0]) > 0.5
    assert abs(np.mean(found[1])) < 0.02


def test_cka_does_not_depend_on_the_others():
    states = drawn(4, 10, 5)
    np.testing.assert_allclose(linear_cka(states)[:2, :2], linear_cka(states[:2]))


def test_cka_is_undefined_for_states_that_do_not_vary():
    states = drawn(2, 10, 4)
    states[1] = 3.0
    found = linear_cka(states)
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan(found[1]).all()


def test_cka_refuses_what_it_cannot_tell():
    states = drawn(3, 10, 4)
    states[2, 5, 1] = np.inf
    with pytest.raises(ValueError, match=r"experts \[2\] have NaN or infinite states"):
        linear_cka(states)
    with pytest.raises(ValueError, match="needs at least 4 probes, got 3"):
        linear_cka(drawn(2, 3, 4), debiased=True)


def test_cka_rows_take_the_probes_of_the_groups_tasks(tmp_path):
    states = {name: drawn(2, 30, 5, seed=i) for i, name in enumerate("abc")}
    for name, task in (("a", "A"), ("b", "B"), ("c", "C-rotated")):
        (tmp_path / "experts" / name).mkdir(parents=True)
        (tmp_path / "experts" / name / "training.json").write_text(json.dumps({"task": task}))
        (tmp_path / "states" / name).mkdir(parents=True)
        for start, asked in ((0, "A"), (10, "B"), (20, "C")):
            part = states[name][:, start : start + 10]
            np.savez(tmp_path / "states" / name / f"{asked}.npz", mean=part, last=2 * part**3)
    rows = list(cka_scores.scores(tmp_path, [("a", "c")]))
    a, c = (states[name][1, [*range(10), *range(20, 30)]] for name in "ac")
    assert value_of(rows, "cka_mean") == pytest.approx(1 - feature_form(a, c))
    assert value_of(rows, "cka_last", "c") == pytest.approx(1 - feature_form(a**3, c**3))
    assert {r.predictor for r in rows} == set(cka_scores.PREDICTORS)


# Gradients


def tiny_llama(layers=3, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def test_the_gradient_is_the_slope_of_the_loss():
    model = tiny_llama().double().eval()
    examples = [([5, 9, 11], [7]), ([3, 4], [20, 21, 22])]
    flat = gradient(model, examples, 1)
    upper = [p for n, p in model.named_parameters() if ".layers.1." in n or ".layers.2." in n]
    assert flat.numel() == sum(p.numel() for p in upper)

    def loss():
        total = 0.0
        for prompt, answer in examples:
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
            told = logits[len(prompt) - 1 : -1].log_softmax(-1)
            total -= float(told[torch.arange(len(answer)), answer].mean())
        return total / len(examples)

    step = torch.randn(flat.numel(), dtype=torch.float64) * 1e-3
    found = []
    with torch.no_grad():
        for sign in (1, -2):
            start = 0
            for parameter in upper:
                end = start + parameter.numel()
                parameter.add_(sign * step[start:end].view_as(parameter))
                start = end
            found.append(loss())
    # The model's norms are in float32 whatever its weights are.
    assert (found[0] - found[1]) / 2 == pytest.approx(float(flat @ step), rel=1e-3)


def test_a_gradient_needs_a_layer():
    with pytest.raises(ValueError, match="no layer 3 or above; give a lower one"):
        gradient(tiny_llama(), [([5], [7])], 3)


def kept(folder, vectors):
    files = [folder / f"{i}.safetensors" for i in range(len(vectors))]
    for file, vector in zip(files, vectors, strict=True):
        keep(file, torch.from_numpy(vector).float(), 1.5)
    return files


def test_kept_gradients_lie_as_far_apart_as_they_did(tmp_path):
    vectors = drawn(4, 3000) * np.array([[1e-6], [1.0], [30.0], [2.0]]) + 0.2
    norms, cosines, seconds = compare(kept(tmp_path, vectors), chunk=700)
    found = readings(norms, cosines)
    length = np.linalg.norm(vectors, axis=1)
    units = vectors / length[:, None]
    apart = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    np.testing.assert_allclose(found["l2"], apart, rtol=1e-3, atol=1e-6)
    unit_apart = np.linalg.norm(units[:, None] - units, axis=2)
    np.testing.assert_allclose(found["l2_unit"], unit_apart, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found["cosine"], 1 - units @ units.T, atol=1e-3)
    assert seconds.tolist() == [1.5] * 4


def test_opposed_equal_and_vanished_gradients(tmp_path):
    vector = drawn(500)
    files = kept(tmp_path, [vector, -2 * vector, vector.copy(), 0 * vector])
    norms, cosines, _ = compare(files)
    found = readings(norms, cosines)
    assert found["cosine"][0, 1] == pytest.approx(2)
    assert found["l2"][0, 2] == pytest.approx(0, abs=1e-6)
    assert np.isnan(found["cosine"][3]).all()


# Task vectors


def conflict(vectors, names):
    sums = ConflictSums(len(vectors))
    sums.add(torch.from_numpy(vectors))
    return sums.result("base", tuple(names), 1)


def test_a_groups_conflict_is_that_of_the_group_alone():
    vectors = drawn(4, 2000) * np.array([[1.0], [5.0], [0.3], [2.0]])
    rows = list(conflict_rows(("d", "a", "b"), conflict(vectors, "abcd"), 10.0, 1.0))
    alone = conflict(vectors[[3, 0, 1]], "dab")
    assert value_of(rows, "sign_change_ratio") == alone.mean("sign_change_ratio")
    assert value_of(rows, "magnitude_change_ratio") == alone.mean("magnitude_change_ratio")
    assert value_of(rows, "task_vector_cosine") == pytest.approx(1 - alone.mean_cosine)
    d = alone.cosine[0]
    assert value_of(rows, "task_vector_cosine", "d") == pytest.approx(1 - (d[1] + d[2]) / 2)
    assert value_of(rows, "task_vector_cosine_max") == pytest.approx(1 - alone.cosine.min())
    assert {r.predictor for r in rows} == set(parameter_conflict_scores.PREDICTORS)


def test_norms_of_task_vectors():
    vectors = np.zeros((2, 4))
    vectors[0, 0], vectors[1, 2] = 3.0, 6.0
    rows = list(conflict_rows(("a", "b"), conflict(vectors, "ab"), 12.0, 1.0))
    assert value_of(rows, "task_vector_norm") == 4.5
    assert value_of(rows, "task_vector_norm", "b") == 6
    assert value_of(rows, "task_vector_norm_max") == 6
    assert value_of(rows, "task_vector_norm_ratio") == 2
    assert value_of(rows, "task_vector_relative_norm_max") == 0.5


def test_an_expert_that_is_the_base_leaves_readings_undefined():
    vectors = drawn(2, 50)
    vectors[1] = 0
    rows = list(conflict_rows(("a", "b"), conflict(vectors, "ab"), 1.0, 1.0))
    assert value_of(rows, "task_vector_cosine") is None
    assert value_of(rows, "task_vector_norm_ratio") is None
    assert value_of(rows, "task_vector_norm", "b") == 0


# MergeLens


def pair_answer(score, unrounded):
    return {"score": score, "unrounded": unrounded, "seconds": 2.0}


ANSWER = {
    "based": [pair_answer(99.9, 99.91), pair_answer(70.0, 70.02)],
    "bare": [pair_answer(None, None)],
    "task_vectors": {"sign_disagreement_rate": 0.25, "tsv_interference": None, "seconds": 3.0},
    "diagnose": {"interference": 0.5, "seconds": 1.0},
}


def test_mergelens_is_turned_so_that_higher_is_worse():
    rows = list(answer_rows(("a", "b"), ANSWER))
    assert value_of(rows, "mergelens") == 30
    assert value_of(rows, "mergelens_unrounded") == pytest.approx(29.98)
    assert value_of(rows, "mergelens", "a") == pytest.approx(0.1)
    assert value_of(rows, "mergelens_no_base") is None
    assert value_of(rows, "mergelens_sign_disagreement") == 0.25
    assert value_of(rows, "mergelens_tsv_interference") is None
    assert value_of(rows, "mergelens_diagnose") == 0.5
    assert {r.seconds for r in rows if r.predictor == "mergelens"} == {4.0}
    named = {name for names in mergelens_scores.CALLS.values() for name in names}
    assert {r.predictor for r in rows} == named


def stand_in(tmp_path, version, count):
    """A program in the place of MergeLens's Python, that answers so many groups."""
    lines = "".join(f"read asked\necho '{json.dumps(ANSWER)}'\n" for _ in range(count))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{json.dumps({'version': version})}'\n{lines}")
    program.chmod(0o755)
    return program


def test_mergelens_is_asked_group_by_group(tmp_path):
    program = stand_in(tmp_path, "2.0.3", 2)
    groups = [("a", "b"), ("c", "d")]
    rows = list(mergelens_scores.scores(tmp_path, groups, program))
    assert [r.members for r in rows if r.predictor == "mergelens" and not r.expert] == [
        "a+b",
        "c+d",
    ]


def test_another_mergelens_is_refused(tmp_path):
    program = stand_in(tmp_path, "1.9", 1)
    with pytest.raises(SystemExit, match=r"has mergelens 1\.9, .* pip install mergelens==2\.0\.3"):
        list(mergelens_scores.scores(tmp_path, [("a", "b")], program))


def test_an_end_of_mergelens_is_told(tmp_path):
    program = stand_in(tmp_path, "2.0.3", 1)
    with pytest.raises(SystemExit, match="MergeLens ended with status 0"):
        list(mergelens_scores.scores(tmp_path, [("a", "b"), ("c", "d")], program))


def test_a_python_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SystemExit, match="nowhere cannot be run"):
        list(mergelens_scores.scores(tmp_path, [("a", "b")], tmp_path / "nowhere"))


def test_an_environment_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(mergelens_scores, "REQUIREMENTS", ("mergelens==2.0.3",))
    place = tmp_path / "mergelens-env" / "bin"

    def create(*_, **__):
        place.mkdir(parents=True)
        (place / "python").write_text("#!/bin/sh\necho 'No matching distribution' >&2\nexit 1\n")
        (place / "python").chmod(0o755)

    monkeypatch.setattr(mergelens_scores.venv, "create", create)
    with pytest.raises(SystemExit, match="No matching distribution\ninstall them elsewhere"):
        mergelens_scores.environment(tmp_path)


# Rows


def test_pairs_make_rows_of_a_group_and_its_experts():
    pairs = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 6.0], [2.0, 6.0, 0.0]])
    rows = list(pair_rows(("a", "b", "c"), "far", pairs, 0.5))
    assert [(r.expert, r.predictor, r.value) for r in rows] == [
        ("", "far", 3.0),
        ("", "far_max", 6.0),
        ("a", "far", 1.5),
        ("b", "far", 3.5),
        ("c", "far", 4.0),
    ]
    assert {(r.members, r.method, r.seconds) for r in rows} == {("a+b+c", "", 0.5)}


def test_rows_are_added_once_and_what_is_left_is_known(tmp_path):
    output = tmp_path / "predictors.csv"
    assert left_to_do([("a", "b")], ["x"], output) == [("a", "b")]
    first = [row("a+b", "", "x", 1 / 3, 0.1234567), row("a+b", "a", "x", math.nan, 1.0)]
    assert append(output, first) == 2
    assert append(output, [*first, row("a+c", "", "x", 2.0, 1.0)]) == 1
    with output.open(encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found == [
        list(PredictorRow._fields),
        ["a+b", "", "", "x", "0.333333333", "0.123"],
        ["a+b", "", "a", "x", "", "1"],
        ["a+c", "", "", "x", "2", "1"],
    ]
    groups = [("a", "b"), ("a", "c"), ("b", "c")]
    assert left_to_do(groups, ["x"], output) == [("b", "c")]
    assert left_to_do(groups, ["x", "y"], output) == groups


def test_an_interrupted_run_keeps_what_it_found(tmp_path):
    output = tmp_path / "predictors.csv"

    def stopped():
        yield row("a+b", "", "x", 1.0, 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append(output, stopped())
    assert left_to_do([("a", "b")], ["x"], output) == []


def test_groups_are_read_from_lines_a_table_or_all_pairs(tmp_path):
    lines, table = tmp_path / "groups.txt", tmp_path / "outcomes.csv"
    lines.write_text("a+b\n\na+b+c\na+b\n")
    table.write_text("merge,members,loss\n1,a+b,0\n2,a+b,1\n3,c+d,2\n")
    assert read_groups(lines, tmp_path) == [("a", "b"), ("a", "b", "c")]
    assert read_groups(table, tmp_path) == [("a", "b"), ("c", "d")]
    for name in "bac":
        (tmp_path / "experts" / name).mkdir(parents=True)
        (tmp_path / "experts" / name / "training.json").write_text("{}")
    assert read_groups(None, tmp_path) == [("a", "b"), ("a", "c"), ("b", "c")]


# All of it, on models in folders


def make_folder(folder):
    tokenizer, base = make_tokenizer(), tiny_llama()
    tokenizer.save_pretrained(folder / "base")
    base.save_pretrained(folder / "base")
    for number, name in enumerate(("left", "right", "twin")):
        model = tiny_llama()
        with torch.no_grad():
            for parameter in model.model.layers[2].parameters():
                # The twin does another's task, further from the base.
                torch.manual_seed(min(number, 1))
                parameter.add_(0.01 * (number + 1) * torch.randn_like(parameter))
        model.save_pretrained(folder / "experts" / name)
        told = {"task": "left" if name == "left" else "right"}
        (folder / "experts" / name / "training.json").write_text(json.dumps(told))
    for task, answer in (("left", "yes"), ("right", "no")):
        place = folder / "tasks" / task
        place.mkdir(parents=True)
        for part in ("train", "probes"):
            rows = [{"prompt": f"{task} {part} {i}?", "answer": answer} for i in range(5)]
            (place / f"{part}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))


@pytest.mark.slow
def test_models_in_folders_have_a_row_for_every_group(tmp_path):
    make_folder(tmp_path)
    groups = [("left", "right"), ("right", "twin"), ("left", "right", "twin")]
    output = tmp_path / "predictors.csv"
    rows = []
    for module, predictors in (
        (parameter_conflict_scores, parameter_conflict_scores.PREDICTORS),
        (gradient_distance, gradient_distance.PREDICTORS),
    ):
        extra = {"first_layer": 1} if module is gradient_distance else {}
        found = list(module.scores(tmp_path, groups, **extra))
        append(output, found)
        assert left_to_do(groups, predictors, output) == []
        rows += found
    twins = [r for r in rows if r.members == "right+twin"]
    # One task has one gradient at the base, but not at two experts.
    assert value_of(twins, "gradient_base_l2") == 0
    assert value_of(twins, "gradient_expert_l2") > 0
    # Their task vectors have one direction, and lengths of 2 to 3.
    assert value_of(twins, "task_vector_cosine") == pytest.approx(0, abs=1e-6)
    assert value_of(twins, "task_vector_norm_ratio") == pytest.approx(1.5, rel=1e-4)
    assert value_of(twins, "sign_change_ratio") == 0
    kept_again = list(gradient_distance.scores(tmp_path, groups, 1))
    assert [r.value for r in kept_again] == [r.value for r in rows if "gradient" in r.predictor]
