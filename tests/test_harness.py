"""lm-eval on a merged model: tasks from files, and none that runs code unasked."""

import importlib.util
import json

import pytest
import torch
import transformers

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.evaluation.harness import _metrics, require_lm_eval, run_lm_eval
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
    with pytest.raises(InvalidRecipeError, match=r"pip install 'mergekit-collapse\[lm-eval\]'"):
        require_lm_eval()


def test_a_path_is_told_from_a_name(folder):
    assert local_path("tasks/films.yaml", folder) == folder / "tasks" / "films.yaml"
    assert local_path("./tasks", folder) == local_path("tasks", folder) == folder / "tasks"
    assert local_path("hellaswag", folder) is None
    assert local_path("openai/mrcr", folder) is None
    for missing in ("other.yaml", "./other", "/nowhere/at/all"):
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
        ("other: [{metric: acc, hf_evaluate: true}]", "hf_evaluate fetches a script"),
        ("a: &x {class: y}\nb: *x", "the key 'class' would run"),
        ("a: [", "not YAML"),
        ("include: nowhere.yaml", "cannot be read"),
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

    def test_code_runs_with_consent_and_not_without(self, lm_eval, tiny_model, folder):
        ran = folder / "ran"
        (folder / "tasks" / "utils.py").write_text(
            f"def same(docs):\n    open({str(ran)!r}, 'w').close()\n    return docs\n"
        )
        path = folder / "tasks" / "films.yaml"
        path.write_text(TASK + "process_docs: !function utils.same\n")
        with pytest.raises(InvalidRecipeError, match="--trust-remote-code"):
            evaluate(["tasks"], tiny_model("llama"), folder)
        assert not ran.exists()
        evaluate(["tasks"], tiny_model("llama"), folder, trust_remote_code=True)
        assert ran.exists()

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
        with pytest.raises(InvalidRecipeError, match="no task 'hellasvag'; did you mean hellaswag"):
            evaluate(["hellasvag"], tiny_model("llama"), folder)

    def test_rows_that_are_not_there_are_told(self, lm_eval, tiny_model, folder):
        path = folder / "tasks" / "films.yaml"
        (folder / "tasks" / "data" / "films.jsonl").unlink()
        with pytest.raises(EvaluationError, match=f"lm-eval task {path}"):
            evaluate([str(path)], tiny_model("llama"), folder)
