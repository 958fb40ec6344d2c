"""Limits fitted to reports that the gate itself wrote about real merges of tiny models."""

import json

import pytest
import yaml
from click.testing import CliRunner

from mergekit_collapse.cli import main

pytestmark = pytest.mark.slow


def command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tiny_model, variant, tmp_path_factory):
    """Three pairs of near twins, and three that hardly leave anything of the task's owner."""
    folder, owner = tmp_path_factory.mktemp("merges"), tiny_model("llama")
    rows = [{"text": text, "word": " good"} for text in ("The film was", "Where is the", "It is")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "films", "model": str(owner), "data": "rows.jsonl", "target": "{word}"}
    block = {
        "probes": {"samples": 4, "max_tokens": 8, "tasks": [task]},
        "on_violation": "warn",
        "evaluate": {"on_collapse": "warn"},
        "cache": False,
    }
    for seed in range(1, 7):
        other = variant(owner, 0.02 if seed < 4 else 3.0, seed)
        recipe = {
            "merge_method": "linear",
            "models": [
                {"model": str(owner), "parameters": {"weight": 0.01}},
                {"model": str(other), "parameters": {"weight": 1.0}},
            ],
            "dtype": "float32",
            "compat": block,
        }
        path = folder / f"m{seed}.yml"
        path.write_text(yaml.safe_dump(recipe))
        if seed in (1, 4):
            done = command("run", path, folder / f"m{seed}", "--quiet")
        else:
            done = command("check", path, "--rehearse", "--quiet")
        assert done.exit_code == 0, done.output
    return folder


def test_reports_of_merges_and_of_rehearsals_give_a_limit(folder):
    lost = {}
    for path in sorted(folder.glob("*.compat/report.json")):
        document = json.loads(path.read_text())
        (task,) = (document["evaluation"] or document["rehearsal"])["tasks"]
        lost[path.parent.stem] = -task["loss_percent"]
    assert len(lost) == 6
    near, far = [lost[f"m{n}"] for n in (1, 2, 3)], [lost[f"m{n}"] for n in (4, 5, 6)]
    assert max(near) < min(far)
    done = command("study", "calibrate", folder, "--collapse", (max(near) + min(far)) / 2)
    assert done.exit_code == 0, done.output
    assert "6 merges of 6 groups of experts: 3 collapsed" in done.stdout
    for space in ("hidden", "predictive"):
        for signal in ("ball", "corollary", "weights", "mds.unrelated", "measured"):
            (line,) = (
                one
                for one in done.stdout.splitlines()
                if one.split()[:4] == [f"{space}.{signal}", "6", "3", "1.000"]
            )
            assert "0.292 to 1.000" in line  # three pairs without an error: .025^(1/3)
    assert "Not fitted: hidden.own_task.ball" in done.stdout
    (budget,) = (one for one in done.stdout.splitlines() if "budget: {distortion" in one)
    limit = yaml.safe_load(budget)["budget"]["distortion"]
    reports = [json.loads(p.read_text()) for p in folder.glob("*.compat/report.json")]
    balls = sorted(one["geometry"]["hidden"]["ball_radius_squared"] for one in reports)
    assert balls[2] <= limit < balls[3]
