"""Distances, scales and chance: what each declares about itself, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import all_rows, gaussian_points, hidden_states, plain_scales, rotation

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry import chance_distances as chance_module
from mergekit_collapse.geometry import rows as state_rows
from mergekit_collapse.geometry.chance_distances import chance_distances
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.rows import select_probes

SCALES = ["variance", "rms", "unit", "none"]
seeds = st.integers(0, 2**32 - 1)


def mean_distances(states, scale, experts):
    rows = all_rows(states, unit=scale == "unit")
    scales = [s.squared for s in plain_scales(rows, scale, experts)]
    distances = probe_distances(rows, scales)
    return distances.distance.mean(axis=0), distances.squared.mean(axis=0)


def random_layers(seed, models=4, probes=5, widths=(3,)):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(models, probes, w)) + rng.normal(size=w) for w in widths]


@pytest.mark.parametrize("scale", SCALES)
@given(seeds)
@settings(max_examples=15, deadline=None)
def test_both_matrices_are_metrics_and_symmetric(scale, seed):
    layers = random_layers(seed, widths=(3, 3))
    for matrix in mean_distances(hidden_states(*layers), scale, 4):
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(np.diag(matrix), 0)
    distance, squared = mean_distances(hidden_states(*layers), scale, 4)
    for metric in (distance, np.sqrt(squared)):
        detour = metric[:, :, None] + metric[None]
        assert (metric[:, None] <= detour + 1e-12).all()
    # Jensen: the mean distance is at most the root mean square.
    assert (distance <= np.sqrt(squared) + 1e-12).all()


@pytest.mark.parametrize(
    ("scale", "size", "shift"),
    [("variance", True, True), ("rms", True, False), ("unit", True, False), ("none", False, True)],
)
@given(seeds)
@settings(max_examples=15, deadline=None)
def test_invariance_is_what_the_scale_declares(scale, size, shift, seed):
    (states,) = random_layers(seed)
    plain = mean_distances(hidden_states(states), scale, 3)

    def same(changed):
        other = mean_distances(hidden_states(changed), scale, 3)
        return all(np.allclose(a, b, rtol=1e-4) for a, b in zip(plain, other, strict=True))

    assert same(states @ rotation(seed, 3))
    assert same(7.5 * states) == size
    assert same(states + np.array([3.0, -2.0, 5.0])) == shift


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_permuting_models_permutes_both_matrices(seed):
    (states,) = random_layers(seed)
    order = np.random.default_rng(seed).permutation(4)
    plain = mean_distances(hidden_states(states), "variance", 4)
    moved = mean_distances(hidden_states(states[order]), "variance", 4)
    for a, b in zip(plain, moved, strict=True):
        np.testing.assert_allclose(a[np.ix_(order, order)], b, rtol=1e-12)


def test_several_layers_are_a_direct_sum_each_in_its_own_scale():
    first, second = random_layers(0, widths=(6, 6))
    _, a = mean_distances(hidden_states(first), "variance", 4)
    _, b = mean_distances(hidden_states(second), "variance", 4)
    _, both = mean_distances(hidden_states(first, 100 * second), "variance", 4)
    np.testing.assert_allclose(both, (a + b) / 2, rtol=1e-5)


def test_probes_count_equally_however_many_rows_they_have():
    states = np.zeros((2, 4, 1))
    states[1, :, 0] = [1, 3, 5, 2]
    several = hidden_states(states, probe_of_row=np.array([0, 0, 0, 1]))
    distances = probe_distances(all_rows(several), [4.0])
    np.testing.assert_allclose(distances.distance[:, 0, 1], [3 / 2, 2 / 2])
    np.testing.assert_allclose(distances.squared[:, 0, 1], [35 / 3 / 4, 4 / 4])


def test_scales_by_hand():
    states = np.zeros((3, 4, 1))
    states[0, :, 0], states[1, :, 0], states[2, :, 0] = [1, 3, 5, 2], [1, 1, 1, 0], 99
    rows = all_rows(hidden_states(states, probe_of_row=np.array([0, 0, 0, 1])))
    # Expert 0: probe means 3 and 2, mean 2.5; the rows spread 35/3 and 4 about 0.
    energy = ((35 / 3 + 4) / 2 + (1 + 0) / 2) / 2
    variance = ((35 / 3 + 4) / 2 - 2.5**2 + 0.25) / 2
    assert plain_scales(rows, "rms", 2)[0].squared == pytest.approx(energy)
    assert plain_scales(rows, "variance", 2)[0].squared == pytest.approx(variance)
    assert plain_scales(rows, "none", 2)[0].squared == 1


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(3, 40, w)) for w in (7, 7)]
    states = hidden_states(*layers, probe_of_row=np.sort(rng.integers(0, 6, 40)))
    whole = mean_distances(states, "variance", 3)
    monkeypatch.setattr(state_rows, "BLOCK_BYTES", 1)
    monkeypatch.setattr("mergekit_collapse.geometry.distances.BLOCK_BYTES", 1)
    for a, b in zip(whole, mean_distances(states, "variance", 3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_states_are_read_from_a_memory_map(tmp_path):
    states = hidden_states(*random_layers(1))
    mapped = np.memmap(tmp_path / "states", np.float32, "w+", shape=states.values[0].shape)
    mapped[:] = states.values[0]
    for a, b in zip(
        mean_distances(states, "variance", 3),
        mean_distances(replace(states, values=(mapped,)), "variance", 3),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_near_twins_keep_their_digits():
    """The Gram identity gives 0 or NaN here: 1 + 1e-16 is 1."""
    base = gaussian_points(0, 5, 4).astype(np.float32)
    twin = base.copy()
    twin[:, 0] = np.nextafter(base[:, 0], np.float32(np.inf))
    step = twin.astype(float)[:, 0] - base.astype(float)[:, 0]
    assert step.max() < 3e-7
    _, squared = mean_distances(hidden_states(np.stack([base, twin])), "none", 2)
    assert squared[0, 1] == pytest.approx(np.square(step).mean(), rel=1e-12)


def test_identical_experts_are_at_distance_zero_and_unrelated_ones_at_two():
    states = np.random.default_rng(0).normal(size=(3, 200, 300))
    states[1] = states[0]
    distance, squared = mean_distances(hidden_states(states), "variance", 3)
    assert distance[0, 1] == squared[0, 1] == 0
    assert squared[0, 2] == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", SCALES)
def test_nan_and_infinity_name_the_model(bad, scale):
    states = np.ones((3, 5, 4)) * np.arange(5)[:, None] + 1
    states[2, 3, 1] = bad
    rows = select_probes(
        hidden_states(states), np.arange(5), unit=scale == "unit", models=["a", "b", "the base"]
    )
    with pytest.raises(EvaluationError, match=r"states of the base are NaN or infinite \(layer 1"):
        probe_distances(rows, [1.0])


def test_opposite_infinities_do_not_cancel():
    states = np.ones((2, 2, 2))
    states[1, 0], states[1, 1] = np.inf, -np.inf
    with pytest.raises(EvaluationError, match="model 1 are NaN"):
        probe_distances(all_rows(hidden_states(states)), [1.0])


@pytest.mark.parametrize(("scale", "value"), [("variance", 3.0), ("rms", 0.0)])
def test_states_that_tell_no_probes_apart_are_refused(scale, value):
    rows = all_rows(hidden_states(np.full((2, 6, 4), value)))
    with pytest.raises(EvaluationError, match=f"scale {scale} is degenerate on all probes"):
        plain_scales(rows, scale, 2)


def test_a_zero_state_has_no_direction():
    states = gaussian_points(0, 8, 3).reshape(2, 4, 3)
    states[1, 2] = 0
    with pytest.raises(EvaluationError, match="model 1 are zero"):
        probe_distances(all_rows(hidden_states(states), unit=True), [1.0])


def test_a_probe_without_rows_is_refused():
    states = hidden_states(np.ones((2, 2, 3)), probe_of_row=np.array([0, 2]))
    with pytest.raises(EvaluationError, match=r"probes \[1\] have no hidden states"):
        select_probes(states, np.arange(3))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("features", [2, 4096])
def test_chance_distances_are_those_between_different_probes(unit, features, monkeypatch):
    monkeypatch.setattr(chance_module, "FEATURES_PER_BLOCK", features)
    states = gaussian_points(3, 3 * 6, 5).reshape(3, 6, 5).astype(np.float32).astype(float)
    states[:2, 4] = states[:2, 1]  # two probes that read the same: the Gram identity cancels
    found = chance_distances(all_rows(hidden_states(states), unit=unit), 2, [4.0], seed=0)
    assert found is not None
    if unit:
        states /= np.linalg.norm(states, axis=2, keepdims=True)
    assert len(found.probes) == len({tuple(p) for p in found.probes}) == 6 * 5
    for (x, y), matrix in zip(found.probes, found.distance, strict=True):
        assert x != y
        expected = np.linalg.norm(states[:2, None, x] - states[None, :2, y], axis=2) / 2
        np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-12)
    mean = found.distance.mean(axis=0)
    np.testing.assert_allclose(mean, mean.T)


@pytest.mark.parametrize("probes", [2, 65, 300, 5000])
def test_chance_pairs_are_seeded_even_and_at_most_4096(probes):
    rows = all_rows(hidden_states(gaussian_points(0, 2 * probes, 1).reshape(2, probes, 1)))
    found, again, other = (chance_distances(rows, 2, [1.0], seed=s) for s in (0, 0, 1))
    assert None not in (found, again, other)
    np.testing.assert_array_equal(found.distance, again.distance)
    assert probes == 2 or not np.array_equal(found.probes, other.probes)
    assert 0.5 * min(4096, probes * (probes - 1)) <= len(found.probes) <= 4096
    counts = np.bincount(found.probes[:, 0], minlength=probes)
    assert counts.max() - counts[counts > 0].min() <= 1


def test_one_probe_has_no_chance():
    assert chance_distances(all_rows(hidden_states(np.ones((2, 1, 3)))), 2, [1.0], 0) is None


def test_chance_takes_one_row_of_each_probe_and_several_layers():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(2, 6, w)) for w in (5, 5)]
    rows = all_rows(hidden_states(*layers, probe_of_row=np.array([0, 0, 0, 1, 1, 1])))
    found = chance_distances(rows, 2, [1.0, 4.0], seed=0)
    assert found is not None
    possible = {
        round(float(np.sqrt((a[0] + b[0]) / 2)), 5)
        for i in range(3)
        for j in range(3, 6)
        for a, b in [
            [
                [np.square(layer[0, i] - layer[1, j]).sum() / s]
                for layer, s in zip(layers, (1, 4), strict=True)
            ]
        ]
    }
    forward = found.distance[(found.probes == [0, 1]).all(axis=1)][0]
    assert round(float(forward[0, 1]), 5) in possible
