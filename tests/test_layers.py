"""Data flows one way: a module imports only modules that come before it."""

import ast
import re
from pathlib import Path

import pytest

import mergekit_collapse

PACKAGE = Path(mergekit_collapse.__file__).parent

# The map of the house: rooms from front door to back, and inside a room likewise.
ROOMS = {
    "": """
        errors shapes switch byte_size karcher merge_methods findings foreign_errors cache_folder
        cached_files kept_values whole_file json_file
    """,
    "recipe": """
        default_limits values limits schema counted_reading validation compat_source text context
        groups recipe source_layers coefficients places pool_experts own_weights reweighted
        layer_weights members other_method document_change yaml_values yaml_layout yaml_splice
        yaml_edit initial_block
    """,
    "preflight": """
        tensor_headers hub_repository model_source checkpoint weight_files model_config
        tokenizer_files adapter_files model_facts tokenizers_agree merge_rules
        model_differences tensor_differences preflight
    """,
    "probes": "files rounds probes tokens",
    "states": """
        figures workload storage peak_memory estimate states heap pooling batching weights
        shard_file lora_update adapters loader model_identity forward model_states state_file
        state_store arrays counted_positions layer_statistics profiles whole_model dry_forward
        skeleton tensor_stages layered whole_by_stage layered_agreement tensor_files ahead
        stage_tensors stage_reader sweep layered_files layered_trial streaming model_figures
        sweep_figures memory_use run_models run_plan fewer_tokens missing_states parts
        device_process devices on_ray hidden_states joined
    """,
    "geometry": """
        pair_squares rows scales probe_parts distances chance_distances enclosing_ball minimax
        predicted bounds merging_difficulty grouping resampling own_task geometry measured
        layer_reading jackknife sequential
    """,
    "parameters": "conflict conflict_document task_vectors parameter_conflict",
    "verdict judging stopping": "",
    "remedy": """
        weight_range protecting reweighting group_reading own_task_reading criterion dropping
        same_tasks replacing splitting candidate_sets set_search set_proof choosing candidate_scores
    """,
    "evaluation": """
        scoring_set scoring merging_loss own_scores expert_scores merged_files generation smoke
        lm_eval_tasks lm_eval_process harness evaluation unscored known_losses own_answers judgement
    """,
    "material finished_merge": "",
    "watch": "shelf layer_tasks layer_order substitution observer watch rehearsal",
    "report": """
        geometry_document remedy report hint evaluation_document estimate_document document
        merged_text verdict_text terminal stored stored_geometry stored_evaluation stored_remedy
        stored_report reader
    """,
    "formats": """
        plain missing_keys readings stages change markdown card junit github scalars tracking
        announcement comparison
    """,
    "page": """
        numerals palette seriation plane_map inline_svg charts map_chart verdict_view remedy_view
        meters space_view evaluation_view html
    """,
    "merge_options caches cache_listing": "",
    "early_stop assessment evaluating staging staging_folder rehearsing": "",
    "repair": """
        change before_and_after changed_recipe moved_block group_limits remeasured weights fewer
        method split_recipes replacement_limits substitute_pool standing_in
        substitutes changed_files
    """,
    "remedying": "",
    "saved_plan": """
        record own_code input_files digests found_inputs options changes plan_file making
        exact_merge following
    """,
    "merge_plan watched_merge merging gating gate click_errors mergekit_hook": "",
    "pool": """
        pool_file pool_models candidates pool_states pool_sets chosen_recipe selection chosen_text
        selection_report
    """,
    "doctor": "symptom probe recipe doctor",
    "demo": "smollm2 scores run",
    "study": """
        paper_tables correlation rounding printed_p misprint anova method_against_task
        score_counts mds_consistency cluster_resamples estimate tied_groups auroc
        clustered_correlation share error_rates folds left_out limit_search fitted_limit
        either_limit discrimination paper_study columns correlation_text paper_text paper_document
        report_signals finished_merges report_folder comparable_merges fitted_signal chosen_signal
        calibration calibration_document calibration_text
    """,
    "commands": "output recipe_files options cache study",
    "cli __main__": "",
}

PURE = ["geometry", "verdict", "judging", "stopping", "remedy"]
IMPURE = {"torch", "transformers", "mergekit", "os", "io", "pathlib", "time", "datetime", "logging"}


def order():
    for room, modules in ROOMS.items():
        if modules and room:
            yield from (f"{room}.{module}" for module in modules.split())
        else:
            yield from (room or modules).split()


ORDER = list(order())


def files():
    found = (p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(found)}


def imported(path):
    """Dotted names that a file imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_place():
    assert sorted(files()) == sorted(ORDER)


def test_contributing_names_every_room_and_no_other():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    assert named == {name.split(".")[0] for name in ORDER} - {"__main__"}


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_comes_before_it(name):
    for full in imported(files()[name]):
        target = full.removeprefix("mergekit_collapse.")
        if target in ORDER:
            assert ORDER.index(target) < ORDER.index(name), f"{name} imports {target}"


@pytest.mark.parametrize("name", [n for n in ORDER if n.split(".")[0] in PURE])
def test_mathematics_is_pure(name):
    tops = {full.split(".")[0] for full in imported(files()[name])}
    assert not tops & IMPURE


def test_rooms_hold_nothing_but_their_modules():
    """An ``__init__`` that imports would load a whole room for one of its modules."""
    for path in PACKAGE.rglob("*/__init__.py"):
        assert not list(imported(path)), path
