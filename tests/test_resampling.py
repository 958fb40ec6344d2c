"""The bootstrap: what it draws, that its scale follows, and that it covers the truth."""

import numpy as np
import pytest
from made_states import all_rows, hidden_states

from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.resampling import interval, resample_weights, resampled_squared
from mergekit_collapse.geometry.scales import layer_scales


def test_resamples_keep_each_tasks_share_and_are_seeded():
    tasks = np.array([0, 0, 0, 1, 1, 2])
    weights = resample_weights(tasks, seed=3)
    assert weights.shape == (1000, 6)
    for task, share in ((0, 3 / 6), (1, 2 / 6), (2, 1 / 6)):
        np.testing.assert_allclose(weights[:, tasks == task].sum(axis=1), share)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 6, atol=0.02)
    np.testing.assert_array_equal(weights, resample_weights(tasks, seed=3))
    assert not np.array_equal(weights, resample_weights(tasks, seed=4))


@pytest.mark.parametrize("scale", ["variance", "rms", "none"])
def test_a_resample_is_what_its_probes_would_give(scale):
    """Distances and scale of resample b, against the states with its probes really repeated."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, 12, 4)) + 5
    weights = resample_weights(np.zeros(12, dtype=np.int64), seed=0)
    rows = all_rows(hidden_states(states))
    scales = layer_scales(rows, range(2), scale, weights, "all probes")
    distances = probe_distances(rows, [s.squared for s in scales])
    drawn = resampled_squared(distances, scales, weights)
    repeated = []
    for row in weights[:5]:
        picked = states[:, np.repeat(np.arange(12), np.round(12 * row).astype(int))]
        once = all_rows(hidden_states(picked))
        one = np.full((1, 12), 1 / 12)
        repeated.append(layer_scales(once, range(2), scale, one, "all probes")[0].squared)
    factor = scales[0].resampled[:5] / repeated
    # One factor for all undoes the shrinking of a variance drawn with replacement: 12/11.
    np.testing.assert_allclose(factor, factor[0], rtol=1e-6)
    assert factor[0] == pytest.approx(12 / 11 if scale == "variance" else 1, abs=0.02)
    raw = np.square(states[0] - states[2]).sum(axis=1)
    expected = weights[:5] @ raw / scales[0].resampled[:5]
    np.testing.assert_allclose(drawn[:5, 0, 2], expected, rtol=1e-5)


def test_an_interval_holds_its_value_and_says_what_is_undefined():
    values = np.arange(1000.0)
    assert interval(values, 500.0).low == pytest.approx(25, abs=1)
    assert interval(values, 500.0).high == pytest.approx(974, abs=1)
    assert interval(values, 10.0).low == 10
    endless = np.where(values > 900, np.inf, values)
    assert (interval(endless, 5.0).high, interval(endless, 5.0).reason) == (None, "infinite")
    assert interval(values, None).reason == "infinite"
    values[7] = np.nan
    assert interval(values, 5.0).reason == "undefined in 1 of 1000 resamples"


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Two experts whose D² is exactly 0.5, measured on 100 draws of probes."""
    hits = 0
    weights = resample_weights(np.zeros(60, dtype=np.int64), seed=0)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first = rng.normal(size=(60, 8))
        second = 0.75 * first + np.sqrt(1 - 0.75**2) * rng.normal(size=(60, 8))
        rows = all_rows(hidden_states(np.stack([first, second])))
        scales = layer_scales(rows, range(2), "variance", weights, "all probes")
        distances = probe_distances(rows, [scales[0].squared])
        value = float(distances.squared.mean(axis=0)[0, 1])
        found = interval(resampled_squared(distances, scales, weights)[:, 0, 1], value)
        hits += found.low <= 0.5 <= found.high
    assert 88 <= hits <= 99
