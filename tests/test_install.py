"""The start-up files as they are installed: what they do to MergeKit, and to everything else."""

import importlib.metadata
import re
import shutil
import sys
import zipfile

import pytest
import yaml
from scratch_environment import REPOSITORY, build_wheel, make_environment

pytestmark = pytest.mark.slow

STARTUP = "_mergekit_collapse_startup"
PTH = "mergekit_collapse_startup.pth"
IS_HOOKED = """
import mergekit.config, mergekit.merge
print("compat" in mergekit.config.MergeConfiguration.model_fields)
print(hasattr(mergekit.merge.run_merge, "__mergekit_collapse__"))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """An environment without the plugin."""
    return make_environment(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def wheel_installed(tmp_path_factory, wheel):
    environment = make_environment(tmp_path_factory.mktemp("wheel-installed"))
    environment.pip("install", "-q", "--no-deps", "--no-index", wheel)
    return environment


@pytest.fixture(scope="session")
def editable(tmp_path_factory):
    environment = make_environment(tmp_path_factory.mktemp("editable"))
    options = ("--no-deps", "--no-index", "--no-build-isolation")
    environment.pip("install", "-q", *options, "-e", REPOSITORY)
    return environment


@pytest.fixture(params=["wheel_installed", "editable"])
def installed(request):
    return request.getfixturevalue(request.param)


def test_the_wheel_has_all_it_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {PTH, f"{STARTUP}.py"} <= set(names)
    assert "mergekit_collapse/data/builtin_probes.jsonl" in names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {PTH, f"{STARTUP}.py", "mergekit_collapse"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_without_the_plugin_it_is_not(plain):
    assert plain.run("-c", IS_HOOKED).stdout == "False\nFalse\n"


def test_mergekit_is_hooked_and_keeps_its_loaders_and_survives_a_reload(installed):
    done = installed.run(
        "-c",
        """
import importlib, importlib.machinery, importlib.resources, importlib.util, inspect
for name in ("mergekit.config", "mergekit.merge"):
    assert importlib.util.find_spec(name).loader is not None  # looks, and does not import
import mergekit.config, mergekit.merge
from mergekit_collapse.mergekit_hook import is_installed
assert is_installed()
for module in (mergekit.config, mergekit.merge):
    loader = module.__spec__.loader
    assert type(loader) is importlib.machinery.SourceFileLoader is type(module.__loader__)
    assert "exec_module" not in vars(loader)
    assert inspect.getsource(module) == open(module.__file__, encoding="utf-8").read()
assert importlib.resources.files("mergekit._data").joinpath("architectures").is_dir()
assert inspect.getsource(mergekit.merge.run_merge).startswith("def run_merge(")
importlib.reload(mergekit.config)
importlib.reload(mergekit.merge)
assert is_installed()
importlib.reload(importlib.import_module("_mergekit_collapse_startup"))
import sys
assert [type(finder).__name__ for finder in sys.meta_path].count("MergekitFinder") == 1
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_import_at_once_get_a_hooked_module(wheel_installed):
    done = wheel_installed.run(
        "-c",
        """
import threading
def work():
    import mergekit.merge, mergekit.config
    seen.append("compat" in mergekit.config.MergeConfiguration.model_fields)
seen = []
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert seen == [True] * 4, seen
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


def imported_at_start(environment):
    done = environment.run("-X", "importtime", "-c", "pass")
    assert done.stdout == ""
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines()}


def test_a_start_of_python_imports_one_module_more_and_no_other(installed, plain):
    assert imported_at_start(installed) - imported_at_start(plain) == {STARTUP}


def test_a_program_without_mergekit_never_imports_the_package(installed):
    code = "import sys, json, pydantic; print([m for m in sys.modules if 'mergekit_collapse' in m])"
    assert installed.run("-c", code).stdout == f"['{STARTUP}']\n"


def test_mergekit_imported_before_is_hooked_at_once(plain):
    """As in a notebook where the package was installed after MergeKit was imported."""
    code = """
import mergekit.config, mergekit.merge
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge as bound_early
from mergekit.scripts import multimerge, run_yaml
early = [bound_early]  # out of reach, in a list
{how}
from mergekit_collapse.mergekit_hook import is_installed
assert is_installed()
assert "compat" in MergeConfiguration.model_fields
assert bound_early is run_yaml.run_merge is multimerge.run_merge is mergekit.merge.run_merge
assert bound_early is not early[0]
"""
    path = f"{REPOSITORY}:{REPOSITORY / 'startup'}"
    for how in (
        f"import {STARTUP}",
        "from mergekit_collapse import mergekit_hook as m; m.install()",
    ):
        done = plain.run("-c", code.replace("{how}", how), PYTHONPATH=path)
        assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_hooks_nothing(plain):
    code = "import mergekit_collapse, mergekit_collapse.mergekit_hook" + IS_HOOKED
    done = plain.run("-c", code, PYTHONPATH=str(REPOSITORY))
    assert done.stdout == "False\nFalse\n"


def test_uninstalling_leaves_nothing_behind(tmp_path, wheel):
    environment = make_environment(tmp_path / "environment")
    environment.pip("install", "-q", "--no-deps", "--no-index", wheel)
    assert (environment.packages / PTH).exists()
    environment.run("-c", IS_HOOKED)
    environment.pip("uninstall", "-q", "-y", "mergekit-collapse")
    assert not [p.name for p in environment.packages.iterdir() if "collapse" in p.name]
    assert environment.run("-c", IS_HOOKED).stdout == "False\nFalse\n"


@pytest.mark.parametrize(
    "left", ["start-up files", "an empty folder", "the .pth file", "no .pth file"]
)
def test_a_half_removed_installation_is_silent(tmp_path, wheel, left):
    environment = make_environment(tmp_path / "environment")
    environment.unpack(wheel)
    package = environment.packages / "mergekit_collapse"
    if left == "no .pth file":
        (environment.packages / PTH).unlink()
    else:
        shutil.rmtree(package)
    if left == "an empty folder":
        (package / "__pycache__").mkdir(parents=True)
    if left == "the .pth file":
        (environment.packages / f"{STARTUP}.py").unlink()
    start = environment.run("-c", "pass")
    assert (start.returncode, start.stdout, start.stderr) == (0, "", "")
    done = environment.run("-c", IS_HOOKED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\nFalse\n", "")


def test_a_damaged_installation_says_that_blocks_are_ignored(tmp_path, wheel):
    environment = make_environment(tmp_path / "environment")
    environment.unpack(wheel)
    (environment.packages / "mergekit_collapse" / "errors.py").write_text("1 / 0\n")
    assert environment.run("-c", "pass").stderr == ""
    done = environment.run("-c", IS_HOOKED)
    assert (done.returncode, done.stdout) == (0, "False\nFalse\n")
    said = done.stderr.splitlines()
    assert [line.split(" could not")[0] for line in said] == [
        "mergekit-collapse: mergekit.config",
        "mergekit-collapse: mergekit.merge_methods",
        "mergekit-collapse: mergekit.merge",
    ]
    assert "a `compat:` block is IGNORED: ZeroDivisionError" in said[0]
    assert "its methods are MISSING: ZeroDivisionError" in said[1]


# --- a recipe without a block ------------------------------------------------------------------


def stock_command(environment, name):
    """The console script, as pip would write it for this environment."""
    [entry] = importlib.metadata.entry_points(group="console_scripts", name=name)
    script = environment.folder / "bin" / name
    script.write_text(
        f"#!{environment.python}\nimport sys\nfrom {entry.module} import {entry.attr}\n"
        f"sys.argv[0] = {name!r}\nsys.exit({entry.attr}())\n"
    )
    script.chmod(0o755)
    return script


# MergeKit keeps models in a set, and takes the tokenizer from its first and writes the card in its
# order. Before Python 3.12 not even PYTHONHASHSEED fixes that: hash(None) is an address.


def said(text):
    """The lines, whatever the order of the models, and without tqdm's bars: those tell the time."""
    text = re.sub(r"[^\r\n]*?\d+%\|[^\r\n]*?\[[^\]]*\]", "", text)
    text = re.sub(r"\./(experts|made/here)/\w+", "MODEL", text)
    return sorted(line for line in re.split(r"[\r\n]+", text) if line)


def content(path):
    """The bytes; of the card, its lines whatever their order."""
    found = path.read_bytes()
    return sorted(found.splitlines()) if path.name == "README.md" else found


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, tiny_model):
    """Relative paths only: two environments must be given the very same command line.

    With two slashes, since MergeKit's card asks the hub for a model of any shorter name.
    """
    folder = tmp_path_factory.mktemp("recipes")
    for name, seed in (("left", 0), ("right", 1)):
        shutil.copytree(tiny_model("llama", seed), folder / "experts" / name)

    def linear(*models):
        half = {"weight": 0.5}
        return {
            "merge_method": "linear",
            "models": [{"model": model, "parameters": half} for model in models],
            "dtype": "float32",
        }

    first = linear("./experts/left", "./experts/right")
    no_method = {key: value for key, value in first.items() if key != "merge_method"}
    documents = {
        "one.yml": [first],
        "many.yml": [first | {"name": "first"}, linear("first", "./experts/left")],
        "bad.yml": [no_method],
    }
    for name, each in documents.items():
        (folder / name).write_text(yaml.safe_dump_all(each), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("mergekit-yaml", ["one.yml", "out", "-vv"]),
        ("mergekit-multi", ["many.yml", "-I", "./made/here", "--out-path", "out", "--quiet"]),
        ("mergekit-yaml", ["bad.yml", "out", "--quiet"]),
    ],
    ids=["yaml", "multi", "invalid"],
)
def test_a_recipe_without_a_block_is_merged_byte_for_byte_as_ever(
    plain, wheel_installed, recipes, tmp_path, command, arguments
):
    results = []
    for environment in (plain, wheel_installed):
        work = tmp_path / environment.folder.name
        shutil.copytree(recipes, work)
        done = environment.run(
            stock_command(environment, command), *arguments, cwd=work, PYTHONHASHSEED="0"
        )
        stderr = done.stderr.replace(str(environment.folder), "ENVIRONMENT")
        stderr = said(stderr.replace(str(work), "WORK"))
        files = {
            str(path.relative_to(work)): content(path)
            for path in sorted(work.rglob("*"))
            if path.is_file()
        }
        results.append((done.returncode, done.stdout, stderr, files))
    before, after = results
    assert before[0] == (1 if arguments[0] == "bad.yml" else 0), before[2]
    assert after[:3] == before[:3]
    assert after[3].keys() == before[3].keys()
    assert [name for name in before[3] if after[3][name] != before[3][name]] == []
    made = {"out/model.safetensors", "out/README.md", "out/mergekit_config.yml"}
    assert made <= before[3].keys() or arguments[0] == "bad.yml"


def test_the_running_environment_is_left_alone(wheel_installed):
    """The scratch environments must not write through their links."""
    prefix = wheel_installed.run("-c", "import sys; print(sys.prefix)").stdout.strip()
    assert prefix == str(wheel_installed.folder) != sys.prefix
