"""The doctor: exit 1 exactly where a `compat:` block would not be honoured, and why."""

import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_collapse.doctor import doctor
from mergekit_collapse.doctor import probe as doctor_probe
from mergekit_collapse.doctor.probe import Probe, StockCommand, find_stock_command
from mergekit_collapse.doctor.recipe import examine_recipe

HOOKED = Probe(sys.executable, sys.prefix, "/site/_mergekit_collapse_startup.py", True, True)
MODELS = "merge_method: linear\nmodels:\n  - model: a\n  - model: b\n"


@pytest.fixture
def said(monkeypatch):
    """``said(probe, command)``: what the doctor says where these are found."""
    monkeypatch.delenv("MERGEKIT_COLLAPSE", raising=False)
    here = StockCommand(Path("/bin/mergekit-yaml"), True, sys.executable)

    def diagnose(found: Probe = HOOKED, command: StockCommand | None = here, recipe=None):
        monkeypatch.setattr(doctor, "find_stock_command", lambda name: command)
        monkeypatch.setattr(doctor, "probe", lambda interpreter: found)
        return doctor.diagnose(recipe)

    return diagnose


def problems(found):
    return [each.text for each in found if each.level == "problem"]


def levels(found):
    return [each.level for each in found]


def test_a_hooked_environment_is_well(said):
    diagnosis = said()
    assert diagnosis.ok
    assert diagnosis.exit_code == 0
    assert {"command", "hook", "switch", "versions", "devices"} == {
        symptom.subject for symptom in diagnosis.findings
    }
    [versions] = [s for s in diagnosis.findings if s.subject == "versions" and s.level == "ok"]
    assert "mergekit 0.1." in versions.text
    assert "torch 2." in versions.text


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (Probe(sys.executable, sys.prefix), "No start-up file ran: install mergekit-collapse"),
        (Probe(sys.executable, sys.prefix, no_site=True), "without `site` there (-S)"),
        (
            Probe(
                sys.executable,
                sys.prefix,
                no_user_site=True,
                user_site=str(Path(doctor.__file__).parent.parent),
            ),
            "PYTHONNOUSERSITE",
        ),
        (Probe(sys.executable, sys.prefix, "/startup.py", field=True), "the gate missing"),
        (Probe(sys.executable, sys.prefix, "/startup.py"), "the package is damaged"),
        (Probe(sys.executable, error="ModuleNotFoundError: mergekit"), "cannot be imported"),
    ],
)
def test_an_unhooked_environment_is_not_and_the_cause_is_named(said, found, cause):
    diagnosis = said(found)
    assert diagnosis.exit_code == 1
    [problem] = problems(diagnosis.findings)
    assert cause in problem


def test_a_command_of_another_environment_is_told_apart(said):
    other = Probe("/other/bin/python", "/other", "/other/startup.py", True, True)
    diagnosis = said(
        other, StockCommand(Path("/other/bin/mergekit-yaml"), True, "/other/bin/python")
    )
    assert diagnosis.ok
    assert "belongs to the environment /other" in diagnosis.findings[0].text


def test_a_missing_or_unreadable_command_is_a_warning(said):
    for command in (None, StockCommand(Path("/shims/mergekit-yaml"), True, None)):
        assert said(HOOKED, command).findings[0].level == "warning"


@pytest.mark.parametrize(
    ("value", "level"), [("0", "problem"), ("1", "ok"), ("warn", "warning"), ("no", "problem")]
)
def test_the_switch(said, monkeypatch, value, level):
    said()  # clears the variable
    monkeypatch.setenv("MERGEKIT_COLLAPSE", value)
    [symptom] = [each for each in doctor.diagnose().findings if each.subject == "switch"]
    assert symptom.level == level


@pytest.mark.parametrize(
    ("version", "word"), [("0.1.5", None), ("0.1.6", "untested"), ("0.2.0", "outside")]
)
def test_the_version_of_mergekit(monkeypatch, version, word):
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    warnings = [each.text for each in doctor._versions() if each.level == "warning"]
    assert [word in text for text in warnings] == ([True] if word else [])


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("gate_mode: hidden\nbase_model: a\nexperts: []\ncompat: {}\n", "mergekit-moe"),
        ("experts: []\ncompat: {}\n", "mergekit-moe"),
        ("genome: {models: [a]}\ntasks: []\ncompat: {}\n", "mergekit-evolve"),
        ("layer_slices: []\ncompat: {}\n", "bakllama"),
        (
            "merge_method: linear\nmodels: [{model: a.safetensors}]\ncompat: {}\n",
            "mergekit-pytorch",
        ),
    ],
)
def test_files_of_commands_that_ignore_the_block(tmp_path, text, command):
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    [problem] = problems(examine_recipe(path))
    assert f"this is a file for {command}, which ignores `compat:`" in problem
    path.write_text(text.replace("compat: {}\n", ""))
    assert levels(examine_recipe(path)) == ["note"]


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        (MODELS + "compat: {}\n", "ok", "mergekit-yaml or mergekit-multi honours"),
        (MODELS, "note", "nothing is gated"),
        (MODELS + "compat:\n", "problem", "`compat:` is empty"),
        ("- a\n- b\n", "problem", "a mapping is expected, got list"),
        ("a: [\n", "problem", "is not YAML"),
        ("", "problem", "is empty"),
        (b"a: \xff\n", "problem", "cannot be read"),
    ],
)
def test_recipes(tmp_path, text, level, words):
    path = tmp_path / "recipe.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    [symptom] = examine_recipe(path)
    assert symptom.level == level
    assert words in symptom.text
    assert str(path) in symptom.text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("compatt: {}\n", "did you mean `compat:`"),
        ("Compat: {}\n", "did you mean `compat:`"),
        ("parameters: {compat: {}}\n", "stands under `parameters:`"),
    ],
)
def test_a_block_that_mergekit_would_drop_in_silence(tmp_path, extra, words):
    path = tmp_path / "recipe.yml"
    path.write_text(MODELS + extra)
    [problem] = problems(examine_recipe(path))
    assert words in problem


def test_each_document_of_a_multi_recipe_is_examined(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(f"name: first\n{MODELS}compat: {{}}\n---\n{MODELS}compat:\n")
    first, second = examine_recipe(path)
    assert (first.level, second.level) == ("ok", "problem")
    assert "document 1 (first): mergekit-multi honours" in first.text


def test_a_recipe_that_is_not_there(tmp_path, said):
    diagnosis = said(recipe=tmp_path / "none.yml")
    assert diagnosis.exit_code == 1
    assert "none.yml cannot be read" in problems(diagnosis.findings)[0]


@pytest.mark.parametrize(
    ("head", "interpreter"),
    [
        ("#!{python}\n", "{python}"),
        ("#!{python} -E\n", "{python}"),
        ("#!/usr/bin/env {name}\n", "{found}"),
        ("#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n", "{python}"),
        ("#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n", "{python}"),
        ("#!/usr/bin/env bash\nexec pyenv\n", None),
        ("#!/bin/sh\nexec something\n", None),
        ("MZ\x00", None),
    ],
)
def test_the_interpreter_of_a_script(tmp_path, monkeypatch, head, interpreter):
    python = Path(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path}:{python.parent}")
    values = {"python": python, "name": python.name, "found": python}
    script = tmp_path / "mergekit-yaml"
    script.write_text(head.format(**values))
    script.chmod(0o755)
    expected = interpreter.format(**values) if interpreter else None
    assert find_stock_command("mergekit-yaml") == StockCommand(script, True, expected)


def test_an_interpreter_that_does_not_answer_is_told(tmp_path, monkeypatch):
    assert "No such file" in str(doctor_probe.probe(str(tmp_path / "none")).error)
    assert doctor_probe.probe("/bin/false").error == "exit code 1"

    def late(command, **options):
        raise subprocess.TimeoutExpired(command, 300)

    monkeypatch.setattr(subprocess, "run", late)
    assert "timed out" in str(doctor_probe.probe(sys.executable).error)


@pytest.mark.slow
def test_this_interpreter_answers():
    found = doctor_probe.probe(sys.executable)
    assert found.error is None
    assert found.hooked == (found.startup_file is not None)
    assert Path(found.prefix) == Path(sys.prefix)
