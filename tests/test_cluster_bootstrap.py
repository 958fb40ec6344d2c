"""AUROC and correlations under resampled clusters: oracles, coverage, and what it would miss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mergekit_collapse.study.auroc import auroc, aurocs
from mergekit_collapse.study.cluster_resamples import cluster_numbers, resampled_weights
from mergekit_collapse.study.clustered_correlation import pearson, spearman
from mergekit_collapse.study.estimate import estimate
from mergekit_collapse.study.tied_groups import tied_groups

STATISTICS = {"auroc": auroc, "pearson": pearson, "spearman": spearman}


def by_pairs(score, collapsed):
    """AUROC as it is defined: every collapsed row against every other."""
    bad, good = score[collapsed], score[~collapsed]
    if not (len(bad) and len(good)):
        return np.nan
    return np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good))


def tied_rows(seed, count=12):
    """Few different scores, one of them infinite."""
    random = np.random.default_rng(seed)
    score = random.choice([0.0, 1.0, 2.0, 3.0, np.inf], size=count)
    return score, random.random(count) < 0.5, random


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_weighted_auroc_is_that_of_the_rows_drawn(seed):
    score, collapsed, random = tied_rows(seed)
    weights = random.integers(0, 4, size=(5, 12)).astype(np.float64)
    found = aurocs(tied_groups(score), collapsed, weights)
    for value, times in zip(found, weights.astype(int), strict=True):
        expected = by_pairs(np.repeat(score, times), np.repeat(collapsed, times))
        assert value == pytest.approx(expected, nan_ok=True)


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_midranks_are_those_of_scipy(seed):
    score, _, random = tied_rows(seed)
    times = random.integers(1, 4, size=12)
    found = tied_groups(score).midranks(times[None].astype(np.float64))
    assert np.repeat(found[0], times).tolist() == stats.rankdata(np.repeat(score, times)).tolist()


def test_a_row_that_is_not_drawn_shares_no_rank():
    groups = tied_groups(np.array([5.0, 1.0, 5.0]))
    assert groups.midranks(np.array([[1.0, 0.0, 1.0]]))[0, [0, 2]].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_interval_is_that_of_rows_drawn_cluster_by_cluster(statistic):
    """Against the plain loop: draw clusters, collect their rows, compute with scipy."""
    random = np.random.default_rng(1)
    labels = np.array(list("aaabbcddddeefffgg"))
    x = random.normal(size=len(labels)).round(1)
    y = (x + random.normal(size=len(labels))).round(1)
    second = y > 0 if statistic == "auroc" else y
    oracle = {
        "auroc": by_pairs,
        "pearson": lambda a, b: stats.pearsonr(a, b).statistic,
        "spearman": lambda a, b: stats.spearmanr(a, b).statistic,
    }[statistic]
    found = STATISTICS[statistic](x, second, labels, resamples=200, seed=3)
    numbers = cluster_numbers(labels)
    (weights,) = resampled_weights(numbers, 200, 3)
    rows = [np.repeat(np.arange(len(labels)), times.astype(int)) for times in weights]
    values = np.sort([oracle(x[drawn], second[drawn]) for drawn in rows])
    assert found.value == pytest.approx(oracle(x, second))
    assert found.interval.low == pytest.approx(values[5])
    assert found.interval.high == pytest.approx(values[194])


def test_clusters_are_drawn_whole_and_as_many_as_there_are():
    numbers = cluster_numbers(["x", ("y", 1), "x", "z", "z", "z"])
    assert numbers.tolist() == [0, 1, 0, 2, 2, 2]
    (weights,) = resampled_weights(numbers, 500, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert np.allclose(weights.mean(axis=0), 1, atol=0.1)


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    numbers = cluster_numbers(range(7))
    whole = np.concatenate(list(resampled_weights(numbers, 50, seed=5)))
    monkeypatch.setattr("mergekit_collapse.study.cluster_resamples._BLOCK", 20)
    parts = list(resampled_weights(numbers, 50, seed=5))
    assert len(parts) == 25
    assert (np.concatenate(parts) == whole).all()


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    one, same, other = (spearman(x, y, range(30), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.value == other.value
    assert one.interval != other.interval


def test_the_order_of_the_scores_is_all_that_counts():
    random = np.random.default_rng(4)
    score, collapsed = random.normal(size=40), random.random(40) < 0.4
    found = auroc(score, collapsed, range(40), resamples=100)
    assert auroc(np.exp(score), collapsed, range(40), resamples=100) == found
    mirrored = auroc(-score, collapsed, range(40), resamples=100)
    assert mirrored.value == pytest.approx(1 - found.value)
    assert mirrored.interval.low == pytest.approx(1 - found.interval.high)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_what_is_undefined_is_refused(statistic):
    x = np.array([1.0, 2.0, np.nan, 4.0])
    other = np.array([True, False, True, False]) if statistic == "auroc" else np.arange(4.0)
    with pytest.raises(ValueError, match=r"1 of 4 rows have no |finite numbers"):
        STATISTICS[statistic](x, other, range(4))


def test_infinity_is_the_highest_rank_and_no_number_for_pearson():
    x, y = np.array([1.0, 2.0, np.inf, np.inf]), np.array([1.0, 3.0, 2.0, 4.0])
    assert spearman(x, y, range(4)).value == pytest.approx(
        stats.spearmanr([1, 2, 9, 9], y).statistic
    )
    with pytest.raises(ValueError, match="needs finite numbers"):
        pearson(x, y, range(4))
    with pytest.raises(ValueError, match="2 of 4 rows have no score"):
        auroc(-x, y > 2, range(4))


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
def test_constant_lists_have_no_correlation(statistic):
    with pytest.raises(ValueError, match="all equal"):
        STATISTICS[statistic](np.full(5, 0.1), np.arange(5.0), range(5))


def test_an_auroc_needs_both_kinds():
    with pytest.raises(ValueError, match="3 of 3 rows collapsed; both kinds are needed"):
        auroc(np.arange(3.0), np.ones(3, dtype=bool), range(3))
    with pytest.raises(ValueError, match="no rows"):
        estimate(lambda weights: weights[:, 0], [])


def test_resamples_of_one_kind_are_left_out_and_counted():
    """Of 3 collapsed rows among 30, a resample has none with probability (1 - 3/30)^30 = .042."""
    collapsed = np.arange(30) >= 27
    score = np.random.default_rng(0).normal(size=30)
    found = auroc(score, collapsed, range(30), resamples=20_000)
    assert found.interval.undefined == pytest.approx(0.9**30, abs=0.005)


def test_a_constant_resample_has_no_correlation():
    """Rounding leaves .1 - mean of .1 a little above 0; such a resample must not count."""
    x = np.array([0.1] * 9 + [0.7])
    found = pearson(x, np.arange(10.0), range(10), resamples=20_000)
    assert found.interval is None
    # The far row is never drawn with probability (1 - 1/10)^10 = .349.
    assert found.reason == "35% of the resamples of 10 clusters have no value"


def test_two_clusters_of_a_kind_are_too_few():
    collapsed = np.arange(30) >= 28
    found = auroc(np.random.default_rng(0).normal(size=30), collapsed, range(30))
    assert found.interval is None
    assert "resamples of 30 clusters have no value" in found.reason
    one = auroc(np.arange(30.0) % 7, collapsed, ["all"] * 30)
    assert (one.interval, one.reason) == (None, "there is one cluster")


def test_no_error_is_no_certainty():
    """Every resample says 1. Ten pairs that all went right leave .025^(1/10) = .69 possible."""
    score, collapsed = np.arange(30.0), np.arange(30) >= 20
    found = auroc(score, collapsed, range(30))
    assert found.value == 1
    assert found.interval.low == pytest.approx(0.025**0.1)
    assert found.interval.high == 1
    assert auroc(-score, collapsed, range(30)).interval.high == pytest.approx(1 - 0.025**0.1)
    # Five clusters, each of both kinds, are two disjoint pairs, however many rows they have.
    mixed = auroc(score, collapsed, np.arange(30) % 5)
    assert mixed.interval.low == pytest.approx(0.025**0.5)


def drawn_clusters(random, clusters, size, spread):
    """Scores that share a part within a cluster; every other cluster collapsed.

    The scores of both kinds have variance 1, and their means are 1 apart: AUROC = Φ(1/√2).
    """
    shared = np.repeat(random.normal(size=clusters), size)
    own = random.normal(size=clusters * size)
    collapsed = np.repeat(np.arange(clusters) % 2 == 0, size)
    return spread * shared + np.sqrt(1 - spread**2) * own + collapsed, collapsed


def coverage(labels_of, runs=300):
    random = np.random.default_rng(7)
    true, inside = stats.norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(runs):
        score, collapsed = drawn_clusters(random, 40, 5, 0.9)
        found = auroc(score, collapsed, labels_of(len(score)), resamples=200).interval
        inside += found.low <= true <= found.high
    return inside / runs


def test_the_interval_holds_the_truth_where_rows_are_clustered():
    assert 0.89 < coverage(lambda rows: np.arange(rows) // 5) < 0.99


@pytest.mark.slow
def test_an_interval_that_knows_of_no_clusters_misses_it():
    """Negative control: as if the 200 rows of 40 clusters were independent."""
    assert coverage(range) < 0.75
