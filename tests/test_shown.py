"""What a person reads, in the terminal and in the model card, and the same numbers as JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_states import hidden_states
from mergekit.config import MergeConfiguration

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.formats.card import card_section
from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.geometry.measured import Measured
from mergekit_collapse.judging import judge
from mergekit_collapse.probes.probes import Probe, ProbeSet, ProbeTask
from mergekit_collapse.recipe.coefficients import recipe_coefficients
from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.report import terminal
from mergekit_collapse.report.document import to_document, to_json
from mergekit_collapse.report.report import MADE_BEFORE, Measurement, Report, cell
from mergekit_collapse.verdict import ALLOW, Verdict

pytestmark = pytest.mark.slow

PROBES = 24
TASK_OF_PROBE = np.repeat(np.arange(2), PROBES // 2)


def made_report(states, names=("near", "close", "od|d\x1b[2J"), **budget):
    """A report on made states: two tasks, owned by the first and the second expert.

    Both limits are set, so that both are told of.
    """
    config = MergeConfiguration.model_validate(
        {
            "merge_method": "linear",
            "models": [{"model": name, "parameters": {"weight": 0.5}} for name in names],
        }
    )
    owned = [
        {"name": task, "data": "rows.txt", "model": name}
        for task, name in zip(("first", "second"), names, strict=False)
    ]
    block = {
        "probes": {"builtin": False, "tasks": owned},
        "budget": {"distortion": 0.3, "mds": 3.0} | budget,
    }
    recipe = build_recipe(config, block)
    coefficients = recipe_coefficients(recipe)
    geometry = measure(
        hidden_states(states),
        len(states),
        TASK_OF_PROBE,
        [("first", 0), ("second", 1)],
        scale="variance",
        coefficients=coefficients.alpha,
        seed=0,
    )
    tasks = tuple(ProbeTask(n, i, "here", PROBES // 2) for i, n in enumerate(("first", "second")))
    probes = tuple(Probe(int(task), "a prompt", None) for task in TASK_OF_PROBE)
    measurement = Measurement(
        probe_set=ProbeSet(tasks, probes, "text"),
        token_digest="0123456789abcdef0123",
        device="cpu",
        dtype="float32",
        engine="whole-model",
        hidden=geometry,
        predictive=None,
        predictive_reason="it was not asked for",
    )
    verdict = judge(geometry, recipe.compat.budget, recipe.names, warn_only=False)
    versions = {"mergekit-collapse": "0.1.0"}
    return Report(recipe, coefficients, None, measurement, verdict, versions, {})


@pytest.fixture
def states():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(PROBES, 8))
    near = common + 0.1 * rng.normal(size=(2, PROBES, 8))
    return np.concatenate([near, -common[None]])


def test_the_terminal_shows_experts_distances_bounds_and_the_verdict(states):
    shown = terminal.readings(made_report(states))
    lines = shown.splitlines()
    assert lines[0].startswith("3 experts, linear; hidden space, layer 1, pooling mean")
    assert lines[0].endswith("24 probes")
    # The odd expert is the opposite of the others: no similarity, and the darkest shade.
    (odd,) = (line for line in lines[2:5] if "od|d" in line)
    assert "∞" in odd
    assert sum("█" in line for line in lines) == 3
    assert "Δ²" in lines[-1]
    assert "ball r²" in lines[-1]
    assert "\x1b" not in shown
    verdict = terminal.verdict(made_report(states))
    assert verdict.startswith("REFUSED\n")
    assert "\x1b" not in verdict


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, "hidden distortion (ball) 0.00"),
        ({"rule": "corollary"}, "hidden distortion (corollary) 0.0"),
        ({"rule": "weights", "mds": None}, "hidden distortion (weights) 0.00"),
        ({"over": "own_task"}, "hidden distortion (ball on own tasks) 0.00"),
        ({"over": "own_task", "rule": "weights"}, "(weights on own tasks) 0.00"),
        ({"distortion": None}, "ALLOWED: worst MDS (unrelated) 1."),
    ],
)
def test_an_allowed_merge_says_what_was_held_against_what(states, budget, said):
    report = made_report(states[:2], names=("near", "close"), **budget)
    shown = terminal.verdict(report)
    assert shown.startswith("ALLOWED")
    assert said in shown
    assert ("worst MDS" in shown) == (budget.get("mds", 3) is not None)


def made_evaluation(source, distortion=0.125):
    measured = Measured((1,), (distortion,), (), None, "no task has an owner")
    return Evaluation(source, None, hidden=measured)


def test_an_overruled_refusal_is_not_said_to_be_within(states):
    refused = made_report(states, mds=None)
    rehearsal = made_evaluation("rehearsal")
    report = replace(refused, verdict=ALLOW, rehearsal=rehearsal, rehearsal_reason=None)
    shown = terminal.verdict(report)
    assert "is over 0.3, but the rehearsal decides" in shown
    assert "hidden distortion (ball) 1" in shown
    scores = terminal.verdict(replace(made_report(states), verdict=ALLOW))
    assert "worst MDS (unrelated) ∞ is over 3" in scores


def test_a_finished_merge_is_judged_by_itself(states):
    report = replace(
        made_report(states),
        verdict=ALLOW,
        evaluation=made_evaluation("merged"),
        monitor_reason=MADE_BEFORE,
        rehearsal_reason=MADE_BEFORE,
    )
    assert terminal.verdict(report).startswith("ACCEPTED: ")
    assert "MDS" not in terminal.verdict(report)
    assert "ball" not in terminal.verdict(report)
    warned = replace(report, verdict=Verdict("warn", 0, report.gate_verdict.reasons))
    assert terminal.verdict(warned).startswith("WARNING, over the limits of compat.evaluate")


@pytest.mark.parametrize(
    ("code", "head"),
    [
        (4, "REJECTED: stopped at layer 2; nothing was written"),
        (0, "REJECTED: the merge was made, and is over its limits"),
    ],
)
def test_a_stopped_merge_is_not_said_to_be_made(states, code, head):
    """What only warned has stopped nothing."""
    verdict = Verdict("refuse" if code else "warn", code, ())
    monitor = Evaluation("monitor", None, stopped_at=2, verdict=verdict)
    report = replace(made_report(states), verdict=Verdict("refuse", 4, ()), monitor=monitor)
    assert terminal.verdict(report) == head


def test_the_gate_keeps_its_own_verdict(states):
    refused = made_report(states)
    own = replace(refused, geometry_verdict=refused.verdict)
    assert to_document(replace(own, verdict=ALLOW))["gate"]["decision"] == "refuse"
    assert to_document(refused)["gate"] == to_document(refused)["verdict"]
    warned = to_document(own.as_warning())
    assert warned["gate"] == warned["verdict"]
    assert warned["gate"]["decision"] == "warn"


def test_the_card_has_verdict_scores_digest_and_versions(states):
    card = card_section(to_document(made_report(states)))
    assert "**refuse**" in card
    assert "| expert | weight | MDS (unrelated) | predicted distortion |" in card
    assert "| ∞ |" in card
    assert "| od&#124;d&#92;x1b\\[2J |" in card
    assert "token digest 0123456789abcdef" in card
    assert "Versions: mergekit-collapse 0.1.0." in card


def test_a_degenerate_task_is_null_with_the_reason_at_every_key(states):
    states[:, TASK_OF_PROBE == 1] = 1.5
    document = json.loads(to_json(made_report(states)))
    task = document["geometry"]["hidden"]["own_task"]["second"]
    for key in ("distance", "squared_distance", "to_base", "predicted_distortion"):
        assert task[key] is None
        assert "degenerate on task 'second'" in task[f"{key}_reason"]
    assert document["geometry"]["predictive_reason"] == "it was not asked for"


def test_cells():
    assert [cell(v) for v in (0.12345, 1234.5, None)] == ["0.123", "1.23e+03", "-"]
    assert cell(None, "infinite") == "∞"
