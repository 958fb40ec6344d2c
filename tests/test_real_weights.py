"""SmolLM2-135M-Instruct and the demo's adapters: the verdicts before, during and after."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_collapse import gate
from mergekit_collapse.demo.run import write_recipe
from mergekit_collapse.errors import MergeRejectedError

pytestmark = pytest.mark.slow

DEMO = Path(gate.__file__).parent / "demo"


@pytest.fixture
def recipe(smollm2, tmp_path):
    def recipe(name):
        return write_recipe(DEMO, tmp_path, smollm2, name)

    return recipe


def test_the_converted_model_speaks(smollm2):
    """The tokenizer and every tensor came through: the model knows what it was trained on."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        following = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode(following) == " Paris"


def test_gently_trained_experts_are_merged_and_accepted(recipe, merge_options, tmp_path):
    report = gate.run(recipe("good"), tmp_path / "out", merge_options)
    assert report.verdict.decision == "allow"
    ball = report.deciding.ball.radius_squared
    assert ball < 0.2
    measured = report.evaluation.hidden.worst
    assert ball <= measured < 0.5
    assert report.monitor.hidden.worst == pytest.approx(measured, rel=1e-3)
    assert len(report.monitor.layers) == 30
    assert all(-20 < task.loss_percent < 5 for task in report.evaluation.tasks)
    assert "| sentiment |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_experts_trained_too_hot_are_refused_and_if_merged_rejected(
    recipe, merge_options, tmp_path
):
    path = recipe("doomed")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("compat:\n", "compat:\n  on_violation: warn\n"), "utf-8")
    with pytest.raises(MergeRejectedError) as caught:
        gate.run(path, tmp_path / "out", merge_options)
    report = caught.value.report
    assert report.deciding.ball.radius_squared > 0.6
    assert {r.rule for r in report.gate_verdict.reasons} == {"distortion"}
    found = report.evaluation
    # Of every expert it is known what its task lost, which decides in the place of distances.
    assert {r.rule for r in found.verdict.reasons} == {"max_merging_loss"}
    assert found.hidden.worst > 1
    assert (tmp_path / "out.rejected" / "report.json").is_file()
    assert not (tmp_path / "out").exists()


def test_swapped_labels_are_seen_by_a_rehearsal_alone(recipe, merge_options):
    """An adapter and its twin with swapped labels are near in hidden space, so the geometry
    allows them; their merge answers at random.
    """
    report = gate.check(recipe("twin"), merge_options, rehearse=True)
    assert report.verdict.exit_code == 3
    # No reason of the geometry's.
    assert {r.rule for r in report.verdict.reasons} == {"max_merging_loss"}
    assert report.rehearsal.hidden.worst < 0.1
