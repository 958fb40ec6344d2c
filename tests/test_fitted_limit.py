"""Limits fitted to merges whose outcome is known: against all limits, and on simulated merges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mergekit_collapse.study.either_limit import fit_either
from mergekit_collapse.study.error_rates import over
from mergekit_collapse.study.fitted_limit import fit_limit
from mergekit_collapse.study.folds import member_out
from mergekit_collapse.study.limit_search import best_limit, best_limits
from mergekit_collapse.study.tied_groups import tied_groups


def loss_of(refused, collapsed, cost):
    return (~refused)[collapsed].mean() + cost * refused[~collapsed].mean()


def tried_limits(score):
    """Every limit that refuses other rows than the next: scores, none, and below all of them."""
    return [-np.inf, *np.unique(score), np.inf]


def few_scores(seed, count=10):
    random = np.random.default_rng(seed)
    score = random.choice([0.0, 1.0, 1.5, 4.0, np.inf], size=count)
    collapsed = random.random(count) < 0.5
    collapsed[:2] = True, False
    return score, collapsed, random


@given(st.integers(0, 10_000), st.sampled_from([0.2, 1.0, 3.0]))
@settings(deadline=None)
def test_no_limit_errs_less(seed, cost):
    score, collapsed, _ = few_scores(seed)
    found = best_limit(score, collapsed, cost)
    assert found.loss == pytest.approx(loss_of(over(score, found.value), collapsed, cost))
    least = min(loss_of(over(score, limit), collapsed, cost) for limit in tried_limits(score))
    assert found.loss == pytest.approx(least)


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_under_weights_it_is_the_limit_of_the_rows_drawn(seed):
    score, collapsed, random = few_scores(seed)
    times = random.integers(0, 3, size=10)
    (found,) = best_limits(tied_groups(score), collapsed, times[None].astype(np.float64), 1.0)
    rows = np.repeat(np.arange(10), times)
    if 0 < collapsed[rows].sum() < len(rows):
        expected = best_limit(score[rows], collapsed[rows], 1.0)
        assert found.tolist() == pytest.approx(
            [expected.value, expected.allowed, expected.refused, expected.loss]
        )
    else:
        assert np.isnan(found).all()


@pytest.mark.parametrize(
    ("scores", "labels", "value"),
    [
        ([1, 2, 4, 5], "ggbb", 3.0),  # the middle between the kinds
        ([1, 2, 3, 9, 10], "gbgbb", 6.0),  # equal losses: the wider gap
        ([1, 2, 3, 4], "bbgg", np.inf),  # the wrong way round: no limit is better
        ([5, 5, 5, 5], "gbgb", np.inf),  # nothing to tell them by
        ([1, 2, np.inf, np.inf], "ggbb", 2.0),  # over every limit, so the highest allowed
    ],
)
def test_which_of_equal_limits(scores, labels, value):
    collapsed = np.array([label == "b" for label in labels])
    assert best_limit(np.array(scores, dtype=np.float64), collapsed, 1.0).value == value


def test_neighbours_without_a_number_between_them():
    low = 1.0
    high = float(np.nextafter(low, 2))
    found = best_limit(np.array([low, high]), np.array([False, True]), 1.0)
    assert over(np.array([low, high]), found.value).tolist() == [False, True]


def test_a_dearer_refusal_refuses_less():
    random = np.random.default_rng(0)
    collapsed = np.arange(200) % 2 == 0
    score = random.normal(size=200) + collapsed
    limits = [best_limit(score, collapsed, cost).value for cost in (0.01, 0.3, 1.0, 3.0, 100.0)]
    assert limits == sorted(limits)
    assert over(score, limits[0])[collapsed].all()
    assert not over(score, limits[-1])[~collapsed].any()


def test_it_does_not_matter_how_many_collapsed():
    """Shares and not counts: ten times as many good merges leave the limit where it is."""
    score = np.array([1.0, 2.0, 3.0, 2.5, 4.0, 5.0])
    collapsed = np.arange(6) > 2
    more = np.concatenate([np.tile(score[:3], 10), score[3:]])
    again = np.concatenate([np.zeros(30, dtype=bool), collapsed[3:]])
    assert best_limit(more, again, 1.0).value == best_limit(score, collapsed, 1.0).value


@pytest.mark.parametrize(
    ("score", "collapsed", "cost", "says"),
    [
        ([1.0, np.nan], [True, False], 1.0, "1 of 2 rows have no score"),
        ([1.0, 2.0], [True, True], 1.0, "2 of 2 rows collapsed; a limit needs both kinds"),
        ([1.0, 2.0], [True, False], 0.0, "a cost of 0.0: it is a number above 0"),
        ([1.0, 2.0], [True, False], np.nan, "a cost of nan"),
    ],
)
def test_what_no_limit_can_be_fitted_to(score, collapsed, cost, says):
    with pytest.raises(ValueError, match=says):
        best_limit(np.array(score), np.array(collapsed), cost)


def simulated(random, clusters, size=3, apart=2.0, signals=1):
    """Clusters of merges with one outcome and scores that share half of their variance.

    With means 0 and ``apart``, the loss is least at apart / 2.
    """
    shape = signals, clusters, size
    shared = random.normal(size=(signals, clusters, 1)) + np.zeros(shape)
    collapsed = np.repeat(random.random(clusters) < 0.4, size)
    score = ((shared + random.normal(size=shape)) / np.sqrt(2)).reshape(signals, -1)
    labels = np.repeat(np.arange(clusters), size)
    return score + apart * collapsed, collapsed, labels


@pytest.mark.slow
def test_the_interval_holds_the_best_limit():
    random = np.random.default_rng(2)
    inside = []
    for _ in range(80):
        (score,), collapsed, labels = simulated(random, 40)
        found = fit_limit(score, collapsed, labels, resamples=200).interval.interval
        inside.append(found.low <= 1.0 <= found.high)
    assert np.mean(inside) > 0.88


@pytest.mark.slow
def test_held_out_rates_are_honest_and_those_in_the_sample_flatter():
    """Against the true loss of each fitted limit, which the normal distribution tells."""
    random = np.random.default_rng(3)
    gaps = []
    for _ in range(80):
        (score,), collapsed, labels = simulated(random, 16, apart=1.0)
        if not 3 <= collapsed.sum() / 3 <= 13:
            continue
        found = fit_limit(score, collapsed, labels, resamples=2)
        limit = found.limit.value
        true = stats.norm.cdf(limit - 1.0) + stats.norm.sf(limit)
        rates = found.left_out.rates
        left_out = rates.false_allow.value + rates.false_refusal.value
        gaps.append((found.limit.loss - true, left_out - true))
    flattered, honest = np.mean(gaps, axis=0)
    assert flattered < -0.1
    assert abs(honest) < 0.06


@pytest.mark.slow
def test_a_signal_of_nothing_is_found_out():
    """Negative control: fitted to noise it looks better than a coin, and held out it does not."""
    random = np.random.default_rng(4)
    seen, left_out = [], []
    for _ in range(40):
        score, collapsed = random.normal(size=30), np.arange(30) % 2 == 0
        found = fit_limit(score, collapsed, range(30), resamples=2)
        seen.append(found.in_sample.balanced)
        left_out.append(found.left_out.rates.balanced)
    assert np.mean(seen) > 0.58
    assert 0.4 < np.mean(left_out) < 0.53


def test_folds_may_be_others_than_the_clusters():
    random = np.random.default_rng(5)
    members = [(a, b) for a in range(8) for b in range(a)]
    collapsed = np.array([a > 4 for a, _ in members])
    score = random.normal(size=len(members)) + 3.0 * collapsed
    found = fit_limit(score, collapsed, members, folds=member_out(members), resamples=10)
    assert found.left_out.folds == 8
    assert found.left_out.rates.rows == 2 * len(members)
    one = fit_limit(score, collapsed, ["all"] * len(members), resamples=10)
    assert one.left_out is None
    assert one.interval.reason == "there is one cluster"


def test_a_limit_in_vain_has_an_interval_without_an_end():
    random = np.random.default_rng(6)
    collapsed = np.arange(60) % 2 == 0
    found = fit_limit(random.normal(size=60) - 0.2 * collapsed, collapsed, range(60))
    assert found.interval.interval.high == np.inf


@pytest.mark.slow
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0]))
@settings(deadline=None, max_examples=30)
def test_no_pair_of_limits_errs_less(seed, cost):
    first, collapsed, random = few_scores(seed)
    second = random.choice([0.0, 1.0, 2.0], size=10)
    found = fit_either((first, second), collapsed, range(10), cost=cost, resamples=2)
    refused = over(first, found.limits[0]) | over(second, found.limits[1])
    assert found.loss == pytest.approx(loss_of(refused, collapsed, cost))
    least = min(
        loss_of(over(first, a) | over(second, b), collapsed, cost)
        for a in tried_limits(first)
        for b in tried_limits(second)
    )
    assert found.loss == pytest.approx(least)


def test_either_finds_two_ways_to_collapse():
    """Half of the collapses show in one score, half in the other."""
    random = np.random.default_rng(8)
    collapsed = np.arange(90) % 3 == 0
    first, second = random.normal(size=(2, 90))
    first[:45] += 6 * collapsed[:45]
    second[45:] += 600 * collapsed[45:]
    found = fit_either((first, second), collapsed, range(90), resamples=200)
    assert found.left_out.rates.balanced > 0.95
    for score in (first, second):
        assert fit_limit(score, collapsed, range(90), resamples=2).in_sample.balanced < 0.85
    for one, limit in zip(found.intervals, found.limits, strict=True):
        assert one.interval.low <= limit <= one.interval.high < np.inf


def test_a_score_that_is_not_needed_has_no_limit():
    random = np.random.default_rng(9)
    collapsed = np.arange(60) % 2 == 0
    useful, constant = random.normal(size=60) + 9 * collapsed, np.ones(60)
    found = fit_either((useful, constant), collapsed, range(60), resamples=10)
    assert found.limits == (best_limit(useful, collapsed, 1.0).value, np.inf)


def test_many_scores_are_tried_evenly_by_rank():
    """400 different scores and 100 limits: the loss is within what the steps cost."""
    random = np.random.default_rng(10)
    collapsed = np.arange(400) % 2 == 0
    score = np.exp(random.normal(size=400) + 2 * collapsed)
    found = fit_either((score, np.ones(400)), collapsed, range(400), resamples=2)
    assert found.loss <= best_limit(score, collapsed, 1.0).loss + 0.02


def test_the_pair_is_refused_what_one_is():
    score = np.array([1.0, np.nan])
    with pytest.raises(ValueError, match="1 of 2 rows have no score"):
        fit_either((score, score), np.array([True, False]), range(2))
    with pytest.raises(ValueError, match=r"a cost of -1\.0"):
        fit_either((np.arange(2.0),) * 2, np.array([True, False]), range(2), cost=-1.0)
    with pytest.raises(ValueError, match="both kinds"):
        fit_either((np.arange(2.0),) * 2, np.array([True, True]), range(2))
