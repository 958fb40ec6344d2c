"""SmolLM2-135M-Instruct and the demo's adapters: the verdicts, and a blind spot on record."""

import os
from pathlib import Path

import pytest
import torch
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_collapse import gate
from mergekit_collapse.demo.run import write_recipe
from mergekit_collapse.demo.smollm2 import cache_folder, ensure_base, find_gguf
from mergekit_collapse.errors import EvaluationError

pytestmark = pytest.mark.slow

DEMO = Path(gate.__file__).parent / "demo"
QUIET = MergeOptions(quiet=True)


@pytest.fixture(scope="module")
def base():
    try:
        find_gguf()
    except EvaluationError as error:
        # Where continuous integration skipped this, nobody would notice.
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return ensure_base(cache_folder())


@pytest.fixture
def checked(base, tmp_path):
    def checked(name):
        torch.set_num_threads(2)
        return gate.check(write_recipe(DEMO, tmp_path, base, name), QUIET)

    return checked


def test_the_converted_model_speaks(base):
    """The tokenizer and every tensor came through: the model knows what it was trained on."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        following = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode(following) == " Paris"


def test_gently_trained_experts_are_allowed(checked):
    report = checked("good")
    assert report.verdict.decision == "allow"
    assert report.deciding.ball.radius_squared < 0.15


def test_experts_trained_too_hot_are_refused(checked):
    report = checked("doomed")
    assert report.verdict.exit_code == 3
    assert report.deciding.ball.radius_squared > 0.6
    assert {r.rule for r in report.verdict.reasons} == {"distortion", "mds"}


def test_swapped_labels_are_a_blind_spot_of_hidden_states(checked):
    """An adapter and its twin with swapped labels: near in hidden space, so the default allows
    them, and far apart where their answers begin. Their merge answers at random (the demo shows
    it). This test documents the limit; it is no claim that the gate handles it.
    """
    report = checked("twin")
    assert report.verdict.decision == "allow"
    hidden, predictive = (
        geometry.own_task.tasks[1].squared[0, 1]
        for geometry in (report.measurement.hidden, report.measurement.predictive)
    )
    assert hidden < 0.25
    assert predictive > 0.5
