"""What the compat block accepts, and what a mistake in it is told."""

import math

import pytest

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.recipe.validation import parse_compat


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_block_is_the_default_block(empty):
    block = parse_compat(empty)
    assert block == CompatBlock()
    assert (block.budget.distortion, block.budget.mds) == (0.25, None)
    assert block.space == ("hidden", "predictive")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"probes": {"sampels": 3}}, "compat.probes.sampels: unknown key; did you mean 'samples'?"),
        ({"budjet": {}}, "compat.budjet: unknown key; did you mean 'budget'?"),
        (
            {"probes": {"tasks": [{"name": "a", "data": "a.txt", "modle": "m"}]}},
            "compat.probes.tasks[0].modle: unknown key; did you mean 'model'?",
        ),
        (
            {"probes": {"samples": "many"}},
            "compat.probes.samples: auto or a whole number of at least 2 is expected, got 'many'",
        ),
        ({"probes": {"samples": 1}}, "compat.probes.samples: auto or a whole number of at least 2"),
        ({"probes": {"samples": True}}, "is expected, got True"),
        ({"probes": {"samples": None}}, "is expected, got null"),
        ({"probes": {"samples": [8]}}, "is expected, got a list"),
        ({"probes": {"builtin": False}}, "builtin: false leaves no probes"),
        (
            {"probes": {"tasks": [{"name": "a"}]}},
            "compat.probes.tasks[0].data: this key is missing",
        ),
        ({"probes": {"tasks": [{"name": "builtin", "data": "a.txt"}]}}, "shipped probes"),
        (
            {"budget": {"distortion": math.nan}},
            "compat.budget.distortion: input should be a finite",
        ),
        ({"budget": {"mds": math.inf}}, "compat.budget.mds: input should be a finite"),
        ({"budget": {"mds": 0.5}}, "compat.budget.mds"),
        ({"budget": {"distortion": True}}, "compat.budget.distortion: a number is expected"),
        (
            {"budget": {"distortion": None, "mds": None}},
            "distortion and mds are both null, so nothing decides; give one of them a number",
        ),
        (
            {"budget": {"distortion": None}},
            "distortion is null, and mds is off unless you give it a number, so nothing decides",
        ),
        (
            {"budget": {"over": "own_task", "rule": "corollary"}},
            "corollary bounds pooled probes only",
        ),
        ({"budget": {"over": "own_task"}}, "needs probes.tasks with model:"),
        ({"space": "hidden", "budget": {"space": "predictive"}}, "does not measure"),
        ({"layer": "lst"}, "compat.layer: last, all, a layer's number"),
        ({"layer": [1, 1]}, "a layer stands twice"),
        (
            {"on_violation": "substitute", "substitute": {"pool": {}}},
            "substitute needs substitute.pool, a list of models, or one for each expert",
        ),
        ({"on_violation": "substitute", "substitute": {"pool": {"a": []}}}, "substitute.pool"),
        (
            {"substitute": {"pool": 3}},
            "compat.substitute.pool: a list of models, or of experts with a list for each, is "
            "expected, got 3",
        ),
        ({"substitute": {"pool": ["a", None]}}, "is expected, got null in it"),
        (
            {"substitute": {"pool": {"spam": 3}}},
            "compat.substitute.pool: under 'spam' a list of models is expected, got 3",
        ),
        ({"substitute": {"pool": {"spam": [""]}}}, "under 'spam' a list of models"),
        ({"substitute": {"pool": {"spam": ["  "]}}}, "models is expected, got '  ' in it"),
        ({"substitute": {"pool": "\t"}}, r"is expected, got '\t' in it"),
        ({"substitute": {"pool": {False: ["a"]}}}, "an expert's name is expected before the"),
        ({"substitute": {"pool": {"spam": ["a\0"]}}}, "compat.substitute.pool: holds a NUL"),
        ({"substitute": {"pool": {"spam\0": ["a"]}}}, "compat.substitute.pool: holds a NUL"),
        ({"on_violation": "abrot"}, "compat.on_violation: input should be 'abort', 'warn'"),
        ("strict", "compat: input should be a valid mapping"),
        ([1], "compat: input should be a valid mapping"),
        ({1: 2}, "compat"),
        ({"budget": None}, "compat.budget: input should be a valid mapping (got null)"),
        ({"budget": []}, "compat.budget: input should be a valid mapping (got a list)"),
        ({"budget": {"distortion": 10**400}}, "000…)"),
        ({"bud\n\x1b[31mget": 1}, r"compat.'bud\n\x1b[31mget': unknown key"),
        ({"probes": {"seed": -1}}, "compat.probes.seed: input should be greater than or equal"),
        ({"report": "a\0b"}, "compat.report: holds a NUL character"),
        ({"monitr": False}, "compat.monitr: unknown key; did you mean 'monitor'?"),
        ({"monitor": {"stop": 1}}, "compat.monitor.stop: unknown key; did you mean 'stop_at'?"),
        ({"monitor": {"stop_at": 0}}, "compat.monitor.stop_at: input should be greater than 0"),
        ({"monitor": {"stop_at": math.nan}}, "compat.monitor.stop_at: input should be a finite"),
        ({"monitor": {"stop_at": True}}, "compat.monitor.stop_at: a number is expected"),
        (
            {"monitor": {"enabled": False, "stop_at": 1}},
            "compat.monitor: stop_at needs the monitor",
        ),
        ({"monitor": None}, "compat.monitor: input should be a valid mapping (got null)"),
        ({"monitor": 1}, "compat.monitor: input should be a valid mapping"),
        ({"monitor": {"enabled": "yes"}}, "compat.monitor.enabled: input should be a valid bool"),
        (
            {"evaluate": {"max_distorsion": 1}},
            "compat.evaluate.max_distorsion: unknown key; did you mean 'max_distortion'?",
        ),
        ({"evaluate": {"max_distortion": -1}}, "compat.evaluate.max_distortion: input should be"),
        ({"evaluate": {"max_merging_loss": math.inf}}, "compat.evaluate.max_merging_loss"),
        ({"evaluate": {"min_variance_ratio": 1.5}}, "compat.evaluate.min_variance_ratio"),
        ({"evaluate": {"min_rank_ratio": -0.5}}, "compat.evaluate.min_rank_ratio"),
        ({"evaluate": {"on_collapse": "abort"}}, "on_collapse: input should be 'reject' or 'warn'"),
        ({"evaluate": {"lm_eval": [""]}}, "compat.evaluate.lm_eval[0]: string should have"),
        ({"evaluate": {"lm_eval": ["a\0"]}}, "compat.evaluate.lm_eval[0]: holds a NUL character"),
        ({"rehearse": True}, "compat.rehearse: input should be 'auto', 'always' or 'never'"),
        ({"rehearse": "sometimes"}, "compat.rehearse: input should be 'auto', 'always' or 'never'"),
        ({"log_to": "wandbe"}, "compat.log_to[0]: input should be 'tensorboard', 'wandb'"),
        ({"log_to": None}, "compat.log_to: input should be a valid list (got null)"),
        ({"cache": "no"}, "compat.cache: input should be a valid mapping"),
        ({"cache": {"enabled": "no"}}, "compat.cache.enabled: input should be a valid boolean"),
        ({"cache": {"hash": "sha1"}}, "compat.cache.hash: input should be 'quick' or 'full'"),
    ],
)
def test_a_mistake_is_told_with_its_path(value, told):
    with pytest.raises(InvalidRecipeError) as caught:
        parse_compat(value)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "{review"}, "text: a single brace in '{review'"),
        ({"target": "label}"}, "target: a single brace"),
        ({"text": "the same"}, "text: 'the same' has no field"),
        ({"text": "{{review}}"}, "text: '{{review}}' has no field"),
        ({"text": "{}"}, "text: '{}' has no field"),
        ({"model": ""}, "model: string should have at least 1 character"),
        ({"data": "a\0.txt"}, "data: holds a NUL character"),
        ({"target": "{label}", "choices": ["good"]}, "choices: list should have at least 2 items"),
        ({"target": "{label}", "choices": "good"}, "choices: input should be a valid list"),
        ({"target": "{label}", "choices": ["good", " "]}, "choices[1]: a choice is a text"),
        (
            {"target": "{label}", "choices": [1, 2]},
            "choices[0]: a text is expected, got 1; quote it",
        ),
        ({"target": "{label}", "choices": ["good", " good"]}, ": a choice stands twice"),
        ({"choices": ["good", "bad"]}, ": choices without target"),
    ],
)
def test_a_task_that_cannot_be_read_is_told(change, told):
    task = {"name": "a", "data": "a.txt", **change}
    with pytest.raises(InvalidRecipeError) as caught:
        parse_compat({"probes": {"tasks": [task]}})
    where = "compat.probes.tasks[0]" + ("" if told.startswith(":") else ".")
    assert f"{where}{told}" in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(InvalidRecipeError, match=r"(?s)sampels.*layer"):
        parse_compat({"probes": {"sampels": 3}, "layer": "lst"})


def test_two_tasks_of_one_name_are_refused():
    task = {"name": "a", "data": "a.txt"}
    with pytest.raises(InvalidRecipeError, match="two tasks have the name 'a'"):
        parse_compat({"probes": {"tasks": [task, task]}})


def test_one_space_may_stand_without_brackets():
    assert parse_compat({"space": "hidden"}).space == ("hidden",)


def test_a_switch_may_stand_for_its_block():
    off = parse_compat({"monitor": False, "evaluate": False})
    assert (off.monitor.enabled, off.evaluate.enabled) == (False, False)
    assert parse_compat({"monitor": True, "evaluate": True}) == CompatBlock()
    # The limits are kept: a rehearsal is judged by them too.
    assert off.evaluate.max_distortion == CompatBlock().evaluate.max_distortion


TASKS = {"tasks": [{"name": "a", "data": "a.txt"}]}


def limits_of(block):
    return block.budget.distortion, block.evaluate.max_distortion


def test_the_default_limits_go_by_the_tasks():
    assert limits_of(parse_compat({})) == limits_of(CompatBlock()) == (0.25, 0.7)
    assert limits_of(parse_compat({"probes": TASKS})) == (0.45, 1.0)
    assert limits_of(parse_compat({"probes": {"builtin": False, **TASKS}})) == (0.45, 1.0)
    # Also beside other keys of the same part, and where a part is a switch.
    other = {"budget": {"rule": "corollary"}, "evaluate": False}
    assert limits_of(parse_compat(other)) == (0.25, 0.7)
    assert limits_of(parse_compat({"probes": TASKS, **other})) == (0.45, 1.0)


@pytest.mark.parametrize("probes", [{}, TASKS])
@pytest.mark.parametrize("limit", [0.25, 0.45, 0.3, None])
def test_a_limit_that_is_written_always_holds(probes, limit):
    written = {
        "budget": {"distortion": limit, "mds": 3.0},
        "evaluate": {"max_distortion": limit},
    }
    assert limits_of(parse_compat({"probes": probes, **written})) == (limit, limit)


def test_other_tasks_have_the_limits_of_a_block_that_is_written_so():
    with_tasks, without = parse_compat({"probes": TASKS}), parse_compat({})
    assert with_tasks.with_tasks(()) == without
    assert without.with_tasks(with_tasks.probes.tasks) == with_tasks
    assert with_tasks.with_tasks(()).with_tasks(with_tasks.probes.tasks) == with_tasks
    written = parse_compat({"probes": TASKS, "budget": {"distortion": 0.45}})
    assert limits_of(written.with_tasks(())) == (0.45, 0.7)


def test_a_default_limit_is_not_one_that_was_written():
    block = parse_compat({"evaluate": {"max_own_distortion": 0.25}})
    assert block.evaluate.wrote("max_own_distortion")
    assert not block.evaluate.wrote("max_distortion")
    assert not block.budget.wrote("distortion")


def written(block):
    limits = ("distortion", "max_distortion", "max_merging_loss")
    return [
        key
        for key in limits
        if block.budget.wrote(key) or (key != "distortion" and block.evaluate.wrote(key))
    ]


@pytest.mark.parametrize(
    ("limits", "keys"),
    [
        ({}, []),
        ({"budget": {}, "evaluate": True}, []),
        ({"budget": {"mds": 3.0}, "evaluate": {"on_collapse": "warn"}}, []),
        # Also the default's own number, and null.
        ({"budget": {"distortion": 0.45}}, ["distortion"]),
        ({"budget": {"distortion": None, "mds": 3.0}}, ["distortion"]),
        (
            {"budget": {"distortion": 0.1}, "evaluate": {"max_distortion": 1.0}},
            ["distortion", "max_distortion"],
        ),
        ({"evaluate": {"max_merging_loss": None}}, ["max_merging_loss"]),
    ],
)
def test_what_was_written_is_known_wherever_a_block_goes(limits, keys):
    block = parse_compat({"probes": TASKS, **limits})
    assert written(block) == keys
    other = block.with_tasks(())
    assert written(other) == written(other.with_tasks(block.probes.tasks)) == keys
    # As a command's --rehearse does it.
    changed = block.model_copy(update={"rehearse": "always"})
    assert written(changed) == written(changed.with_tasks(())) == keys
    assert written(parse_compat(changed)) == keys
    # What the code sets by itself holds as well.
    off = block.evaluate.model_copy(update={"max_own_distortion": None})
    assert off.wrote("max_own_distortion")
    assert off.wrote("max_distortion") == block.evaluate.wrote("max_distortion")
    # All of a dump is written, so that nobody may read a block from one.
    assert written(parse_compat(block.model_dump())) == [
        "distortion",
        "max_distortion",
        "max_merging_loss",
    ]


def test_wrong_probes_are_told_by_themselves():
    with pytest.raises(InvalidRecipeError) as caught:
        parse_compat({"probes": {"sampels": 3}})
    assert len(str(caught.value).splitlines()) == 2


def test_what_is_looked_at_after_the_merge():
    block = parse_compat({})
    assert (block.rehearse, block.monitor.enabled, block.monitor.stop_at) == ("auto", True, None)
    limits = block.evaluate
    assert (limits.enabled, limits.on_collapse, limits.lm_eval) == (True, "reject", ())
    assert (limits.max_distortion, limits.max_merging_loss) == (0.7, 20)
    assert limits.max_own_distortion == 0.25
    assert (limits.min_variance_ratio, limits.min_rank_ratio) == (0.5, 0.5)
    assert (block.log_to, block.cache.enabled, block.cache.full) == ((), True, False)
    # A default is not validated, and what reads a limit expects a float.
    assert isinstance(limits.max_merging_loss, float)


@pytest.mark.parametrize(
    "limit",
    [
        *("max_distortion", "max_merging_loss", "max_own_distortion"),
        *("min_variance_ratio", "min_rank_ratio"),
    ],
)
def test_each_limit_of_the_merged_model_may_be_null(limit):
    block = parse_compat({"evaluate": {limit: None}})
    assert getattr(block.evaluate, limit) is None


def test_one_tracker_and_one_harness_task_may_stand_without_brackets():
    block = parse_compat({"log_to": "mlflow", "evaluate": {"lm_eval": "arc_easy"}})
    assert (block.log_to, block.evaluate.lm_eval) == (("mlflow",), ("arc_easy",))


def test_choices_are_kept_as_they_are_written():
    task = {"name": "a", "data": "a.txt", "target": "{label}", "choices": ["no", " yes"]}
    (read,) = parse_compat({"probes": {"tasks": [task]}}).probes.tasks
    assert read.choices == ("no", " yes")


def test_a_pool_is_one_list_or_one_for_each_expert():
    for pool, known, every in (
        ("a", ("a",), ("a",)),
        (["a", "b"], ("a", "b"), ("a", "b")),
        ({"spam": "a", "era": ["b", "a"]}, {"spam": ("a",), "era": ("b", "a")}, ("a", "b", "a")),
    ):
        found = parse_compat({"substitute": {"pool": pool}}).substitute
        assert (found.pool, found.candidates) == (known, every)
