"""Gradients of the tasks' losses, and task vectors, as predictors of collapse."""

import json

import numpy as np
import pytest
import torch
from collapse_benchmark import drawn, value_of
from tiny_models import VOCABULARY, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

# isort: split
import gradient_distance
import parameter_conflict_scores
from gradient_distance import compare, gradient, keep, readings
from predictor_rows import append, left_to_do


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
