"""Many models at once: products of matrices against subtraction in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_states import all_rows, hidden_states, plain_scales

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.geometry import distances as distances_module
from mergekit_collapse.geometry import scales as scales_module
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.pair_squares import FEATURES_PER_BLOCK, ModelRow, pair_squares
from mergekit_collapse.geometry.rows import select_probes

BOUND = 2 * (FEATURES_PER_BLOCK + 4) * 2.0**-24 / 0.05


def by_subtraction(values, norms=None):
    wide = values.astype(np.float64)
    if norms is not None:
        wide /= norms[:, None]
    return np.stack([np.square(wide - one).sum(axis=1) for one in wide])


@st.composite
def model_rows(draw):
    """Unrelated, of one base, in clusters, twins, chains, very long and very short ones."""
    count, width = draw(st.integers(2, 80)), draw(st.integers(1, 1500))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.normal(size=(count, width))
    kind = draw(st.sampled_from(["free", "base", "clusters", "chain", "halves", "line", "outlier"]))
    small = 10.0 ** draw(st.integers(-8, 0))
    centres = rng.normal(size=(5, width))
    made = {
        "free": noise,
        "base": centres[0] + small * noise,
        "clusters": centres[rng.integers(0, 5, count)] + small * noise,
        "chain": centres[0] + small * noise.cumsum(axis=0),
        "halves": 0.5 ** np.arange(count)[:, None] * centres[0],
        "line": np.linspace(0, 1, count)[:, None] * centres[0],
        "outlier": np.vstack([1e6 * centres[:1], noise[1:]]),
    }[kind]
    if draw(st.booleans()):
        made[rng.integers(0, count, count // 2)] = made[0]
    size = 10.0 ** draw(st.sampled_from([0, -25, 25]))
    return (size * made).astype(np.float32)


@given(model_rows())
@settings(max_examples=60, deadline=None)
def test_products_are_as_good_as_they_say(values):
    found, exact = pair_squares(ModelRow(values)), by_subtraction(values)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found[exact == 0], 0)
    assert found.min() >= 0
    np.testing.assert_allclose(found, exact, rtol=BOUND)
    # Roundings do not all point one way.
    np.testing.assert_allclose(found, exact, rtol=5e-5)


def test_a_pair_that_is_not_done_again_would_be_lost():
    values = np.random.default_rng(0).normal(size=(80, 3000))
    values[1] = values[0] + 1e-6 * values[2]
    values = values.astype(np.float32)
    centred = values - values.mean(axis=0)
    energy = np.square(centred).sum(axis=1)
    plain = energy[0] + energy[1] - 2 * centred[0] @ centred[1]
    exact = by_subtraction(values)[0, 1]
    assert abs(plain - exact) > 100 * exact
    assert pair_squares(ModelRow(values))[0, 1] == pytest.approx(exact, rel=1e-12)


def test_a_norm_is_divided_out_before_anything_is_rounded():
    values = np.random.default_rng(1).normal(size=(70, 40)).astype(np.float32)
    values[1] = 3 * values[0]
    values[1, 0] = np.nextafter(values[1, 0], np.float32(9))
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    found = pair_squares(ModelRow(values, norms))
    exact = by_subtraction(values, norms)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-30)
    assert 0 < exact[0, 1] < 1e-12


@pytest.mark.parametrize("scale", ["variance", "rms", "unit", "none"])
@pytest.mark.parametrize("rows_a_probe", [1, 3])
def test_many_experts_are_measured_like_few(scale, rows_a_probe, monkeypatch):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(1, 12, w)) + 0.3 * rng.normal(size=(70, 12, w)) + 5 for w in (9, 9)]
    layers[0][3] = layers[0][2]
    layers[1][3] = layers[1][2]
    states = hidden_states(*layers, probe_of_row=np.arange(12) // rows_a_probe)
    rows = all_rows(states, unit=scale == "unit")
    by_products = plain_scales(rows, scale, 69)
    many = probe_distances(rows, [s.squared for s in by_products])
    for module in (distances_module, scales_module):
        monkeypatch.setattr(module, "MANY", 1000)
    by_hand = plain_scales(rows, scale, 69)
    few = probe_distances(rows, [s.squared for s in by_hand])
    for a, b in zip(by_products, by_hand, strict=True):
        assert a.squared == pytest.approx(b.squared, rel=1e-5)
        np.testing.assert_allclose(a.resampled, b.resampled, rtol=1e-5)
    np.testing.assert_allclose(many.distance, few.distance, rtol=1e-4)
    np.testing.assert_allclose(many.layer_squared, few.layer_squared, rtol=1e-4)
    assert (many.distance[:, 2, 3] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_among_many_names_its_model(bad):
    states = np.random.default_rng(0).normal(size=(70, 3, 4))
    states[[0, 7], 1, 2] = bad
    rows = select_probes(hidden_states(states), np.arange(3))
    for ask in (lambda: probe_distances(rows, [1.0]), lambda: plain_scales(rows, "variance", 70)):
        with pytest.raises(EvaluationError, match=r"model 0.* are NaN or infinite \(layer 1"):
            ask()


def test_zero_among_many_has_no_direction():
    states = np.random.default_rng(0).normal(size=(70, 3, 4))
    states[7, 1] = 0
    with pytest.raises(EvaluationError, match="model 7 are zero"):
        probe_distances(all_rows(hidden_states(states), unit=True), [1.0])
