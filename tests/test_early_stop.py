"""Measuring in rounds, from the probes to the report."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from mergekit.common import ModelReference
from mergekit.options import MergeOptions
from test_state_store import OPTIONS, copied, seen  # noqa: F401  (fixtures)

from mergekit_collapse import gate
from mergekit_collapse.early_stop import in_rounds, rounds_of
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.geometry.sequential import LEVEL
from mergekit_collapse.probes.tokens import TokenizedProbe, TokenizedProbes, digest_of
from mergekit_collapse.report import terminal
from mergekit_collapse.report.reader import parse_report
from mergekit_collapse.states.hidden_states import CACHE, StateRequest, collect
from mergekit_collapse.states.joined import joined
from mergekit_collapse.states.states import SpaceStates, States

QUIET = MergeOptions(quiet=True)
EASY = {"distortion": 50.0, "mds": None}


def tokens(count, rounds):
    probes = tuple(TokenizedProbe((5 + i % 7, 6, 7 + i % 3), ()) for i in range(count))
    return TokenizedProbes(probes, np.zeros(count, dtype=np.int64), digest_of(probes), rounds)


def states(count, engine=CACHE, cached=("a", "b")):
    values = np.ones((2, count, 3), dtype=np.float32)
    space = SpaceStates("hidden", "mean", (1,), (values,), np.arange(count, dtype=np.int64))
    return States(
        ("a", "b"), 2, space, None, "it was not asked for", "cpu", "float32", engine, (), cached
    )


def walked(outcomes, rounds=None):
    """Which rounds are measured, and what is looked at, where looks say ``outcomes``."""
    measured, looked = [], []

    def measure(added, number):
        measured.append((number, len(added.probes)))
        return states(len(added.probes))

    def look(found, used, level):
        looked.append((len(used.probes), level))
        assert len(found.hidden.probe_of_row) == len(used.probes)
        assert found.hidden.probe_of_row.tolist() == list(range(len(used.probes)))
        return outcomes[len(looked) - 1]

    probes = tokens(40, (8, 16, 32, 40))
    found, stop = in_rounds(probes, measure, look, samples=40, rounds=rounds)
    assert len(found.hidden.probe_of_row) == stop.used.probes
    return measured, looked, stop


def test_a_round_is_measured_by_itself_and_none_after_the_last_that_is_needed():
    measured, looked, stop = walked([None, "below"])
    assert measured == [(0, 8), (1, 8)]
    assert [count for count, _ in looked] == [8, 16]
    assert (stop.used.samples, stop.samples, stop.used.outcome) == (16, 40, "below")
    assert stop.spent == pytest.approx(LEVEL / 2)


def test_after_all_probes_nothing_is_looked_at_and_all_may_be_spent():
    measured, looked, stop = walked([None, None, None])
    assert measured == [(0, 8), (1, 8), (2, 16), (3, 8)]
    assert [count for count, _ in looked] == [8, 16, 32]
    assert sum(level for _, level in looked) == stop.spent == pytest.approx(LEVEL)
    assert (stop.used.samples, stop.used.level, stop.used.outcome) == (40, 0.0, None)


def test_a_plan_fixes_the_rounds_whatever_is_seen():
    assert walked(["below", "below", "below"], rounds=3)[2].used.probes == 32
    assert walked([None, None], rounds=2)[2].used.probes == 16


def test_without_rounds_all_is_measured_at_once():
    found, stop = in_rounds(
        tokens(5, ()), lambda added, _: states(len(added.probes)), lambda *_: "below", samples=5
    )
    assert (stop, len(found.hidden.probe_of_row)) == (None, 5)


def test_the_rounds_of_a_plan_are_found_by_their_digest():
    probes = tokens(40, (8, 16, 32, 40))
    assert rounds_of(probes, None) is None
    assert [rounds_of(probes, probes.first(n).digest) for n in (1, 2, 4)] == [1, 2, 4]
    assert rounds_of(tokens(5, ()), tokens(5, ()).digest) == 1
    with pytest.raises(InvalidRecipeError, match=r"not those of the plan.*check --plan"):
        rounds_of(probes, "0" * 64)


def test_only_what_was_cached_in_every_round_is_said_to_be():
    both = joined(states(2), states(3, "layer by layer", ("b",)), idle=CACHE)
    assert (both.engine, both.cached) == ("layer by layer", ("b",))
    assert joined(states(2, "whole-model", ()), states(3), idle=CACHE).engine == "whole-model"


def again(probes, places):
    """Some of the probes, which may stand in several rounds."""
    chosen = tuple(probes.probes[place] for place in places)
    return replace(probes, probes=chosen, digest=digest_of(chosen))


@pytest.mark.slow
@pytest.mark.parametrize("places", [range(12), [*range(5), 2, 7, 8, 0, 2, 9, 7], [*range(5)] * 3])
def test_joined_rounds_are_the_states_of_all_probes(tiny_model, variant, places):
    base = tiny_model("llama")
    models = [ModelReference.parse(str(m)) for m in (base, variant(base, 0.05))]
    probes = again(tokens(12, (5, 12)), list(places)[:12])
    asked = StateRequest(True, "last", "tokens", profile=True)

    def run(some):
        return collect(models, ["a", "b"], 2, some, asked, OPTIONS)

    # With rounds in the probes, a model that is run once takes its statistics in the same rounds.
    whole = run(probes)
    parts = joined(run(probes.added(0)), run(probes.added(1)), idle=CACHE)
    for one, other in ((whole.hidden, parts.hidden), (whole.predictive, parts.predictive)):
        assert np.array_equal(one.probe_of_row, other.probe_of_row)
        np.testing.assert_allclose(one.values[0], other.values[0], atol=1e-5)
    for one, other in zip(whole.layers, parts.layers, strict=True):
        for a, b in zip(one.pooled, other.pooled, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        for a, b in zip(one.statistics, other.statistics, strict=True):
            assert b.variance == pytest.approx(a.variance, rel=1e-4)
            assert b.effective_rank == pytest.approx(a.effective_rank, rel=1e-4)


def recipe(folder, models, weights=(1.0, 1.0), rows=None, **compat):
    probes = {"samples": "auto", "max_tokens": 16}
    if rows is not None:
        lines = "".join(json.dumps({"text": f"Number {i} is odd"}) + "\n" for i in range(rows))
        (folder / "rows.jsonl").write_text(lines)
        probes |= {"builtin": False, "tasks": [{"name": "t", "data": "rows.jsonl"}]}
    listed = [
        {"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)
    ]
    text = {"merge_method": "linear", "models": listed, "dtype": "float32"}
    text["parameters"] = {"normalize": False}
    text["compat"] = {"probes": probes, **compat}
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return path


@pytest.mark.slow
def test_far_from_the_limit_few_probes_are_used_and_the_report_says_so(copied, tmp_path):  # noqa: F811
    models = [copied("one"), copied("two", 0.02)]
    report = gate.check(recipe(tmp_path, models, rehearse="never"), QUIET)
    document = json.loads(report.path.read_text())
    probes = document["probes"]
    assert report.verdict.decision == "allow"
    assert (probes["samples"], [t["rows"] for t in probes["tasks"]]) == (8, [8])
    rounds = probes["rounds"]
    assert (rounds["samples"], rounds["probes"], rounds["level"]) == (128, 128, 0.05)
    assert rounds["looks"] == [
        {"samples": 8, "probes": 8, "level": pytest.approx(0.00625), "outcome": "below"}
    ]
    assert rounds["spent"] == pytest.approx(0.00625)
    text = terminal.readings(report)
    assert "Used 8 of 128 probes a task after 1 look: clear of every limit" in text
    assert parse_report(document)
    far = [models[0], copied("far", 3.0)]
    report = gate.check(recipe(tmp_path, far, rehearse="never"), QUIET)
    assert report.verdict.decision == "refuse"
    assert report.measurement.stop.used.outcome == "above"
    assert report.measurement.stop.used.samples <= 16
    # A recipe that is to be repaired is judged, and repaired, on all probes.
    mended = recipe(tmp_path, far, rows=20, rehearse="never", on_violation="drop")
    stop = gate.check(mended, QUIET).measurement.stop
    assert (stop.used.samples, stop.used.outcome) == (20, None)


@pytest.mark.slow
def test_close_to_the_limit_all_are_used_and_found_again_round_by_round(copied, tmp_path, seen):  # noqa: F811
    loaded, forwards = seen
    models = [copied("one"), copied("two", 0.05)]
    fixed = yaml.safe_load(recipe(tmp_path, models, rows=20, rehearse="never").read_text())
    fixed["compat"] |= {"budget": EASY}
    fixed["compat"]["probes"]["samples"] = 20
    (tmp_path / "fixed.yml").write_text(yaml.safe_dump(fixed))
    found = gate.check(tmp_path / "fixed.yml", QUIET).measurement.hidden
    close = {"distortion": found.ball.radius_squared * 1.001, "mds": None}
    path = recipe(tmp_path, models, rows=20, rehearse="never", budget=close)
    first = gate.check(path, QUIET)
    stop = first.measurement.stop
    assert [look.samples for look in stop.looks] == [8, 16, 20]
    assert first.verdict.decision == "allow"
    assert stop.spent == pytest.approx(0.05)
    assert first.measurement.hidden.ball.radius_squared == pytest.approx(
        found.ball.radius_squared, rel=1e-4
    )
    loaded.clear()
    forwards.clear()
    second = gate.check(path, QUIET)
    assert (loaded, forwards) == ([], [])
    assert second.measurement.cached == ("one", "two")
    assert second.measurement.hidden.squared.tolist() == first.measurement.hidden.squared.tolist()
    # One that stops earlier has had its rounds measured as well.
    gate.check(recipe(tmp_path, models, rows=20, rehearse="never", budget=EASY), QUIET)
    assert (loaded, forwards) == ([], [])


@pytest.mark.slow
def test_a_merge_is_watched_and_judged_in_the_same_rounds(copied, tmp_path):  # noqa: F811
    models = [copied("one"), copied("two", 0.05)]
    # The merge is the first expert, whose layers must be found unchanged.
    close = {"distortion": 1e-9, "mds": None}
    path = recipe(tmp_path, models, (1.0, 0.0), rows=20, budget=close, on_violation="drop")
    report = gate.check(path, QUIET, rehearse=True)
    assert report.measurement.stop.used.samples == 20
    layers = report.rehearsal.layers
    assert layers
    for layer in layers:
        assert layer.distortion[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_a_plan_is_followed_on_the_rounds_that_it_was_made_on(copied, tmp_path):  # noqa: F811
    models = [copied("one"), copied("two", 0.02)]
    path = recipe(tmp_path, models, rows=40, rehearse="never", evaluate=False)
    planned = gate.check(path, QUIET, plan=tmp_path / "plan.json")
    assert planned.measurement.stop.used.samples == 8
    made = gate.run_plan(tmp_path / "plan.json", tmp_path / "out", QUIET)
    assert made.measurement.token_digest == planned.measurement.token_digest
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_layers_of_a_merge_spread_as_those_of_its_experts_over_the_same_rounds(
    copied,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    # Two experts that are one: whatever is measured otherwise on one side shows as a ratio.
    models = [copied("one"), copied("same")]
    monkeypatch.setattr("mergekit_collapse.assessment._look", lambda *_: None)
    path = recipe(tmp_path, models, (0.5, 0.5), rows=20, rehearse="always")
    rehearsed = gate.check(path, QUIET)
    assert rehearsed.measurement.stop.used.samples == 20
    made = gate.run(recipe(tmp_path, models, (0.5, 0.5), rows=20), tmp_path / "out", QUIET)
    for seen_merged in (rehearsed.rehearsal, made.monitor, made.evaluation):
        assert seen_merged.layers
        for layer in seen_merged.layers:
            assert layer.worst == pytest.approx(0.0, abs=1e-6)
            assert layer.variance_ratio == pytest.approx(1.0, rel=1e-4)
            assert layer.rank_ratio == pytest.approx(1.0, rel=1e-3)
