"""Shares, their exact intervals, and what a limit gets right: against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from mergekit_collapse.study.error_rates import error_rates, over
from mergekit_collapse.study.folds import member_out, one_out
from mergekit_collapse.study.left_out import leave_out, left_out_auroc
from mergekit_collapse.study.share import exact_interval, share


@pytest.mark.parametrize(("hits", "of"), [(0, 7), (1, 7), (3, 7), (7, 7), (180, 200), (1, 1)])
def test_exact_intervals_are_those_of_scipy(hits, of):
    found = exact_interval(hits, of)
    oracle = stats.binomtest(hits, of).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.95])
def test_exact_intervals_hold_the_truth_at_least_as_often_as_they_say(p):
    """By summing over all counts, not by drawing."""
    held = [exact_interval(k, 15).low <= p <= exact_interval(k, 15).high for k in range(16)]
    assert stats.binom.pmf(np.flatnonzero(held), 15, p).sum() >= 0.95


@pytest.mark.parametrize(("hits", "of"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_have_no_interval(hits, of):
    with pytest.raises(ValueError, match=f"{hits} hits of {of} trials"):
        exact_interval(hits, of)


def test_the_four_rates_by_hand():
    collapsed = np.array([True, True, True, False, False, False, False, True])
    refused = np.array([True, True, False, True, False, False, False, True])
    found = error_rates(refused, collapsed, range(8))
    assert (found.rows, found.collapsed, found.refused) == (8, 4, 4)
    rates = {
        name: (getattr(found, name).hits, getattr(found, name).of)
        for name in ("precision", "recall", "false_refusal", "false_allow")
    }
    assert rates == {
        "precision": (3, 4),
        "recall": (3, 4),
        "false_refusal": (1, 4),
        "false_allow": (1, 4),
    }
    assert found.balanced == pytest.approx(0.75)
    assert found.recall.exact == exact_interval(3, 4)


def test_a_rate_of_no_rows_is_undefined():
    nothing_refused = np.zeros(4, dtype=bool)
    found = error_rates(nothing_refused, np.arange(4) > 1, range(4)).precision
    assert (found.value, found.exact, found.clustered) == (None, None, None)
    assert error_rates(nothing_refused, nothing_refused, range(4)).balanced is None


def test_a_nan_never_passes():
    assert over(np.array([0.1, np.nan, np.inf, 0.3]), 0.3).tolist() == [False, True, True, False]
    assert over(np.array([0.1, np.inf]), np.nan).tolist() == [True, True]
    assert over(np.array([0.1, np.inf]), np.inf).tolist() == [False, False]


def test_equal_rows_in_clusters_are_worth_as_many_rows_as_there_are_clusters():
    """Ten clusters of 20 equal rows say what ten rows say; the exact interval believes 200."""
    hits = np.repeat(np.arange(10) < 3, 20)
    everyone = np.ones(200, dtype=bool)
    found = share(hits, everyone, np.arange(200) // 20)
    alone = share(hits[::20], everyone[::20], range(10))
    assert found.value == alone.value == 0.3
    assert found.clustered == alone.clustered
    width = found.clustered.high - found.clustered.low
    assert width > 3 * (found.exact.high - found.exact.low)


def test_no_hits_at_all_are_as_uncertain_as_the_clusters_are_few():
    everyone = np.ones(200, dtype=bool)
    found = share(~everyone, everyone, np.arange(200) // 20)
    assert found.clustered == exact_interval(0, 10)
    assert share(everyone, everyone, np.arange(200) // 20).clustered == exact_interval(10, 10)


def test_a_share_of_rows_in_two_clusters_has_no_interval():
    of = np.arange(30) < 2
    found = share(np.arange(30) < 1, of, range(30))
    assert found.value == 0.5
    assert found.clustered is None


def test_folds_by_label_and_by_member():
    assert one_out(["b", "a", "b"]).tolist() == [[True, False, True], [False, True, False]]
    folds = member_out([("x", "y"), ("y", "z"), ("x", "z")])
    assert folds.tolist() == [[True, False, True], [True, True, False], [False, True, True]]


def test_each_fold_is_judged_by_the_others():
    """A rule that refuses what the rows it saw do most, told apart by which it saw."""
    collapsed = np.array([True, True, True, False, False])
    seen = []

    def majority(others):
        seen.append(others.tolist())
        return np.full(5, collapsed[others].mean() > 0.5)

    found = leave_out(one_out(range(5)), collapsed, majority, range(5))
    assert seen == (~np.eye(5, dtype=bool)).tolist()
    # Without a collapsed row there are two of each kind, so it is let through; others are refused.
    assert (found.rates.recall.hits, found.rates.false_refusal.hits) == (0, 2)
    assert (found.folds, found.unfitted) == (5, 0)


def test_a_fold_that_leaves_one_kind_is_refused_and_counted():
    collapsed = np.array([True, False, False])
    found = leave_out(one_out(range(3)), collapsed, lambda _: np.zeros(3, dtype=bool), range(3))
    assert found.unfitted == 1
    assert (found.rates.refused, found.rates.recall.value) == (1, 1.0)
    with pytest.raises(ValueError, match="1 fold, and nothing to fit on"):
        leave_out(one_out("aaa"), collapsed, lambda seen: seen, range(3))


def test_rows_of_two_folds_are_judged_twice():
    folds = member_out([("x", "y"), ("y", "z"), ("x", "z"), ("x", "w")])
    collapsed = np.array([True, False, True, False])
    found = leave_out(folds, collapsed, lambda seen: seen, range(4))
    assert found.rates.rows == 8


def test_auroc_without_each_fold_and_within_each():
    score = np.array([1.0, 2.0, 1.0, 2.0, 9.0, 1.0])
    collapsed = np.array([False, True, False, True, False, True])
    found = left_out_auroc(one_out("aabbcc"), score, collapsed)
    # Within c the order is the wrong way round; without it nothing is wrong.
    assert (found.inside, found.inside_folds) == ((0.0, 1.0), 3)
    assert (found.low, found.high) == (pytest.approx(0.375), 1.0)
    with pytest.raises(ValueError, match="the others are of one kind"):
        left_out_auroc(one_out("ab"), score[:2], collapsed[:2])
