"""Nothing is at the output path until it is whole, and nothing is left elsewhere."""

import os
import signal

import pytest

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.staging import publish, require_usable
from mergekit_collapse.staging_folder import staged


def make_model(folder):
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_text(f"new {name}")


def test_a_merge_appears_at_once_and_leaves_nothing_beside(tmp_path):
    out = tmp_path / "deep" / "merged"
    with staged(out) as folder:
        assert folder.name == "merged"
        assert folder.parent.name.startswith(".collapse-")
        make_model(folder)
        assert not out.exists()
        publish(folder, out)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in out.parent.iterdir()] == ["merged"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_merge_leaves_nothing(tmp_path, error):
    def interrupted():
        with staged(tmp_path / "merged") as folder:
            make_model(folder)
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    with staged(out) as folder:
        make_model(folder)
        publish(folder, out)
    assert (out / "config.json").read_text() == "new config.json"


def test_what_the_merge_does_not_write_stays(tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "config.json").write_text("old")
    with staged(out) as folder:
        make_model(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("new")
        publish(folder, out)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "config.json").read_text() == "new config.json"
    assert (out / "sub" / "file").read_text() == "new"


def test_a_parent_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EvaluationError, match="the merge cannot be written there"),
        staged(tmp_path / "file" / "merged"),
    ):
        pass


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with staged(tmp_path / "out") as folder:
        assert folder.name == "out"
        make_model(folder)
        publish(folder, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_folder_in_the_way_of_a_file_changes_nothing(tmp_path):
    out = tmp_path / "merged"
    (out / "model.safetensors").mkdir(parents=True)
    (out / "config.json").write_text("old")
    with staged(out) as folder:
        make_model(folder)
        with pytest.raises(EvaluationError, match="is in the way"):
            publish(folder, out)
    assert (out / "config.json").read_text() == "old"


@pytest.mark.parametrize("make", ["file", "dangling", "loop"])
def test_an_output_that_is_no_folder_is_refused(tmp_path, make):
    out = tmp_path / "out"
    out.write_text("") if make == "file" else out.symlink_to({"loop": "out"}.get(make, "nowhere"))
    with pytest.raises(InvalidRecipeError, match="is no folder"):
        require_usable(out, [], tmp_path / "out.compat")


def test_an_output_that_is_a_source_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "out").symlink_to("one")
    with pytest.raises(InvalidRecipeError, match="the merge would overwrite"):
        require_usable(tmp_path / "out", [str(tmp_path / "one")], tmp_path / "report")
    require_usable(tmp_path / "one" / "inside", [str(tmp_path / "one")], tmp_path / "report")


@pytest.mark.parametrize("report", ["out", "out/report", "out/../out"])
def test_a_report_in_the_output_is_refused(tmp_path, report):
    with pytest.raises(InvalidRecipeError, match="lies in the output folder"):
        require_usable(tmp_path / "out", [], tmp_path / report)
    require_usable(tmp_path / "out", [], tmp_path / "out.compat")


def test_a_signal_to_end_leaves_nothing(tmp_path):
    def ended():
        with staged(tmp_path / "merged") as folder:
            make_model(folder)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ending:
        ended()
    assert ending.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
