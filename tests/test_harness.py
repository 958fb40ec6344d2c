"""lm-eval on a merged model: tasks from files, and none that runs code unasked."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.evaluation.harness import (
    _metrics,
    _own_manager,
    require_lm_eval,
    require_tasks,
    run_lm_eval,
)
from mergekit_collapse.evaluation.lm_eval_process import calm, in_folder, module
from mergekit_collapse.evaluation.lm_eval_tasks import (
    group_name,
    local_path,
    require_data_only,
    task_files,
)

TASK = """\
task: films
dataset_path: json
dataset_kwargs:
  data_files:
    test: data/films.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [bad, good]
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
"""
ROWS = [
    {"text": "The film was wonderful. It is", "label": 1},
    {"text": "That was the worst meal. It is", "label": 0},
    {"text": "The story is moving. It is", "label": 1},
    {"text": "The dog does not mind. It is", "label": 0},
]


@pytest.fixture
def folder(tmp_path):
    """A recipe's folder, with a folder of tasks in it."""
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    (tmp_path / "tasks" / "films.yaml").write_text(TASK)
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "tasks" / "data" / "films.jsonl").write_text(rows)
    return tmp_path


def test_without_lm_eval_the_command_that_installs_it_is_told():
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed")
    for require in (require_lm_eval, lambda: require_tasks(["nowhere.yaml"], Path(), False)):
        with pytest.raises(InvalidRecipeError, match=r"pip install 'mergekit-collapse\[lm-eval\]'"):
            require()


def test_a_path_is_told_from_a_name(folder):
    assert local_path("tasks/films.yaml", folder) == folder / "tasks" / "films.yaml"
    assert local_path("./tasks", folder) == local_path("tasks", folder) == folder / "tasks"
    assert local_path("hellaswag", folder) is None
    assert local_path("openai/mrcr", folder) is None
    for missing in ("other.yaml", "./other", "/nowhere/at/all", "~nobody-of-that-name/x"):
        with pytest.raises(InvalidRecipeError, match="no such task file or folder"):
            local_path(missing, folder)


def test_a_folder_gives_its_task_files(folder):
    assert task_files(folder / "tasks") == [folder / "tasks" / "films.yaml"]
    with pytest.raises(InvalidRecipeError, match=r"names end in \.yaml"):
        task_files(folder / "tasks" / "data")


def test_a_task_of_data_alone_is_let_through(folder):
    require_data_only(task_files(folder / "tasks"), {"acc"})
    assert group_name(folder / "tasks" / "films.yaml") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("process_docs: !function utils.run", "line 13: !function utils.run would run Python"),
        ("x: {deep: [1, !function utils.run ]}", "!function utils.run"),
        ("x: !!python/name:os.system", "python/name:os.system"),
        ("!function utils.run : x", "!function utils.run"),
        ("class: !function utils.Task", "class|!function"),
        ("class: utils.Task", "the key 'class' would run"),
        ("x: {class: y}", "the key 'class' would run"),
        ("custom_dataset: y", "the key 'custom_dataset' would run"),
        ("other: {trust_remote_code: true}", "the key 'trust_remote_code' would run"),
        ("fewshot_config: {dataset_path: ./load.py}", "load.py is a script"),
        ("other: [{metric: ./evil}]", "no metric './evil'"),
        ("other: {dataset_path: pandas}", "pandas reads pickles"),
        ("other: [{metric: acc, hf_evaluate: true}]", "hf_evaluate fetches a script"),
        ("other: [{metric: acc, hf_evaluate: {true: to Python}}]", "hf_evaluate fetches a script"),
        ("other: [{metric: acc, hf_evaluate: 'false'}]", "hf_evaluate fetches a script"),
        ("a: &x {class: y}\nb: *x", "the key 'class' would run"),
        ("a: [", "not YAML"),
        ("include: nowhere.yaml", "cannot be read"),
        ("<<: {include: nowhere.yaml}", "cannot be read"),
        ("x: &x {include: [nowhere.yaml]}\n<<: [{a: 1}, *x]", "cannot be read"),
        ("deep: [{er: {include: nowhere.yaml}}]", "cannot be read"),
        ('include: "a\\0b"', "cannot be read"),
        ("deep: " + 9999 * "[", "not YAML"),
    ],
)
def test_what_would_run_code_is_refused(folder, line, message):
    path = folder / "tasks" / "films.yaml"
    path.write_text(TASK + line + "\n")
    with pytest.raises(InvalidRecipeError, match=message):
        require_data_only([path], {"acc"})
    # The same, one or two includes away, in a file of any name.
    path.rename(folder / "hidden")
    (folder / "middle").write_text("include: [hidden, middle]\n")
    path.write_text(TASK + "include: ../middle\n")
    with pytest.raises(InvalidRecipeError, match=message):
        require_data_only([path], {"acc"})


def test_a_tilde_is_a_folder_of_that_name_as_for_lm_eval(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    harmless, real = tmp_path / "home" / "token", folder / "tasks" / "~" / "token"
    for path in (harmless, real):
        path.parent.mkdir()
        path.write_text("a: 1\n")
    path = folder / "tasks" / "films.yaml"
    path.write_text(TASK + 'include: "~/token"\n')
    require_data_only([path], {"acc"})
    real.write_text("process_docs: !function utils.run\n")
    with pytest.raises(InvalidRecipeError, match=r"!function utils\.run"):
        require_data_only([path], {"acc"})


def test_what_lies_behind_a_link_includes_its_own_neighbours(folder):
    (folder / "other").mkdir()
    (folder / "other" / "films").write_text(TASK + "include: more\n")
    (folder / "other" / "more").write_text("x: !function utils.run\n")
    (folder / "tasks" / "more").write_text("a: 1\n")
    path = folder / "tasks" / "films.yaml"
    path.unlink()
    path.symlink_to(folder / "other" / "films")
    with pytest.raises(InvalidRecipeError, match=r"!function utils\.run"):
        require_data_only([path], {"acc"})


def test_modules_are_not_found_beside_the_data(tmp_path, monkeypatch):
    (tmp_path / "stranger_module.py").touch()
    monkeypatch.syspath_prepend("")
    before = sys.path[:]
    with in_folder(tmp_path):
        assert importlib.util.find_spec("stranger_module") is None
    assert sys.path == before
    monkeypatch.chdir(tmp_path)
    assert importlib.util.find_spec("stranger_module") is not None, "the attack would work"


def test_metrics_are_told_from_what_stands_beside_them():
    values = {"alias": "films", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": "N/A"}
    strict = {"em,strict": 1, "em_stderr,strict": 0.1}
    assert _metrics({"films": values, "sums": strict}) == {
        "films": {"acc": 0.5},
        "sums": {"em,strict": 1.0},
    }
    with pytest.raises(EvaluationError, match="task 'films': acc,none is nan"):
        _metrics({"films": {"acc,none": float("nan")}})


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval")


def evaluate(tasks, model, folder, **more):
    settings = {"device": "cpu", "dtype": "float32", "trust_remote_code": False, **more}
    return run_lm_eval(tasks, model, folder=folder, **settings)


@torch.no_grad()
def accuracy(model_folder):
    """The task's, without lm-eval."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    hits = 0
    for row in ROWS:
        scores = []
        for choice in ("bad", "good"):
            start = tokenizer(row["text"])["input_ids"]
            ids = tokenizer(f"{row['text']} {choice}")["input_ids"]
            steps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            scores.append(sum(float(steps[i - 1, ids[i]]) for i in range(len(start), len(ids))))
        hits += scores.index(max(scores)) == row["label"]
    return hits / len(ROWS)


# Where a task says that a function of the folder's own runs.
WAYS = ("plainly", "under a merge key", "behind a tilde")


def hide_code(way, folder, monkeypatch):
    """Make the task of ``folder`` run code; what is returned exists once that has run."""
    ran, tasks = folder / "ran", folder / "tasks"
    code = f"def same(docs):\n    return docs\nopen({str(ran)!r}, 'w').close()\n"
    line = "process_docs: !function utils.same\n"
    home, tilde = folder / "home" / ".x", tasks / "~" / ".x"
    if way == "behind a tilde":
        for place in (home, tilde):
            place.mkdir(parents=True)
        monkeypatch.setenv("HOME", str(folder / "home"))
        (home / "token").write_text("a: 1\n")
        (tilde / "token").write_text(line)
        (tilde / "utils.py").write_text(code)
        line = 'include: "~/.x/token"\n'
    elif way == "under a merge key":
        (tasks / "evil.txt").write_text(line)
        line = "<<: {include: evil.txt}\n"
    (tasks / "utils.py").write_text(code)
    (tasks / "films.yaml").write_text(TASK + line)
    return ran


slow_with_lm_eval = [
    pytest.mark.slow,
    # What lm-eval and the libraries that it imports deprecate of one another's.
    pytest.mark.filterwarnings("ignore"),
]


class TestWithLmEval:
    pytestmark = slow_with_lm_eval

    def test_a_task_file_beside_the_recipe_needs_no_network(self, lm_eval, tiny_model, folder):
        model = tiny_model("llama", 1)
        for task in ("tasks/films.yaml", "tasks"):
            found = evaluate([task], model, folder)
            assert found == {"films": {"acc": pytest.approx(accuracy(model))}}

    def test_a_group_brings_its_tasks(self, lm_eval, tiny_model, folder):
        (folder / "tasks" / "all.yaml").write_text(
            "group: all_films\ntask: [films]\naggregate_metric_list:\n"
            "  - {metric: acc, weight_by_size: true}\n"
        )
        found = evaluate(["tasks/all.yaml"], tiny_model("llama", 1), folder)
        assert found["all_films"] == found["films"] == {"acc": accuracy(tiny_model("llama", 1))}

    @pytest.mark.parametrize("way", WAYS)
    def test_code_runs_with_consent_and_not_without(
        self, lm_eval, tiny_model, folder, monkeypatch, way
    ):
        ran = hide_code(way, folder, monkeypatch)
        with pytest.raises(InvalidRecipeError, match="--trust-remote-code"):
            require_tasks(["tasks"], folder, False)
        with pytest.raises(InvalidRecipeError, match="--trust-remote-code"):
            evaluate(["tasks"], tiny_model("llama"), folder)
        assert not ran.exists()
        require_tasks(["tasks"], folder, True)
        assert not ran.exists(), "files are read, and no more than that"
        evaluate(["tasks"], tiny_model("llama"), folder, trust_remote_code=True)
        assert ran.exists(), "the attack would work"

    @pytest.mark.parametrize("way", WAYS)
    def test_the_fence_holds_whatever_the_check_has_let_through(
        self, lm_eval, folder, monkeypatch, way
    ):
        ran = hide_code(way, folder, monkeypatch)
        path = str(folder / "tasks" / "films.yaml")
        with in_folder(folder / "tasks"):
            manager = module("lm_eval.tasks").TaskManager(include_defaults=False)
            with calm(False), pytest.raises(InvalidRecipeError, match=r"!function utils\.same"):
                manager.load([path])
            assert not ran.exists()
            with calm(True):
                manager.load([path])
            assert ran.exists(), "the attack would work"

    def test_the_fence_lets_lm_evals_own_functions_through(self, lm_eval):
        tasks = module("lm_eval.tasks")
        loader = module("lm_eval.tasks._yaml_loader")
        before = loader._import_func_in_yml
        own = Path(tasks.__file__).parent / "hellaswag" / "hellaswag.yaml"
        with calm(False):
            assert callable(loader.load_yaml(own)["process_docs"])
        assert loader._import_func_in_yml is before

    def test_a_template_cannot_reach_pythons_insides(self, lm_eval, tiny_model, folder):
        ran = folder / "ran"
        attack = "{{ cycler.__init__.__globals__.os.system('touch %s') }}" % ran  # noqa: UP031
        path = folder / "tasks" / "films.yaml"
        path.write_text(TASK.replace('"{{text}}"', json.dumps(attack)))
        with pytest.raises(EvaluationError, match="is unsafe"):
            evaluate(["tasks"], tiny_model("llama"), folder)
        assert not ran.exists()
        evaluate(["tasks"], tiny_model("llama"), folder, trust_remote_code=True)
        assert ran.exists(), "the attack would work"

    def test_an_unknown_task_is_told_with_its_neighbours(self, lm_eval, tiny_model, folder):
        for ask in (
            lambda: require_tasks(["tasks", "hellasvag"], folder, False),
            lambda: evaluate(["hellasvag"], tiny_model("llama"), folder),
        ):
            with pytest.raises(InvalidRecipeError, match="'hellasvag'; did you mean hellaswag"):
                ask()

    def test_tasks_are_required_before_anything_is_measured(self, lm_eval, folder):
        require_tasks(["tasks", "tasks/films.yaml", "hellaswag", "mmlu_*"], folder, False)
        with pytest.raises(InvalidRecipeError, match="no such task file or folder"):
            require_tasks(["tasks", "other.yaml"], folder, False)
        _own_manager.cache_clear()
        require_tasks(["tasks", "tasks/films.yaml"], folder, False)
        assert _own_manager.cache_info().currsize == 0, "paths need no index, which takes seconds"
        (folder / "tasks" / "films.yaml").write_text("a: [")
        for trusted in (False, True):
            with pytest.raises(InvalidRecipeError, match="not YAML"):
                require_tasks(["tasks/films.yaml"], folder, trusted)

    def test_rows_that_are_not_there_are_told(self, lm_eval, tiny_model, folder):
        path = folder / "tasks" / "films.yaml"
        (folder / "tasks" / "data" / "films.jsonl").unlink()
        with pytest.raises(EvaluationError, match=f"lm-eval task {path}"):
            evaluate([str(path)], tiny_model("llama"), folder)
