"""What experiment trackers are given, read back from what they wrote."""

import json
import math
import re
import sys

import made_documents
import pytest

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.formats.scalars import profiles, scalars
from mergekit_collapse.formats.tracking import log_scalars, require_trackers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", made_documents.MAKERS)
def test_metrics_have_names_that_each_tracker_takes(name):
    document = made_documents.MAKERS[name][0]()
    for metric in [*scalars(document), *profiles(document)]:
        assert re.fullmatch(r"collapse(/[A-Za-z0-9_]+)+", metric)
        assert len(metric) <= 250
    assert all(math.isfinite(value) for value in scalars(document).values())
    assert scalars(document)["collapse/exit_code"] == made_documents.MAKERS[name][1]


def test_the_numbers_are_the_document_s():
    document = made_documents.published()
    found = scalars(document)
    geometry = document["geometry"]["hidden"]
    assert found["collapse/diameter_squared"] == geometry["diameter_squared"]
    assert found["collapse/ball_radius_squared"] == geometry["ball_radius_squared"]
    assert found["collapse/mds/close"] == document["mds"]["hidden"]["unrelated"][1]
    assert found["collapse/predicted_distortion/near"] == geometry["predicted_distortion"][0]
    assert found["collapse/measured_distortion/close"] == 0.25
    assert found["collapse/evaluation/merging_loss_percent/first"] == -25
    assert found["collapse/lm_eval/arc_easy/acc_none"] == 0.5
    assert found["collapse/seconds/states"] == 1.25
    # Undefined numbers are left out, not given as 0.
    assert "collapse/evaluation/merging_loss_percent/second" not in found
    assert "collapse/mds/odd" not in scalars(made_documents.refused())
    layers = profiles(document)
    assert layers["collapse/layer/evaluation/variance_ratio"] == [(0, 0.9), (1, 0.8), (2, 0.7)]
    assert layers["collapse/layer/evaluation/worst_distortion"][0] == (0, 0.25)


def test_names_that_would_become_one_stay_two():
    document = made_documents.refused()
    for expert, name in zip(document["experts"], ("a/b", "a.b", "A:B"), strict=True):
        expert["name"] = name
    found = [name for name in scalars(document) if "predicted" in name]
    assert found == [
        "collapse/predicted_distortion/a_b",
        "collapse/predicted_distortion/a_b_2",
        "collapse/predicted_distortion/A_B_3",
    ]


def test_nothing_is_logged_where_nothing_is_asked_for(tmp_path):
    log_scalars(made_documents.allowed(), [], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_says_how_to_install_it(tracker, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, tracker, None)
    told = rf"compat.log_to: {tracker} is not installed .*mergekit-collapse\[{tracker}\]"
    with pytest.raises(InvalidRecipeError, match=told):
        require_trackers([tracker])
    with pytest.raises(InvalidRecipeError, match=told):
        log_scalars(made_documents.allowed(), [tracker], tmp_path)


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    document = made_documents.hostile()
    log_scalars(document, ["tensorboard"], tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    expected, layers = scalars(document), profiles(document)
    assert set(read.Tags()["scalars"]) == set(expected) | set(layers)
    for name, value in expected.items():
        ((step, found),) = ((event.step, event.value) for event in read.Scalars(name))
        assert step == 0
        assert found == pytest.approx(value, rel=1e-6)
    for name, points in layers.items():
        assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in read.Scalars(name)] == points


def test_a_tracker_that_cannot_write_says_so(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where its folder would be")
    with pytest.raises(EvaluationError, match=r"compat.log_to: tensorboard did not take"):
        log_scalars(made_documents.allowed(), ["tensorboard"], tmp_path)


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    found = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    return found


def test_mlflow_in_the_run_that_is_active_and_else_in_its_own(mlflow, tmp_path):
    document = made_documents.hostile()
    expected, layers = scalars(document), profiles(document)
    with mlflow.start_run() as run:
        log_scalars(document, ["mlflow"], tmp_path)
        assert mlflow.active_run().info.run_id == run.info.run_id
    log_scalars(document, ["mlflow"], tmp_path)
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    runs = client.search_runs(["0"])
    assert len(runs) == 2
    for one in runs:
        assert one.info.status == "FINISHED"
        assert {name: one.data.metrics[name] for name in expected} == expected
        for name, points in layers.items():
            history = client.get_metric_history(one.info.run_id, name)
            assert sorted((point.step, point.value) for point in history) == points


def test_wandb_offline_in_the_run_that_is_active_and_else_in_its_own(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    document = made_documents.hostile()
    with wandb.init(dir=str(tmp_path)) as run:
        log_scalars(document, ["wandb"], tmp_path)
        assert wandb.run is run
        summary = json.loads(json.dumps(dict(run.summary)))
    for name, value in scalars(document).items():
        assert summary[name] == value
    for name, points in profiles(document).items():
        assert summary[name] == points[-1][1]
    log_scalars(document, ["wandb"], tmp_path)
    assert wandb.run is None
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
