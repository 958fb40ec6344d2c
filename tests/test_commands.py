"""The command line: what it writes where, and what it refuses before anything is measured."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from click.testing import CliRunner

from mergekit_collapse import cli
from mergekit_collapse.cli import main

pytestmark = pytest.mark.slow

FAST = {
    "probes": {"samples": 4, "max_tokens": 8},
    "space": "hidden",
    "rehearse": "never",
    "cache": False,
}
QUIET = "--quiet"


@pytest.fixture(scope="module", autouse=True)
def no_workflow():
    """The tests may themselves run in one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GITHUB_ACTIONS", "GITHUB_WORKSPACE", "GITHUB_STEP_SUMMARY"):
            patch.delenv(name, raising=False)
        yield


def command(*arguments):
    """Standard output and standard error apart; an error of ours is an exit code, not raised."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def models(tiny_model, variant):
    base = tiny_model("llama")
    return {
        "base": base,
        "one": variant(base, 0.02, 1),
        "two": variant(base, 0.02, 2),
        "far": variant(base, 3.0, 3),
    }


def write_recipe(folder, models, *names, compat=None, **keys):
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(models[n]), "parameters": {"weight": 1.0}} for n in names],
        "dtype": "float32",
        **keys,
        "compat": {**FAST, **(compat or {})},
    }
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def write(tmp_path, models):
    return lambda *names, **keys: write_recipe(tmp_path, models, *names, **keys)


@pytest.fixture(scope="module")
def checked(models, tmp_path_factory):
    """Every file that a check can write, of a recipe that is allowed."""
    folder = tmp_path_factory.mktemp("checked")
    keys = {"merge_method": "task_arithmetic", "base_model": str(models["base"])}
    path = write_recipe(folder, models, "one", "two", **keys)
    files = [folder / name for name in ("page.html", "cases.xml")]
    options = ["--html", files[0], "--junit", files[1], "--json", "-", "--parameters"]
    return command("check", path, *options), folder


@pytest.fixture(scope="module")
def stored(checked):
    return checked[1] / "recipe.compat" / "report.json"


@pytest.fixture(scope="module")
def refused(models, tmp_path_factory):
    """The same of a recipe that is refused."""
    folder = tmp_path_factory.mktemp("refused")
    path = write_recipe(folder, models, "one", "far")
    return command("check", path, QUIET, "--report", folder / "mine"), folder


def unmeasured(*_arguments, **_keys):
    pytest.fail("the models were measured")


@pytest.fixture
def nothing_is_measured(monkeypatch):
    for name in ("check_recipe", "run_recipe", "run_saved_plan", "evaluate_merge"):
        monkeypatch.setattr(cli, name, unmeasured)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_json_has_standard_output_to_itself(checked):
    done, folder = checked
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((folder / "recipe.compat/report.json").read_text("utf-8"))
    assert "ALLOWED" in done.stderr
    assert "2 experts, task_arithmetic" in done.stderr


def test_each_file_is_of_its_kind(checked):
    _, folder = checked
    assert left_in(folder) == ["cases.xml", "page.html", "recipe.compat", "recipe.yml"]
    assert (folder / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    root = ET.fromstring((folder / "cases.xml").read_text("utf-8"))
    assert (root.tag, root.get("failures"), root.get("errors")) == ("testsuites", "0", "0")


def test_parameters_are_measured_where_asked_for(checked, refused):
    done, _ = checked
    found = json.loads(done.stdout)["parameters"]
    assert found["experts"] == [expert["name"] for expert in json.loads(done.stdout)["experts"]]
    # Noise of its own on the same weights: unrelated task vectors.
    assert abs(found["mean_cosine"]) < 0.1
    assert "parameter conflict of 2 experts" in done.stderr
    without = json.loads((refused[1] / "mine/report.json").read_text("utf-8"))
    assert without["parameters_reason"] == "it was not asked for"


def test_parameters_without_a_base_say_why_there_are_none(write):
    done = command("check", write("one", "two"), "--parameters", "--json", "-", QUIET)
    document = json.loads(done.stdout)
    assert document["parameters"] is None
    assert "base" in document["parameters_reason"]


def test_a_refusal_is_exit_code_3_and_a_quiet_run_says_only_why(refused):
    done, folder = refused
    assert done.exit_code == 3
    assert done.stdout.startswith("REFUSED")
    assert left_in(folder) == ["mine", "recipe.yml"]


def test_a_report_is_shown_as_markdown(stored, refused):
    done = command("report", stored)
    assert done.exit_code == 0
    assert done.stdout.startswith("## mergekit-collapse: allowed")
    # Showing a refusal is no refusal.
    done = command("report", refused[1] / "mine/report.json")
    assert (done.exit_code, "refused" in done.stdout) == (0, True)


def test_a_report_is_shown_in_any_form(checked, stored, tmp_path):
    files = {kind: tmp_path / kind for kind in ("markdown", "junit")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    done = command("report", stored, "--html", "-", *options)
    assert done.exit_code == 0
    # The page that the check wrote itself.
    assert done.stdout == (checked[1] / "page.html").read_text("utf-8")
    assert files["markdown"].read_text("utf-8") == command("report", stored).stdout
    assert files["junit"].read_text("utf-8") == (checked[1] / "cases.xml").read_text("utf-8")


def test_two_reports_are_compared(stored, refused):
    other = refused[1] / "mine/report.json"
    done = command("report", "--compare", stored, other)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1].split() == ["verdict", "allowed", "refused"]
    assert done.stdout.endswith("\n")
    assert "Nothing changed." in command("report", "--compare", other, other).stdout


USAGE = [
    ["report"],
    ["report", "no.json"],
    ["report", "STORED", "--compare", "STORED", "STORED"],
    ["report", "--compare", "STORED"],
    ["report", "--compare", "STORED", "STORED", "--html", "-"],
    ["report", "STORED", "--html", "none/page.html"],
    ["report", "STORED", "--pdf", "a.pdf"],
    ["report", "STORED", "--html", "-", "--junit", "-"],
    ["report", "STORED", "--html", "page", "--markdown", "./page"],
    ["check"],
    ["check", "RECIPE", "--json", "-", "--html", "-"],
    ["check", "RECIPE", "--json", "a.json", "--junit", "a.json"],
    ["check", "RECIPE", "--fix", "a.yml", "--plan", "./a.yml"],
    ["check", "RECIPE", "--fix", "a.json", "--json", "a.json"],
    ["check", "RECIPE", "--json", "."],
    ["check", "RECIPE", "--html", "none/page.html"],
    ["check", "RECIPE", "--junit", "."],
    ["check", "RECIPE", "--copy-tokenizer"],
    ["run", "RECIPE"],
    ["run", "RECIPE", "out", "--junit", "none/cases.xml"],
    ["run", "--plan", "STORED"],
    ["run", "--plan", "STORED", "RECIPE", "out"],
    ["evaluate"],
    ["evaluate", "RECIPE"],
    ["evaluate", "RECIPE", "merged", "--json", "none/a.json"],
    ["evaluate", "RECIPE", "merged", "--rehearse"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage_is_told_before_anything_is_measured(
    arguments, stored, write, tmp_path, monkeypatch, nothing_is_measured
):
    places = {"STORED": stored, "RECIPE": write("one", "two")}
    monkeypatch.chdir(tmp_path)
    done = command(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert "Error: " in done.stderr
    assert left_in(tmp_path) == ["recipe.yml"]


def test_a_report_that_is_none_is_told(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    done = command("report", tmp_path / "a.json")
    assert done.exit_code == 2
    assert "not a report of mergekit-collapse" in done.stderr


@pytest.mark.parametrize(
    ("keys", "code", "kind"),
    [
        ({"merge_method": "lienar"}, 2, "invalid recipe"),
        ({"compat": {"probes": {"tasks": [{"name": "t", "data": "no.txt"}]}}}, 1, "not evaluated"),
    ],
)
def test_an_error_before_there_is_a_report_is_in_the_junit_file(write, tmp_path, keys, code, kind):
    cases, others = tmp_path / "cases.xml", ("--json", tmp_path / "a.json")
    done = command("check", write("one", "two", **keys), "--junit", cases, *others)
    assert done.exit_code == code
    root = ET.fromstring(cases.read_text("utf-8"))
    (error,) = root.iter("error")
    assert (root.get("errors"), error.get("type")) == ("1", kind)
    assert error.get("message") in done.stderr.replace("\n", "\\n")
    assert not (tmp_path / "a.json").exists()


def test_a_refused_run_writes_its_files(write, tmp_path):
    files = [tmp_path / "cases.xml", tmp_path / "a.json"]
    options = ["--junit", files[0], "--json", files[1], QUIET]
    done = command("run", write("one", "far"), tmp_path / "out", *options)
    assert done.exit_code == 3
    assert json.loads(files[1].read_text("utf-8"))["verdict"]["exit_code"] == 3
    assert int(ET.fromstring(files[0].read_text("utf-8")).get("failures")) > 0
    assert not (tmp_path / "out").exists()


def test_evaluate_says_what_it_does():
    done = command("evaluate", "--help")
    assert done.exit_code == 0
    assert "RECIPE MERGED" in done.stdout
    for option in ("--json", "--html", "--junit", "--report", "--device"):
        assert option in done.stdout
    # Of merging alone.
    assert "--copy-tokenizer" not in done.stdout
    assert "--rehearse" not in done.stdout


@pytest.mark.parametrize(
    ("merged", "told"),
    [("nowhere", "does not exist"), ("recipe.yml", "is a file"), ("empty", "no merged model")],
)
def test_what_is_no_merge_is_told(write, tmp_path, merged, told):
    (tmp_path / "empty").mkdir()
    done = command("evaluate", write("one", "two"), tmp_path / merged)
    assert done.exit_code == 2
    assert told in done.stderr


def test_a_workflow_gets_annotations_and_a_summary(write, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = command("check", write("one", "far"), "--json", "-", QUIET)
    assert done.exit_code == 3
    assert json.loads(done.stdout)["verdict"]["decision"] == "refuse"
    lines = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert len(lines) == len(json.loads(done.stdout)["verdict"]["reasons"])
    assert all(line.startswith("::error title=mergekit-collapse") for line in lines)
    assert all("file=recipe.yml" in line for line in lines)
    assert summary.read_text("utf-8").startswith("## mergekit-collapse: refused")


def test_outside_a_workflow_there_are_no_annotations(checked):
    assert "::" not in checked[0].stderr


def test_tensorboard_gets_its_events_in_the_report_folder(write, tmp_path):
    pytest.importorskip("tensorboard")
    path = write("one", "two", compat={"log_to": "tensorboard"})
    assert command("check", path, QUIET).exit_code == 0
    (events,) = (tmp_path / "recipe.compat" / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents.")
    assert events.stat().st_size > 0


@pytest.mark.parametrize("way", ["check", "run", "evaluate"])
def test_a_tracker_that_is_not_installed_is_told_before_anything_is_measured(
    write, models, tmp_path, monkeypatch, way
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = write("one", "two", compat={"log_to": ["wandb"]})
    monkeypatch.setattr("mergekit_collapse.assessment.check_models", unmeasured)
    further = {"check": (), "run": (tmp_path / "out",), "evaluate": (models["one"],)}
    done = command(way, path, *further[way])
    assert done.exit_code == 2
    assert "mergekit-collapse[wandb]" in done.stderr
    assert left_in(tmp_path) == ["recipe.yml"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
@pytest.mark.parametrize("kind", ["markdown", "junit"])
def test_a_full_disk_is_told(stored, kind):
    done = command("report", stored, f"--{kind}", "/dev/full")
    assert done.exit_code == 1
    assert f"--{kind} /dev/full: cannot be written: No space left" in done.stderr


@pytest.mark.parametrize(("merged", "code"), [("one", 0), ("far", 4)])
def test_a_finished_merge_is_held_against_its_experts(write, models, tmp_path, merged, code):
    done = command(
        *("evaluate", write("one", "two"), models[merged], "--json", "-", QUIET),
        *("--report", tmp_path / "mine", "--junit", tmp_path / "cases.xml"),
    )
    assert done.exit_code == code, done.stderr
    document = json.loads(done.stdout)
    found = document["evaluation"]
    assert (found["source"], found["model"]) == ("merged", str(models[merged]))
    assert document["verdict"] == found["verdict"]
    assert (found["hidden"]["distortion"][0] == 0) == (merged == "one")
    assert all(check["passed"] for check in found["checks"])
    assert (models[merged] / "config.json").exists()
    assert left_in(tmp_path) == ["cases.xml", "mine", "recipe.yml"]


def test_init_shows_a_block_and_changes_nothing_else(tmp_path):
    path = tmp_path / "recipe.yml"
    text = "merge_method: linear\r\nmodels:  # two\r\n- {model: a}\r\n- {model: b}\r\n"
    path.write_bytes(text.encode())
    done = command("init", path)
    assert done.exit_code == 0
    assert "\ncompat:" in done.stdout
    assert path.read_bytes() == text.encode()
    assert command("init", path, "--in-place").exit_code == 0
    assert path.read_bytes().startswith(text.encode())
    assert b"rehearse: auto" in path.read_bytes()
    again = command("init", path)
    assert again.exit_code == 2
    assert "already" in again.stderr


def test_init_of_what_is_no_recipe_is_told(tmp_path):
    assert command("init", tmp_path / "none.yml").exit_code == 2
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in command("init", tmp_path / "bytes.yml").stderr


def test_select_of_what_is_no_pool_is_told(tmp_path):
    (tmp_path / "pool.yml").write_text("candidates: [./a]\n", encoding="utf-8")
    done = command("select", tmp_path / "pool.yml", "--count", "2")
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_select_destroys_no_pool_and_writes_no_folder(tmp_path):
    pool = tmp_path / "pool.yml"
    pool.write_text("candidates: [./a, ./b]\n", encoding="utf-8")
    (tmp_path / "again.yml").symlink_to(pool)
    for place, told in (("again.yml", "is the pool itself"), (".", "is a directory")):
        done = command("select", pool, "--count", "2", "--recipe", tmp_path / place)
        assert done.exit_code == 2
        assert told in done.stderr
    assert pool.read_text(encoding="utf-8") == "candidates: [./a, ./b]\n"


def test_what_a_check_will_take_is_said_first_and_reported_beside_what_it_took(write):
    done = command("check", write("one", "two"))
    first = done.stderr.splitlines()[0]
    assert first.startswith("expecting for 2 models: ")
    assert "read, " in first
    assert "FLOP, at most " in first
    folder = write("one", "two").with_name("recipe.compat")
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["estimate"]
    parts = dict(found["memory"])
    assert found["used"]["peak_memory"] > 0
    assert 0 < parts.pop("peak") <= sum(parts.values())
    assert (found["models"], found["together"], found["whole"]) == (2, 1, [])


def test_max_memory_is_refused_at_once(write, monkeypatch, tmp_path):
    path = write("one", "two")
    for asked in (
        ("check", path),
        ("run", path, tmp_path / "out"),
    ):
        done = command(*asked, QUIET, "--max-memory", "3MB")
        assert done.exit_code == 1
        assert "--max-memory is 3.0 MB; raise it, lower probes.samples" in done.stderr
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("MERGEKIT_COLLAPSE_MAX_MEMORY", "3MB")
    assert "--max-memory is 3.0 MB" in command("check", path, QUIET).stderr
    assert command("check", path, QUIET, "--max-memory", "64GB").exit_code == 0
    monkeypatch.setenv("MERGEKIT_COLLAPSE_MAX_MEMORY", "much")
    done = command("check", path, QUIET)
    assert done.exit_code == 2
    assert "MERGEKIT_COLLAPSE_MAX_MEMORY: got 'much'; write a size such as 8GB" in done.stderr


@pytest.mark.parametrize("size", ["lots", "0", "-1GB", ""])
def test_a_size_that_is_none_is_a_usage_error(write, size):
    done = command("check", write("one", "two"), "--max-memory", size)
    assert done.exit_code == 2
    assert "is no size; write it as 8GB, 900MB or 512MiB" in done.stderr
