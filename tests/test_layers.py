"""Data flows one way: a module imports only modules that come before it."""

import ast
import re
from pathlib import Path

import pytest

import mergekit_collapse

PACKAGE = Path(mergekit_collapse.__file__).parent

ORDER = """
    errors shapes schema compat_source recipe_text
    findings recipe coefficients
    foreign_errors tensor_headers hub_repository model_source checkpoint weight_files model_config
    tokenizer_files adapter_files model_facts tokenizers_agree merge_rules
    model_differences tensor_differences preflight
    probe_files probes tokens
    states storage pooling batching weights adapters loader forward state_arrays hidden_states
    state_rows scales distances chance_distances enclosing_ball minimax predicted bounds
    merging_difficulty grouping resampling own_task geometry verdict
    report geometry_document document card terminal
    assessment recipe_context switch staging gate
    click_errors mergekit_hook symptom doctor_probe doctor_recipe doctor demo cli __main__
""".split()  # noqa: SIM905 - a table of rooms reads better than a list of quoted words

PURE = ORDER[ORDER.index("state_rows") : ORDER.index("report")]
IMPURE = {"torch", "transformers", "mergekit", "os", "io", "pathlib", "time", "datetime", "logging"}


def imported(path):
    """Dotted names that a file imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(name):
    return ORDER.index(name) if name in ORDER else None


def files():
    return sorted(
        p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" and p.parent.name != "data"
    )


def test_every_module_has_a_place():
    tops = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in files()}
    assert tops == set(ORDER)


def test_contributing_names_only_modules_that_exist():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 30
    assert named <= set(ORDER)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_comes_before_it(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "mergekit_collapse" and len(parts) > 1 and parts[1] in ORDER:
            inside = path.parent != PACKAGE and parts[1] == own
            assert inside or place(parts[1]) < place(own), f"{own} imports {parts[1]}"


@pytest.mark.parametrize("name", PURE)
def test_mathematics_is_pure(name):
    tops = {imported_name.split(".")[0] for imported_name in imported(PACKAGE / f"{name}.py")}
    assert not tops & IMPURE
