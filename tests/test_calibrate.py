"""Limits fitted to a folder of reports, and what is said of the files that do not count."""

import copy
import json
import os
import re
from dataclasses import replace

import made_merges
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mergekit_collapse.cli import main
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock
from mergekit_collapse.recipe.validation import parse_compat
from mergekit_collapse.report.reader import parse_report
from mergekit_collapse.study.calibration import calibrate
from mergekit_collapse.study.chosen_signal import choose_signal
from mergekit_collapse.study.finished_merges import finished_merges
from mergekit_collapse.study.fitted_signal import shortest
from mergekit_collapse.study.limit_search import Limit, best_limit
from mergekit_collapse.study.report_folder import read_reports
from mergekit_collapse.study.report_signals import SIGNALS

pytestmark = pytest.mark.slow

BALL = [signal for signal in SIGNALS if signal.name == "hidden.ball"]
OWN_TASK = {"name": "mine", "data": "rows.txt", "model": "x"}


def command(folder, *arguments):
    return CliRunner().invoke(
        main, ["study", "calibrate", str(folder), *map(str, arguments)], catch_exceptions=False
    )


def finished(documents):
    found, unused = finished_merges(
        (f"{index}.json", parse_report(document)) for index, document in enumerate(documents)
    )
    return found, unused


def one(signal):
    (found,) = (s for s in SIGNALS if s.name == signal)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_merges.write(tmp_path_factory.mktemp("reports"), made_merges.merges())


@pytest.fixture(scope="module")
def output(folder):
    done = command(folder)
    assert done.exit_code == 0
    return done.stdout


def rows(output, section):
    """The lines of one section that begin with a signal, as words."""
    (part,) = (p for p in output.split("\n\n") if p.startswith(f"{section}. "))
    return {line.split()[0]: line.split() for line in part.splitlines() if line.startswith("  hid")}


def test_the_limit_is_the_one_fitted_to_these_merges(output):
    documents = list(made_merges.merges())
    score = np.array([d["geometry"]["hidden"]["ball_radius_squared"] for d in documents])
    lost = np.array([-d["evaluation"]["tasks"][0]["loss_percent"] for d in documents])
    expected = best_limit(score, lost > 20, 1.0)
    shown = rows(output, 1)["hidden.ball"]
    assert shown[1:3] == ["48", "24"]
    assert expected.allowed <= float(shown[10]) < expected.refused
    limit = BudgetBlock().distortion
    through, refused = (
        ((lost > 20) & (score <= limit)).sum(),
        ((lost <= 20) & (score > limit)).sum(),
    )
    assert rows(output, 2)["hidden.ball"][-3:] == ["0.45", f"{through}/24", f"{refused}/24"]


def test_it_ends_with_a_block_that_is_valid_and_a_sentence(output):
    (block,) = re.findall(r"^ {6}(budget: .*)$", output, re.MULTILINE)
    budget = parse_compat(yaml.safe_load(block)).budget
    assert (budget.mds, budget.rule, budget.space) == (None, "ball", "hidden")
    assert f"{budget.distortion:g}" == rows(output, 1)["hidden.ball"][10]
    assert "Before the merge, hidden.ball (the best of 7 on 48 merges):" in output
    told = output.split(block)[1].splitlines()
    assert told[2].startswith(
        "    Chosen without the merges that it judges, it let through 2 of 24"
    )
    assert told[3] == (
        "    It holds for merges like these: the same base and probes, experts trained alike."
    )


def test_signals_that_do_not_tell_get_no_limit(output):
    """They are the same in all of these reports."""
    assert rows(output, 1)["hidden.measured"][-4:] == ["none", "none", "to", "none"]
    assert output.endswith(
        "nothing: no limit errs less than letting all of these through, or refusing all\n"
    )
    assert "Not fitted: predictive.ball, predictive.corollary, predictive.weights" in output
    assert "no merge has it (of the others: it was not asked for)" in output


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_every_block_is_valid_and_about_its_signal(signal):
    tasks = {"builtin": False, "tasks": [OWN_TASK]}
    block = parse_compat({"probes": tasks, **yaml.safe_load(signal.lines(1.25))})
    words = signal.name.split(".")
    assert block.budget.space == words[0]
    if words[-1] == "measured":
        assert block.evaluate.max_distortion == 1.25
    elif words[1] == "mds":
        assert (block.budget.mds, block.budget.distortion) == (1.25, None)
        assert block.budget.similarity == words[2]
    else:
        assert (block.budget.distortion, block.budget.mds) == (1.25, None)
        assert block.budget.rule == words[-1]
    assert block.budget.over == ("own_task" if "own_task" in words else "pooled")


def test_small_limits_are_numbers_in_yaml():
    assert yaml.safe_load(one("hidden.ball").lines(2e-7))["budget"]["distortion"] == 2e-7


def test_defaults_are_those_of_the_schema():
    assert one("hidden.ball").default == BudgetBlock().distortion
    assert one("hidden.mds.unrelated").default == BudgetBlock().mds
    assert one("hidden.measured").default == EvaluateBlock().max_distortion


def test_readings_are_those_of_the_report():
    document = made_merges.merge(0, ball=0.123, predicted_distortion=[0.4, 0.7])
    document["mds"]["hidden"]["unrelated"] = [None, 1.5]
    document["mds"]["hidden"]["unrelated_reason"] = ["infinite", None]
    (found,), _ = finished([document])
    geometry, evaluation = document["geometry"]["hidden"], document["evaluation"]["hidden"]
    assert found.readings["hidden.ball"] == 0.123
    assert found.readings["hidden.weights"] == 0.7
    assert found.readings["hidden.corollary"] == geometry["bounds"]["corollary"]
    assert found.readings["hidden.own_task.ball"] == geometry["own_task_minimax"]
    assert found.readings["hidden.mds.unrelated"] == np.inf
    assert found.readings["hidden.measured"] == evaluation["worst"]
    assert (found.task, found.lost) == ("first", 5.0)
    assert found.missing["hidden.mds.group_minmax"].startswith("all distances are equal")
    assert found.missing["predictive.ball"] == "it was not asked for"


def test_a_list_with_a_hole_is_no_reading():
    document = made_merges.merge(0, predicted_distortion=[0.4, None])
    (found,), _ = finished([document])
    assert "hidden.weights" not in found.readings


def test_a_rehearsal_tells_where_nothing_was_merged():
    document = made_merges.merge(0, lost=33.0)
    document["rehearsal"] = document.pop("evaluation")
    document["rehearsal"]["hidden"]["worst"] = 0.77
    (found,), _ = finished([document])
    assert (found.lost, found.readings["hidden.measured"]) == (33.0, 0.77)


def unscored(document):
    document["evaluation"] = None
    return document


def broken(document):
    document["evaluation"] |= {"tasks": [], "hidden": None}
    document["evaluation"]["checks"][0]["passed"] = False
    return document


def worthless(document):
    lost = {"loss_percent": None, "loss_percent_reason": "the expert scores 0"}
    document["evaluation"]["tasks"] = [document["evaluation"]["tasks"][0] | lost]
    return document


def watched(document):
    document["evaluation"] |= {"tasks": [], "tasks_reason": "no task has targets"}
    return document


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (unscored, "no merged model was evaluated"),
        (broken, "the merged model failed its checks (finite)"),
        (worthless, "no merging loss: the expert scores 0"),
        (watched, "no merging loss: no task has targets"),
    ],
)
def test_reports_without_a_loss_are_said(change, says):
    found, (unused,) = finished([change(made_merges.merge(0))])
    assert found == ()
    assert (unused.kind, unused.path) == ("unscored", "0.json")
    assert says in unused.reason


def test_two_reports_of_one_merge_count_once():
    first, again = made_merges.merge(7, lost=30.0), made_merges.merge(7, lost=30.0)
    later = made_merges.merge(7, lost=31.0)
    others = made_merges.merge(7, experts=("./c", "./d"))
    mended = made_merges.merge(7)
    mended["recipe"]["effective"] = "merge_method: ties"
    found, unused = finished([first, again, later, others, mended])
    assert [merge.path for merge in found] == ["0.json", "3.json", "4.json"]
    assert [(one.path, one.kind, one.reason) for one in unused] == [
        ("1.json", "repeated", "the same merge as 0.json"),
        ("2.json", "repeated", "the same merge as 0.json, measured otherwise"),
    ]


def test_reports_without_a_recipe_are_never_the_same():
    documents = [made_merges.merge(0), made_merges.merge(0)]
    for document in documents:
        document["recipe"] = {}
    assert len(finished(documents)[0]) == 2


def test_what_cannot_be_read_is_said_and_the_rest_counts(tmp_path):
    made_merges.write(tmp_path, made_merges.merges())
    made = made_merges.merge(0)
    for name, text in {
        "cut/report.json": json.dumps(made).partition('"experts"')[0],
        "foreign/report.json": '{"loss": 0.5}',
        "nan/report.json": '{"format_version": 1, "verdict": NaN}',
        "newer/report.json": json.dumps(made | {"format_version": 99}),
        "twisted/report.json": json.dumps(made | {"experts": "none"}),
        "\x1b[2Jname/report.json": "[]",
        "kept.json": json.dumps(unscored(copy.deepcopy(made))),
        "merged/config.json": "not looked at",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "folder" / "report.json").mkdir(parents=True)
    os.symlink(tmp_path, tmp_path / "loop")
    done = command(tmp_path, "--signal", "hidden.ball", "--json", tmp_path / "out.json")
    assert done.exit_code == 0
    assert "48 merges of 24 groups" in done.stdout
    assert "  6 could not be read:" in done.stdout
    assert "  1 say nothing about how a merge came out:" in done.stdout
    assert "    and 1 more\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jname" in done.stdout
    unused = json.loads((tmp_path / "out.json").read_text())["unused"]
    said = {os.path.relpath(one["path"], tmp_path): one["reason"] for one in unused}
    assert set(said) == {
        *("cut/report.json", "foreign/report.json", "nan/report.json", "newer/report.json"),
        *("twisted/report.json", "\x1b[2Jname/report.json", "kept.json"),
    }
    assert "as if cut short" in said["cut/report.json"]
    assert "not a report of mergekit-collapse" in said["foreign/report.json"]


def test_what_was_not_read_before_is_read_by_path(tmp_path):
    made_merges.write(tmp_path, [made_merges.merge(3), made_merges.merge(2)])
    found, unused = read_reports(tmp_path)
    assert [path.removeprefix(str(tmp_path)) for path, _ in found] == [
        "/m000.compat/report.json",
        "/m001.compat/report.json",
    ]
    assert unused == ()


def test_no_such_folder(tmp_path):
    done = command(tmp_path / "none")
    assert done.exit_code == 2
    assert "none: no such folder; name one that holds reports" in done.stderr


def test_an_empty_folder_is_too_few(tmp_path):
    done = command(tmp_path)
    assert done.exit_code == 1
    assert "0 groups of experts collapsed and 0 groups of experts did not" in done.stderr


def test_one_kind_is_too_few_and_says_what_to_do(tmp_path):
    harmless = [made_merges.merge(n, lost=1.0) for n in range(9)]
    made_merges.write(tmp_path, [*harmless, unscored(made_merges.merge(10))])
    done = command(tmp_path)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "no merged model was evaluated" in done.stderr
    assert (
        "0 groups of experts collapsed and 9 groups of experts did not, among 9 merges; 3 of "
        "either are the least, and a collapse is a loss of more than 20 % on a task. Make more"
    ) in done.stderr
    assert "evaluate RECIPE MERGED" in done.stderr


def test_methods_on_the_same_experts_are_no_more_groups():
    """Eight merges, but all that collapsed are of one pair."""
    found, _ = finished(
        [
            *(made_merges.merge(n, lost=50, experts=("./a", "./b")) for n in range(4)),
            *(made_merges.merge(n, lost=0) for n in range(4, 8)),
        ]
    )
    with pytest.raises(EvaluationError, match="1 group of experts collapsed and 4 groups"):
        calibrate(found, BALL)


def test_reports_that_were_measured_otherwise_are_not_pooled(tmp_path):
    documents = list(made_merges.merges())
    documents[3] = made_merges.settings(documents[3], pooling="last_token")
    documents[4] = made_merges.settings(documents[4], pooling="last_token", layer="all")
    made_merges.write(tmp_path, documents)
    done = command(tmp_path)
    assert done.exit_code == 1
    assert "measured in different ways" in done.stderr
    assert "hidden pooling: mean (46, such as " in done.stderr
    assert "last_token (2, such as " in done.stderr
    assert "m003.compat/report.json)" in done.stderr
    assert "hidden layer: last (47, such as " in done.stderr
    assert "scale" not in done.stderr.split("ways")[1]


def test_settings_of_a_space_that_is_not_asked_for_do_not_matter(tmp_path):
    found, _ = finished(made_merges.merges())
    other = {**found[0].settings, "predictive": {"pooling": "x", "scale": "y", "layer": "z"}}
    changed = [
        replace(merge, settings=other if index else merge.settings)
        for index, merge in enumerate(found)
    ]
    assert calibrate(changed, BALL, resamples=10).before.name == "hidden.ball"


def test_a_signal_that_few_merges_have_is_told_apart():
    documents = list(made_merges.merges())
    for document in documents[4:]:
        document["geometry"]["hidden"] |= {"predicted_distortion": None}
        document["geometry"]["hidden"]["predicted_distortion_reason"] = "weights without a sum"
    found, _ = finished(documents)
    made = calibrate(found, [*BALL, one("hidden.weights")], resamples=10)
    assert [fitted.name for fitted in made.signals] == ["hidden.ball"]
    ((name, why),) = made.unfitted
    assert name == "hidden.weights"
    assert "1 group of experts collapsed and 1 group of experts did not, among 4 merges" in why
    assert "(of the others: weights without a sum)" in why
    with pytest.raises(EvaluationError, match=r"no signal could be fitted: hidden\.weights: 1 gr"):
        calibrate(found, [one("hidden.weights")])


def test_the_choice_is_among_signals_of_the_same_merges():
    """A signal that tells perfectly, but that a third of the merges lack, is left aside."""
    documents = list(made_merges.merges())
    for document in documents:
        lost = -document["evaluation"]["tasks"][0]["loss_percent"]
        document["geometry"]["hidden"]["predicted_distortion"] = [lost, 0.0]
    for document in documents[:16]:
        document["geometry"]["hidden"] |= {"predicted_distortion": None}
    found, _ = finished(documents)
    made = calibrate(found, [*BALL, one("hidden.weights")], resamples=10)
    assert [fitted.merges for fitted in made.signals] == [48, 32]
    assert (made.before.name, made.before.among, made.before.merges) == ("hidden.ball", 1, 48)


def test_the_best_of_many_worthless_signals_is_found_out():
    """Negative control: eight signals of noise; the best looks useful until it is held out."""
    random = np.random.default_rng(0)
    signals = SIGNALS[:8]
    found, _ = finished(made_merges.merges(groups=16, methods=("linear",)))
    collapsed = np.array([merge.lost > 20 for merge in found])
    balanced, flattered = [], []
    for table in random.random((12, 8, 16)):
        noisy = [
            replace(merge, readings={s.name: x for s, x in zip(signals, noise, strict=True)})
            for merge, noise in zip(found, table.T, strict=True)
        ]
        made = choose_signal(signals, noisy, collapsed, cost=1.0, resamples=2, seed=0)
        flattered.append(1 - min(best_limit(s, collapsed, 1.0).loss for s in table) / 2)
        balanced.append(made.left_out.rates.balanced)
    assert np.mean(flattered) > 0.68
    assert 0.3 < np.mean(balanced) < 0.56


def test_groups_that_share_experts_are_also_judged_without_each_expert(tmp_path):
    """All pairs of 7 experts, two of which spoil what they are merged into."""
    pairs = [(a, b) for a in range(7) for b in range(a)]
    documents = [
        made_merges.merge(
            number,
            ball=0.1 + 0.01 * number + (a > 4) / 2,
            lost=50.0 * (a > 4),
            experts=(f"./{a}", f"./{b}"),
        )
        for number, (a, b) in enumerate(pairs)
    ]
    found, _ = finished(documents)
    made = calibrate(found, BALL, resamples=50).before
    assert (made.left_out.folds, made.new_expert.folds) == (len(pairs), 7)
    assert made.new_expert.rates.rows == 2 * len(pairs)
    done = command(made_merges.write(tmp_path, documents), "--signal", "hidden.ball")
    assert "Chosen without any merge of one of their experts, it let through 0 of 22" in done.stdout
    apart = calibrate(finished(made_merges.merges())[0], BALL, resamples=5).before
    assert apart.new_expert is None


def test_a_useless_choice_is_not_recommended(tmp_path):
    random = np.random.default_rng(3)
    documents = [made_merges.merge(n, ball=random.random(), lost=50.0 * (n % 2)) for n in range(12)]
    done = command(made_merges.write(tmp_path, documents), "--signal", "hidden.ball")
    assert done.exit_code == 0
    assert re.search(r"no better than a coin: do not use it|tells anything is open", done.stdout)


def test_few_groups_are_a_starting_point(tmp_path):
    documents = made_merges.merges(groups=12, methods=("linear",), overlap=0.01)
    done = command(made_merges.write(tmp_path, documents), "--signal", "hidden.ball")
    assert "A starting point: one kind has no more than 6 groups of experts." in done.stdout


def test_a_dearer_refusal_refuses_less(folder):
    limits = [
        rows(command(folder, "--signal", "hidden.ball", "--cost", cost).stdout, 1)["hidden.ball"]
        for cost in (0.05, 20)
    ]
    assert float(limits[0][10]) < float(limits[1][10])


def test_where_refusals_cost_nothing_all_are_refused(tmp_path):
    documents = list(made_merges.merges(overlap=1.0))
    made_merges.write(tmp_path, documents)
    done = command(tmp_path, "--signal", "hidden.ball", "--cost", 0.001)
    assert rows(done.stdout, 1)["hidden.ball"][10] == "all"
    assert rows(done.stdout, 2)["hidden.ball"][1:3] == ["0/24", "24/24"]
    assert "nothing: no limit errs less" in done.stdout


def test_what_counts_as_collapse_may_be_said(folder):
    done = command(folder, "--signal", "hidden.ball", "--collapse", 40)
    lost = [-d["evaluation"]["tasks"][0]["loss_percent"] for d in made_merges.merges()]
    assert f"{sum(x > 40 for x in lost)} collapsed, losing more than 40 %" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--signal", "hidden.bal"], "hidden.ball"),
        (["--cost", "0"], "x>0"),
        (["--cost", "nan"], "nan is no finite number"),
        (["--cost", "inf"], "inf is no finite number"),
        (["--collapse", "100"], "0<=x<100"),
        (["--collapse", "nan"], "nan is no finite number"),
        (["--json", "no/such/place.json"], "cannot be written"),
    ],
)
def test_usage(folder, arguments, says):
    done = command(folder, *arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_the_document_has_the_same_numbers(folder, output):
    done = command(folder, "--json", "-")
    assert done.stderr.strip() == output.strip()
    document = json.loads(done.stdout)
    assert (document["format_version"], document["groups"], document["collapsed"]) == (1, 24, 24)
    ball = document["signals"][0]
    shown = rows(output, 1)["hidden.ball"]
    assert [f"{ball['auroc']['value']:.3f}", f"{ball['limit']:g}"] == [shown[3], shown[10]]
    assert document["before"]["lines"].startswith("budget: {distortion: ")
    flat = document["signals"][1]["fitted"]["limit"]
    assert (flat["value"], flat["value_reason"]) == (None, "infinite")
    assert document["unfitted"]["predictive.ball"].startswith("no merge has it")
    infinite = document["merges"][0]["readings"]
    assert infinite["hidden.mds.group_max"] is None
    assert infinite["hidden.mds.group_max_reason"] == "infinite"


def test_names_that_would_steer_a_terminal_are_written_out(tmp_path):
    documents = list(made_merges.merges(methods=("linear\x1b[2J\n3. What to put",)))
    done = command(made_merges.write(tmp_path, documents), "--signal", "hidden.ball")
    assert "Methods: linear\\x1b[2J\\n3. What to put 24" in done.stdout
    assert "\x1b" not in done.stdout
    documents[0]["geometry"]["hidden"]["scale"] = "\x1b[2J\nx"
    done = command(made_merges.write(tmp_path, documents), "--signal", "hidden.ball")
    assert (done.exit_code, "\x1b" in done.stderr) == (1, False)
    assert "hidden scale: variance (23, such as " in done.stderr
    assert "\\x1b[2J\\nx (1, such as " in done.stderr


@pytest.mark.parametrize(
    ("allowed", "refused", "value", "expected"),
    [
        (0.2, 0.9, 0.55, 0.55),
        (0.41, 0.43, 0.4213, 0.42),
        (0.12345, 0.12348, 0.12346666, 0.12347),
        (0.3, np.inf, np.inf, None),
        (2.0, np.inf, 2.0, 2.0),
    ],
)
def test_limits_have_as_few_digits_as_refuse_the_same(allowed, refused, value, expected):
    assert shortest(Limit(value, allowed, refused, 0.1)) == expected
