"""SmolLM2-135M-Instruct and the demo's adapters: the verdicts before, during and after."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_collapse import gate
from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.run import write_recipe
from mergekit_collapse.demo.scores import CHOICES
from mergekit_collapse.demo.smollm2 import ensure_base, find_gguf
from mergekit_collapse.errors import EvaluationError, MergeRejectedError

pytestmark = pytest.mark.slow

DEMO = Path(gate.__file__).parent / "demo"


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


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return MergeOptions(quiet=True, lora_merge_cache=str(tmp_path_factory.mktemp("adapters")))


@pytest.fixture
def recipe(base, tmp_path):
    def recipe(name):
        torch.set_num_threads(2)
        return write_recipe(DEMO, tmp_path, base, name)

    return recipe


def test_the_converted_model_speaks(base):
    """The tokenizer and every tensor came through: the model knows what it was trained on."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        following = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode(following) == " Paris"


def test_gently_trained_experts_are_merged_and_accepted(recipe, options, tmp_path):
    report = gate.run(recipe("good"), tmp_path / "out", options)
    assert report.verdict.decision == "allow"
    ball = report.deciding.ball.radius_squared
    assert ball < 0.2
    measured = report.evaluation.hidden.worst
    assert ball <= measured < 0.5
    assert report.monitor.hidden.worst == pytest.approx(measured, rel=1e-3)
    assert len(report.monitor.layers) == 30
    assert all(-20 < task.loss_percent < 5 for task in report.evaluation.tasks)
    assert "| sentiment |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_experts_trained_too_hot_are_refused_and_if_merged_rejected(recipe, options, tmp_path):
    path = recipe("doomed")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("compat:\n", "compat:\n  on_violation: warn\n"), "utf-8")
    with pytest.raises(MergeRejectedError) as caught:
        gate.run(path, tmp_path / "out", options)
    report = caught.value.report
    assert report.deciding.ball.radius_squared > 0.6
    assert {r.rule for r in report.gate_verdict.reasons} == {"distortion", "mds"}
    found = report.evaluation
    assert {r.rule for r in found.verdict.reasons} == {"max_distortion", "max_merging_loss"}
    assert (tmp_path / "out.rejected" / "report.json").is_file()
    assert not (tmp_path / "out").exists()


def test_swapped_labels_are_seen_by_a_rehearsal_alone(recipe, options):
    """An adapter and its twin with swapped labels are near in hidden space, so the geometry
    allows them; their merge answers at random.
    """
    report = gate.check(recipe("twin"), options, rehearse=True)
    assert report.verdict.exit_code == 3
    # No reason of the geometry's.
    assert {r.rule for r in report.verdict.reasons} == {"max_merging_loss"}
    assert report.rehearsal.hidden.worst < 0.1


GENTLE = {"sentiment": 1.0, "spam": 1.0, "era": 1.0}
ONE_HOT = {"sentiment": 1.0, "spam": 1.0, "era-hot": 1.0}
WEIGHTS = {"rule": "weights", "distortion": 0.25, "mds": None}
OPEN = {"max_distortion": None, "max_merging_loss": None, "on_collapse": "warn"}
ACTIONS = {
    "reweight": (
        {"sentiment": 0.9, "spam": 0.05, "era": 0.05},
        "linear",
        {"budget": WEIGHTS, "reweight": {"floor": 0.0}},
    ),
    "drop": (ONE_HOT, "ties", {}),
    "substitute": (ONE_HOT, "ties", {"substitute": {"pool": ["spam-hot", "era"]}}),
    "karcher": (GENTLE, "task_arithmetic", {"budget": WEIGHTS}),
}


@pytest.fixture
def refused(base, tmp_path):
    """Write a recipe of few probes that the geometry refuses, with an action or none."""
    # Of the two cores another test may have one: threads would wait for each other.
    torch.set_num_threads(1)

    def model(name):
        return f"{base}+{DEMO / 'adapters' / name}"

    def task(name):
        subject = name.removesuffix("-hot")
        return {
            **{"name": name, "model": model(name), "text": "{prompt}", "target": "{answer}"},
            "data": str(DEMO / "probes" / f"{subject}.jsonl"),
            "choices": list(CHOICES[subject]),
        }

    def write(action, on_violation):
        weights, method, keys = ACTIONS[action]
        if "substitute" in keys:
            keys = {"substitute": {"pool": [model(n) for n in keys["substitute"]["pool"]]}}
        density = {"density": 0.5} if method == "ties" else {}
        document = {
            "merge_method": method,
            **({} if method == "linear" else {"base_model": str(base)}),
            "models": [
                {"model": model(name), "parameters": {"weight": weight, **density}}
                for name, weight in weights.items()
            ],
            "dtype": "bfloat16",
            "compat": {
                "probes": {
                    **{"builtin": False, "samples": 12, "max_tokens": 48},
                    "tasks": [task(name) for name in weights],
                },
                **{"space": ["hidden"], "rehearse": "never", "evaluate": OPEN},
                **{"on_violation": on_violation, **keys},
            },
        }
        path = tmp_path / f"{on_violation}.yml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("action", ACTIONS)
def test_what_an_action_mends_is_better_when_it_is_really_merged(
    refused, options, tmp_path, action
):
    """Merged as it was written, and as the action made it: prediction, distortion and answers."""
    before = gate.run(refused(action, "warn"), tmp_path / "before", options)
    after = gate.run(refused(action, action), tmp_path / "after", options)
    limit = after.recipe.compat.budget.distortion
    assert before.verdict.decision == "warn"
    assert after.verdict.decision == "modified"
    assert after.remedy.reading_before > limit >= after.remedy.reading_after
    was, now = before.evaluation.hidden.worst, after.evaluation.hidden.worst
    assert now < was
    # No merge is nearer than the ball allows, and this one about as near as was predicted; ties
    # trims what it merges, which no prediction knows.
    assert now >= 0.95 * after.deciding.ball.radius_squared
    assert now == pytest.approx(max(after.deciding.predicted), abs=0.25)
    assert now < 0.5
    lost = [min(t.loss_percent for t in r.evaluation.tasks) for r in (before, after)]
    assert lost[1] > lost[0]
    kept = (tmp_path / "after" / "mergekit_config.yml").read_text(encoding="utf-8")
    assert kept == after.remedy.effective
