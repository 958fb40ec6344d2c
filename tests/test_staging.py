"""Nothing is at the output path until it is whole, and nothing is left elsewhere."""

import pytest

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.staging import publish, staged


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
