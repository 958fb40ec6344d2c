"""Correlations and their p-values: scipy as the oracle, and a count of all orders by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from mergekit_collapse.study.correlation import (
    correlations,
    leave_one_out,
    pearson_p,
    permutation_p,
)
from mergekit_collapse.study.discrimination import discrimination
from mergekit_collapse.study.rounding import rounded_p

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [4, 7, 8])
def test_coefficients_and_p_values_are_those_of_scipy(count):
    x, y = RANDOM.normal(size=(2, count))
    found = correlations(x, y)
    for one, oracle in ((found.pearson, stats.pearsonr), (found.spearman, stats.spearmanr)):
        expected = oracle(x, y)
        assert one.value == pytest.approx(expected.statistic, abs=1e-12)
        assert one.p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_ranks_share_their_mean_where_scores_tie():
    x = np.array([1.23, 1.23, 1.24, 3.75, 1.7])
    y = np.array([2.0, 9.0, -1.0, -60.0, -10.0])
    found = correlations(x, y).spearman
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    counted = [
        abs(stats.spearmanr(x, np.array(order)).statistic) for order in itertools.permutations(y)
    ]
    expected = np.mean(np.array(counted) >= abs(found.value) - 1e-9)
    assert found.exact_p == pytest.approx(expected)


@given(st.lists(st.integers(-3, 3), min_size=5, max_size=5), st.integers(0, 1000))
def test_the_exact_p_counts_the_orders_that_are_as_far_from_zero(values, seed):
    """Few different values, so that orders tie."""
    x = np.array(values, dtype=np.float64)
    y = np.random.default_rng(seed).integers(-3, 4, size=5).astype(np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return
    cross = [
        abs(sum(a * b for a, b in zip(x - x.mean(), o, strict=True)))
        for o in itertools.permutations(y)
    ]
    expected = np.mean([c >= cross[0] - 1e-9 for c in cross])
    assert permutation_p(x, y) == pytest.approx(expected)


def test_the_exact_p_is_that_of_scipy():
    x, y = RANDOM.normal(size=(2, 6))
    oracle = stats.permutation_test(
        (x,),
        lambda order: stats.pearsonr(order, y).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
        vectorized=False,
    )
    # scipy doubles the smaller tail; ours counts both tails of |r|.
    tails = np.abs(oracle.null_distribution) >= abs(oracle.statistic) - 1e-9
    assert permutation_p(x, y) == pytest.approx(tails.mean())


def test_one_far_point_makes_a_small_p_that_the_orders_do_not_bear_out():
    """Student's p believes a single far task; of eight orders one puts it at the far loss."""
    x = np.array([1.0, 1.1, 1.2, 1.0, 1.3, 1.1, 1.2, 8.0])
    y = np.array([-1.0, -9.0, -2.0, -5.0, -1.0, -3.0, -6.0, -70.0])
    found = correlations(x, y)
    assert found.pearson.p_value < 1e-5
    assert found.pearson.exact_p > 0.05


def test_unrelated_lists_show_nothing():
    """Negative control: under independence p is uniform, so 5 % are below .05."""
    small = [pearson_p(*RANDOM.normal(size=(2, 8))) < 0.05 for _ in range(2000)]
    assert 0.035 < np.mean(small) < 0.065


def test_leaving_out_leaves_out_that_entry():
    x, y = RANDOM.normal(size=(2, 5))
    for one in leave_one_out(x, y):
        rest = [i for i in range(5) if i != one.left_out]
        assert one.rest == correlations(x[rest], y[rest])


@pytest.mark.parametrize("bad", [np.ones(4), np.array([1.0, 2.0, np.nan, 4.0])])
def test_constant_and_undefined_lists_have_no_correlation(bad):
    with pytest.raises(ValueError, match="give finite numbers, not all equal"):
        correlations(bad, np.arange(4.0))


def test_too_many_orders_are_refused():
    with pytest.raises(ValueError, match="all orders of 10 entries are too many"):
        permutation_p(np.arange(10.0), np.arange(10.0))


@pytest.mark.slow
@given(st.integers(0, 10_000))
@settings(deadline=None)
@example(5462)
def test_no_numbers_inside_the_rounding_box_are_outside_the_range(seed):
    random = np.random.default_rng(seed)
    x = np.round(random.uniform(1, 5, size=8), 2)
    y = np.round(-9 * x + random.normal(size=8) * random.choice([2, 20]), 1)
    found = rounded_p(x, y, half_x=0.005, half_y=0.05)
    corners = random.choice([-1, 0.3, 1], size=(64, 2, 8))
    inside = [pearson_p(x + 0.005 * a, y + 0.05 * b) for a, b in corners]
    assert found.low * (1 - 1e-6) <= min(inside)
    assert max(inside) <= found.high * (1 + 1e-6)
    assert found.low <= found.value <= found.high


def test_a_box_that_holds_independence_reaches_a_p_of_one():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    y = np.array([1.0, -1.0, -1.0, 1.01])
    assert rounded_p(x, y, half_x=0.005, half_y=0.05).high == 1.0


def test_a_printed_p_is_reached_within_half_its_last_digit():
    found = rounded_p(np.arange(8.0), np.arange(8.0) ** 2, half_x=0.0001, half_y=0.0001)
    assert found.reaches(found.low - 0.00004, 0.00005)
    assert not found.reaches(found.low - 0.00006, 0.00005)
    assert not found.reaches(found.high + 0.00006, 0.00005)


def test_auroc_is_the_chance_to_rank_a_collapse_higher():
    score = np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    loss = np.array([-40.0, -25.0, -1.0, -21.0, 3.0])
    found = discrimination(score, loss, worse_than=-20.0, limit=2.5)
    pairs = [
        1.0 if bad > good else 0.5 if bad == good else 0.0
        for bad in (3.0, 1.0, 2.0)
        for good in (2.0, 5.0)
    ]
    assert found.auroc == pytest.approx(np.mean(pairs))
    assert (found.collapsed, found.over, found.right) == (3, 2, 1)


def test_auroc_needs_both_kinds():
    with pytest.raises(ValueError, match=r"0 of 2 tasks lost more than 20\.0 %"):
        discrimination(np.arange(2.0), np.zeros(2), worse_than=-20.0, limit=3.0)
