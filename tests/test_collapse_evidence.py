"""The document's numbers on made merges whose answers are known."""

import collapse_benchmark  # noqa: F401 (so that the modules below are found)
import numpy as np
import pytest

# isort: split
import merge_rows
import outcomes
import rules
import signal_quality
import zoo

TASKS = [f"task{i}" for i in range(8)]


def member(task, loss, *, own=0.9, chance=0.5, **readings):
    return merge_rows.MemberRow(task, task, own, 0.5, chance, loss, readings)


def made(count=40, seed=0, **of_loss):
    """Pairs whose readings are functions of the worst loss."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        names = tuple(rng.choice(TASKS, 2, replace=False))
        losses = rng.uniform(-60, 5, size=2)
        readings = {name: float(f(losses.min())) for name, f in of_loss.items()}
        each = tuple(member(n, x) for n, x in zip(names, losses, strict=True))
        rows.append(merge_rows.MergeRow(names, "linear", "natural", False, each, readings))
    return rows


def test_a_signal_that_is_the_loss_tells_all_and_its_opposite_nothing():
    rows = made(right=lambda loss: -loss, wrong=lambda loss: loss)
    right = signal_quality.quality(rows, "right", 20.0)
    wrong = signal_quality.quality(rows, "wrong", 20.0)
    assert (right.auroc.value, wrong.auroc.value) == (1.0, 0.0)
    assert right.spearman.value == pytest.approx(1)
    assert right.collapsed == sum(row.worst < -20 for row in rows)


def test_an_interval_holds_the_jackknife_over_tasks():
    rng = np.random.default_rng(3)
    rows = made(80, noisy=lambda loss: -loss + rng.normal(0, 30))
    found = signal_quality.quality(rows, "noisy", 20.0)
    score = merge_rows.column(rows, "noisy")
    bad = rules.collapsed(rows)
    values = []
    for task in TASKS:
        rest = np.array([task not in row.families for row in rows])
        pairs = score[rest & bad][:, None] - score[rest & ~bad]
        values.append(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    spread = np.sqrt(7 / 8 * np.square(values - np.mean(values)).sum())
    assert found.auroc.interval.low <= found.auroc.value - 1.96 * spread + 1e-12
    assert found.auroc.interval.high >= min(1, found.auroc.value + 1.96 * spread) - 1e-12


def test_few_merges_of_a_kind_say_nothing():
    rows = [row for row in made(200, right=lambda loss: -loss) if row.worst < -20]
    assert signal_quality.quality(rows, "right", 20.0) is None
    assert signal_quality.quality(made(), "unknown", 20.0) is None


def test_what_is_not_known_is_refused():
    rows = made(right=lambda loss: -loss)
    found = rules.judge(rows, {"unknown": 1.0})
    assert found.refused == len(rows)
    assert found.recall.value == found.false_refusal.value == 1
    fitted = rules.fit(rows, "right")
    assert fitted.in_sample.recall.value == 1
    assert fitted.in_sample.false_refusal.value == 0
    assert fitted.limits[0] == pytest.approx(20, abs=5)


def test_a_task_counts_only_if_it_can_be_lost():
    assert member("a", 0.0, own=0.75).learned
    assert not member("a", 0.0, own=0.7).learned
    assert member("a", 0.0, own=0.05, chance=0.0).learned
    assert member("a", 0.0, own=0.05, chance=0.0).metric == "likelihood"


@pytest.mark.parametrize(
    ("names", "makes"),
    [
        (("sentiment", "spam"), "natural"),
        (("sentiment", "sentiment-seed1"), "seed"),
        (("spam", "sentiment-full"), "full"),
        (("spam", "grammar"), "long"),
        (("sentiment", "sentiment-rotated"), "conflict"),
        (("spam", "sentiment-rotated"), "conflict apart"),
        (("define", "refusal"), "conflict"),
        (("sentiment-rotated", "spam-hot"), "hot"),
    ],
)
def test_a_set_is_named_by_its_oddest_member(names, makes):
    experts = [zoo.EXPERTS[name] for name in names]
    told = [
        {"family": e.family, "group": e.group, "kind": e.kind, "steps": str(e.steps)}
        for e in experts
    ]
    assert merge_rows._makes(told) == makes


class Answers:
    """What ``first_token_score`` asks a reader for."""

    def __init__(self, right, choices):
        self.told = right, choices

    def first_tokens(self, task, count):
        assert task == "sentiment"
        return self.told[0][:count], self.told[1]


def test_a_first_token_is_right_only_if_it_is_likelier_than_every_other_choice():
    probability = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
    answer = np.sqrt(probability)
    # Token 2 is no choice; of the second row both choices are as likely.
    score = outcomes.first_token_score(Answers([0, 1, 0], [0, 1]), "sentiment", answer)
    assert score == pytest.approx(1 / 3)
    mean = outcomes.first_token_score(Answers([0, 1, 1], None), "sentiment", answer)
    assert mean == pytest.approx((0.5 * 0.2 * 0.8) ** (1 / 3))
