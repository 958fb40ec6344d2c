"""The hook in-process: the block on its way through MergeKit, and the gate before the merge."""

import copy
import importlib.util
import pickle
import sys
import types
from pathlib import Path

import click
import mergekit.config
import mergekit.merge
import pytest
import yaml
from click.testing import CliRunner
from mergekit.scripts import multimerge, run_yaml

import mergekit_collapse
from mergekit_collapse import mergekit_hook
from mergekit_collapse.click_errors import GateExit, at_the_edge
from mergekit_collapse.errors import (
    CompatError,
    EvaluationError,
    InvalidRecipeError,
    MergeRefusedError,
)
from mergekit_collapse.recipe.compat_source import CompatSource
from mergekit_collapse.recipe.context import RecipeContext, recipe_context

PLAIN = {"merge_method": "linear", "models": [{"model": "left"}, {"model": "right"}]}
# What mergekit-multi stumbles over: its own merges' names, two + and two @.
AWKWARD = {
    "probes": {
        "tasks": [{"name": "left", "model": "left", "text": "{a} + {b} + {c}", "data": "a@b@c"}]
    },
    "budget": {"distortion": 0.25, "mds": 3},
    "flags": [True, None, "yes", "1e-3"],
}


def fresh_copy_of(module: types.ModuleType, name: str) -> types.ModuleType:
    """MergeKit's module as it is without the hook, whatever was done to the imported one."""
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


@pytest.fixture(scope="module", autouse=True)
def _hooked():
    mergekit_hook.install()


@pytest.fixture(scope="module")
def stock_config():
    return fresh_copy_of(mergekit.config, "mergekit_config_stock")


@pytest.fixture
def hooked_config():
    module = fresh_copy_of(mergekit.config, "mergekit_config_hooked")
    mergekit_hook.extend_configuration(module)
    return module


class Merges(types.ModuleType):
    """Stands for mergekit.merge: notes its calls, and merges nothing."""

    def __init__(self):
        super().__init__("fake_mergekit_merge")
        self.calls = calls = []

        def run_merge(merge_config, out_path, options, config_source=None):
            """MergeKit's own words."""
            calls.append((merge_config, out_path, options, config_source))
            return "merged"

        self.stock = self.run_merge = run_merge
        mergekit_hook.wrap_run_merge(self)


class Gate(types.ModuleType):
    """Stands for mergekit_collapse.gate."""

    def __init__(self):
        super().__init__("mergekit_collapse.gate")
        self.calls = []
        self.error = None

    def gated_merge(self, config, out_path, options, config_source, *, merge):
        call = {"block": config.compat, "merge": merge}
        self.calls.append(call | {"source": config_source, "context": recipe_context()})
        if self.error is not None:
            raise self.error
        return "gated"


@pytest.fixture
def merges():
    return Merges()


@pytest.fixture
def gate(monkeypatch):
    fake = Gate()
    monkeypatch.delenv("MERGEKIT_COLLAPSE", raising=False)
    monkeypatch.setitem(sys.modules, "mergekit_collapse.gate", fake)
    monkeypatch.setattr(mergekit_collapse, "gate", fake, raising=False)
    return fake


def configuration(**extra):
    return mergekit.config.MergeConfiguration.model_validate(PLAIN | extra)


# --- the field ---------------------------------------------------------------------------------


def test_the_block_is_held_as_it_is_written(hooked_config):
    config = hooked_config.MergeConfiguration.model_validate(PLAIN | {"compat": AWKWARD})
    assert config.compat == CompatSource(AWKWARD)
    assert config.model_dump()["compat"] is config.compat
    assert config.model_dump(mode="json")["compat"] == AWKWARD
    assert yaml.safe_load(config.to_yaml())["compat"] == AWKWARD
    again = hooked_config.MergeConfiguration.model_validate(config.model_dump())
    assert again.compat == config.compat


@pytest.mark.parametrize("value", [{}, [], "abort", 3, False])
def test_any_value_is_a_block_and_left_to_the_gate(hooked_config, value):
    config = hooked_config.MergeConfiguration.model_validate(PLAIN | {"compat": value})
    assert config.compat.value == value
    assert yaml.safe_load(config.to_yaml())["compat"] == value


def test_numbers_that_json_lacks_do_not_turn_into_no_budget(hooked_config):
    recipe = PLAIN | {"compat": yaml.safe_load("{budget: {distortion: .nan, mds: [.inf, -.inf]}}")}
    config = hooked_config.MergeConfiguration.model_validate(recipe)
    written = yaml.safe_load(config.to_yaml())["compat"]
    assert written == {"budget": {"distortion": ".nan", "mds": [".inf", "-.inf"]}}


def test_without_a_block_everything_looks_as_in_stock_mergekit(hooked_config, stock_config):
    for recipe in (
        PLAIN,
        PLAIN | {"dtype": "bfloat16", "parameters": {"weight": [0.1, 0.2]}},
        {
            "merge_method": "slerp",
            "base_model": "a",
            "slices": [{"sources": [{"model": m, "layer_range": [0, 2]} for m in "ab"]}],
        },
    ):
        ours = hooked_config.MergeConfiguration.model_validate(recipe)
        stock = stock_config.MergeConfiguration.model_validate(recipe)
        assert ours.to_yaml() == stock.to_yaml()
        assert repr(ours) == repr(stock)
        for omit in ("exclude_defaults", "exclude_none", "exclude_unset"):
            assert ours.model_dump_json(**{omit: True}) == stock.model_dump_json(**{omit: True})
        assert ours.compat is None


def test_errors_of_a_recipe_without_a_block_stay_mergekits(hooked_config, stock_config):
    said = []
    for module in (hooked_config, stock_config):
        with pytest.raises(ValueError, match="merge_method") as caught:
            module.MergeConfiguration.model_validate({"models": "nonsense"})
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_the_configuration_reader_knows_the_field(hooked_config):
    read = hooked_config.ConfigReader.model_validate(
        {"config": PLAIN | {"compat": AWKWARD}, "t": 0.5}
    )
    assert read.config.compat.value == AWKWARD
    assert read.model_dump(mode="json")["config"]["compat"] == AWKWARD


def test_extending_twice_is_extending_once(hooked_config):
    fields = dict(hooked_config.MergeConfiguration.model_fields)
    mergekit_hook.extend_configuration(hooked_config)
    assert hooked_config.MergeConfiguration.model_fields == fields


def test_the_block_is_frozen_and_copies_are_deep():
    value = {"budget": {"mds": 3}}
    source = CompatSource(value)
    value["budget"]["mds"] = 99
    source.value["budget"]["mds"] = 99
    assert source.value == {"budget": {"mds": 3}}
    with pytest.raises(AttributeError, match="frozen"):
        source._value = 1
    for copied in (copy.copy(source), copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert copied == source
    config = configuration(compat=AWKWARD)
    assert config.model_copy(deep=True).compat == config.compat


@pytest.mark.parametrize(
    "pool", [["left", "left+adapter"], {"left": ["left", "left+adapter"], "a": "left"}]
)
def test_mergekit_multi_carries_the_block_unchanged(tmp_path, pool):
    awkward = AWKWARD | {"substitute": {"pool": pool}}
    documents = [
        PLAIN | {"name": "left", "models": [{"model": "a"}, {"model": "b"}], "compat": awkward}
    ]
    documents.append(PLAIN | {"compat": awkward})
    configs, needs = multimerge.load_config(yaml.safe_dump_all(documents), str(tmp_path))
    # The names in the block are no dependency, and the model of that name is one.
    assert needs == {"left": set(), None: {"left"}}
    tasks = multimerge.make_tasks(
        configs, needs, mergekit.merge.MergeOptions(), str(tmp_path), "out", False
    )
    for task in tasks:
        config = mergekit.config.MergeConfiguration.model_validate(yaml.safe_load(task.config_yaml))
        assert config.compat.value == awkward
    assert any(str(tmp_path / "left") in task.config_yaml for task in tasks)


# --- the wrapper -------------------------------------------------------------------------------


def test_without_a_block_the_original_gets_the_very_arguments(merges, gate):
    config = configuration()
    assert merges.run_merge(config, "out", options=1) == "merged"
    assert (
        merges.run_merge(merge_config=config, out_path="out", options=1, config_source="x")
        == "merged"
    )
    assert merges.calls == [(config, "out", 1, None), (config, "out", 1, "x")]
    assert gate.calls == []


def test_the_wrapper_is_called_and_read_like_the_original(merges):
    assert merges.run_merge.__doc__ == "MergeKit's own words."
    assert str(mergekit_hook.inspect.signature(merges.run_merge)).startswith(
        "(merge_config, out_path,"
    )
    with pytest.raises(TypeError, match=r"run_merge\(\) missing 2 required positional arguments"):
        merges.run_merge(configuration())


def test_with_a_block_the_gate_gets_all_and_the_original(merges, gate):
    """As TRL's MergeModelCallback and mergenetic call it: in-process, without the recipe's text."""
    config = configuration(compat=AWKWARD)
    assert merges.run_merge(config, "out", options=1) == "gated"
    assert merges.calls == []
    [call] = gate.calls
    assert call["block"].value == AWKWARD
    assert call["merge"] is merges.stock
    assert call["source"] is None
    assert call["context"] == RecipeContext()


def test_the_switch_off_says_nothing_where_there_is_no_block(merges, monkeypatch, capsys):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", "0")
    merges.run_merge(configuration(), "out", 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("family", [EvaluationError, InvalidRecipeError, MergeRefusedError])
def test_a_program_catches_either_family(merges, gate, family):
    gate.error = family("r² = 0.6 is over 0.3")
    gate.error.report = "the report"
    with pytest.raises(family) as caught:
        merges.run_merge(configuration(compat={}), "out", 1)
    error = caught.value
    assert isinstance(error, GateExit)
    assert isinstance(error, click.ClickException)
    assert error.exit_code == family.exit_code
    assert str(error) == error.format_message() == "r² = 0.6 is over 0.3"
    assert error.__cause__ is error.error is gate.error
    assert error.report == "the report"
    assert merges.calls == []


def test_what_is_no_refusal_goes_through_as_it_is(merges, gate):
    for error in (KeyboardInterrupt(), RuntimeError("MergeKit's own")):
        gate.error = error
        with pytest.raises(type(error)) as caught:
            merges.run_merge(configuration(compat={}), "out", 1)
        assert caught.value is error


def test_a_refusal_comes_back_from_a_worker_process():
    class Late(CompatError):
        """As the gate may define one, with arguments of its own."""

        exit_code = 4

        def __init__(self, task, loss):
            super().__init__(f"{task} lost {loss} %")

    assert at_the_edge(Late("topic", 30)).exit_code == 4
    error = at_the_edge(MergeRefusedError("no"))
    error.error.report = 1
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.exit_code, type(again)) == ("no", 3, type(error))


def test_modules_that_bound_the_original_get_the_wrapper(monkeypatch):
    early = types.ModuleType("imported_early")
    monkeypatch.setitem(sys.modules, "imported_early", early)
    monkeypatch.setitem(sys.modules, "no_module", object())
    unhooked = types.ModuleType("fake_mergekit_merge")
    unhooked.run_merge = early.renamed = lambda merge_config, out_path, options, config_source: 1
    monkeypatch.setitem(sys.modules, "fake_mergekit_merge", unhooked)
    mergekit_hook.wrap_run_merge(unhooked)
    wrapper = unhooked.run_merge
    assert early.renamed is wrapper
    mergekit_hook.wrap_run_merge(unhooked)
    assert unhooked.run_merge is wrapper


def test_another_run_merge_is_not_wrapped_by_guess():
    module = types.ModuleType("mergekit_of_the_future")
    module.run_merge = lambda config, *, where: None
    with pytest.raises(TypeError, match=r"run_merge\(config, \*, where\) is not the run_merge"):
        mergekit_hook.wrap_run_merge(module)


def test_the_installed_mergekit_is_hooked_wherever_it_was_imported():
    assert mergekit_hook.is_installed()
    assert run_yaml.run_merge is multimerge.run_merge is mergekit.merge.run_merge


# --- the stock commands ------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    def write(*documents: object) -> Path:
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(EvaluationError("e"), 1), (InvalidRecipeError("e"), 2), (MergeRefusedError("e"), 3)],
)
def test_mergekit_yaml_prints_the_message_and_exits(gate, recipe, tmp_path, error, exit_code):
    gate.error = error
    path = recipe(PLAIN | {"compat": {}})
    result = CliRunner().invoke(run_yaml.main, [str(path), str(tmp_path / "out")])
    assert result.exit_code == exit_code
    assert result.stderr == "Error: e\n"
    [call] = gate.calls
    assert call["context"] == RecipeContext("mergekit-yaml", path, None)
    assert call["source"] == path.read_text(encoding="utf-8")


def test_mergekit_multi_prints_the_message_and_exits(gate, recipe, tmp_path):
    gate.error = MergeRefusedError("too far apart")
    path = recipe(
        PLAIN | {"name": "first", "compat": AWKWARD}, PLAIN | {"models": [{"model": "first"}]}
    )
    arguments = [str(path), "-I", str(tmp_path / "between"), "--out-path", str(tmp_path / "out")]
    result = CliRunner().invoke(multimerge.main, arguments)
    assert result.exit_code == 3
    assert "Error: too far apart\n" in result.stderr
    [call] = gate.calls
    assert call["block"].value == AWKWARD
    assert call["context"] == RecipeContext("mergekit-multi", path, tmp_path / "between")


@pytest.mark.parametrize("command", ["yaml", "multi"])
def test_an_empty_block_does_not_pass_for_none(gate, recipe, tmp_path, monkeypatch, command):
    path = recipe(PLAIN | {"compat": None})
    arguments = [str(path), str(tmp_path / "out")]
    if command == "multi":
        arguments = [
            str(path),
            "-I",
            str(tmp_path / "between"),
            "--out-path",
            str(tmp_path / "out"),
        ]
    main = {"yaml": run_yaml, "multi": multimerge}[command].main
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"Error: {path}: `compat:` is empty; write `compat: {{}}`" in result.stderr
    assert gate.calls == []


@pytest.mark.parametrize("key", ["Compat", "comapt", "compat_", "combat"])
def test_a_misspelt_block_does_not_pass_for_none(gate, recipe, tmp_path, key):
    path = recipe(PLAIN | {key: {}})
    result = CliRunner().invoke(run_yaml.main, [str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert f"Error: {path}: the key {key!r} means nothing to MergeKit" in result.stderr
    assert gate.calls == []


@pytest.mark.parametrize("mode", ["warn", "0"])
def test_a_lost_block_is_only_told_where_the_environment_says_so(merges, capsys, monkeypatch, mode):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", mode)
    merges.run_merge(configuration(), "out", 1, "compat:")
    assert len(merges.calls) == 1
    assert "merging ungated" in capsys.readouterr().err


def test_the_word_alone_is_no_block(merges, gate):
    for text in ("# compat:", "models: [compat]", "compat: [", "- compat"):
        merges.run_merge(configuration(), "out", 1, text)
    assert len(merges.calls) == 4


def test_a_program_of_its_own_is_no_stock_command():
    @click.command("mergekit-something")
    @click.argument("config_file")
    def main(config_file):
        assert recipe_context() == RecipeContext()

    assert CliRunner().invoke(main, ["recipe.yml"], catch_exceptions=False).exit_code == 0
    assert recipe_context() == RecipeContext()


def test_no_candidate_of_mergekit_evolve_carries_a_block(monkeypatch):
    """Each of hundreds would be measured. Not even a genome file with a block makes one."""
    from mergekit.common import ModelReference
    from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition

    layers = types.SimpleNamespace(num_hidden_layers=2)
    monkeypatch.setattr(ModelReference, "config", lambda self, trust_remote_code=False: layers)
    for method in ("linear", "slerp"):
        definition = ModelGenomeDefinition.model_validate(
            {"models": ["left", "right"], "merge_method": method, "compat": AWKWARD}
        )
        genome = ModelGenome(definition)
        candidate = genome.genotype_merge_config(genome.initial_genotype())
        assert candidate.compat is None
