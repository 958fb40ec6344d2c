"""Variance and effective rank against numpy on all states at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_collapse.probes.tokens import TokenizedProbe
from mergekit_collapse.states.batching import make_batches
from mergekit_collapse.states.counted_positions import MAX_POSITIONS, CountedPositions
from mergekit_collapse.states.layer_statistics import ActivationSample, effective_rank
from mergekit_collapse.states.states import LayerStatistics

LENGTHS = [9, 1, 4, 7, 2, 12]


def batches_of(lengths, *, max_tokens=1000, side="right", target=(5, 6, 7)):
    # No two are equal, since those are run once.
    probes = [TokenizedProbe((i, *range(1, n)), tuple(target)) for i, n in enumerate(lengths)]
    return make_batches(probes, answers=True, decoder_start=None, max_tokens=max_tokens, side=side)


def measured(states, batches, dtype=torch.float32, rubbish=math.nan):
    """Statistics of these states per probe, with rubbish at padding, targets and first tokens."""
    sample = ActivationSample(CountedPositions(batches))
    for batch in batches:
        width = states[0].shape[1]
        hidden = torch.full((*batch.inputs.ids.shape, width), rubbish)
        for row, probe in enumerate(batch.probes):
            positions = batch.pooled[row].nonzero().flatten()
            hidden[row, positions] = torch.as_tensor(states[probe], dtype=torch.float32)
            hidden[row, positions[0]] = rubbish
        sample.add(hidden.to(dtype), batch)
    return sample.statistics()


def random_states(lengths, width, seed=0, *, offset=0.0):
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.1, 3, width)
    return [(offset + scales * rng.normal(size=(n, width))).astype(np.float32) for n in lengths]


def oracle(states):
    """Of all states but each probe's first, by the definitions."""
    rows = np.concatenate([s[1:] for s in states]).astype(np.float64)
    covariance = np.cov(rows.T, bias=True)
    sigma = np.linalg.eigvalsh(covariance).clip(min=0)
    p = sigma[sigma > 0] / sigma.sum()
    return rows.var(axis=0).mean(), np.exp(-(p * np.log(p)).sum())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=7).filter(lambda n: sum(n) > len(n) + 1),
    st.integers(2, 40),
    st.sampled_from(["right", "left"]),
    st.integers(1, 60),
)
def test_statistics_are_those_of_the_full_matrix(lengths, width, side, max_tokens):
    states = random_states(lengths, width)
    found = measured(states, batches_of(lengths, max_tokens=max_tokens, side=side))
    np.testing.assert_allclose([found.variance, found.effective_rank], oracle(states), rtol=1e-6)


@pytest.mark.parametrize("lengths", [LENGTHS, [40] * 30])
def test_neither_batches_nor_padding_matter(lengths):
    states = random_states(lengths, 24)
    first = measured(states, batches_of(lengths))
    for side in ("right", "left"):
        for max_tokens in (1, 25, 100):
            other = measured(states, batches_of(lengths, max_tokens=max_tokens, side=side))
            assert other.variance == pytest.approx(first.variance, rel=1e-6)
            # The same positions were chosen.
            assert other.effective_rank == first.effective_rank


def test_few_large_features_and_an_offset_leave_the_digits():
    states = random_states([50] * 8, 16, offset=1000.0)
    for state in states:
        state[:, 3] *= 20
    np.testing.assert_allclose(
        measured(states, batches_of([50] * 8)).variance, oracle(states)[0], rtol=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(st.floats(-12, 12), st.integers(0, 100))
def test_scaling_and_rotation(power, seed):
    """Var(c x) = c² Var(x); neither c nor a rotation changes the rank."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(30, 10)) * rng.uniform(0.01, 1, 10)
    rank = effective_rank(rows)
    rotation, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    assert effective_rank(rows @ rotation * 10**power + 5.0 * 10**power) == pytest.approx(rank)
    # Powers of two, so that float32 rounds nothing.
    factor = 2.0 ** round(power)
    states = random_states(LENGTHS, 8, seed)
    one = measured(states, batches_of(LENGTHS))
    other = measured([factor * s for s in states], batches_of(LENGTHS))
    assert other.variance == pytest.approx(factor**2 * one.variance, rel=1e-12)
    assert other.effective_rank == pytest.approx(one.effective_rank, rel=1e-9)


@pytest.mark.parametrize("width", [4, 200])
def test_known_ranks(width):
    """k orthogonal directions of equal variance have rank k, on either side of the Gram choice."""
    for k in (1, 2, 4):
        axes = np.eye(width)[:k]
        assert effective_rank(np.concatenate([axes, -axes])) == pytest.approx(k)
    rows = np.outer(np.random.default_rng(0).normal(size=50), np.arange(1.0, width + 1))
    assert effective_rank(rows) == pytest.approx(1, abs=1e-9)
    isotropic = np.random.default_rng(0).normal(size=(20_000, 4))
    assert effective_rank(isotropic) == pytest.approx(4, rel=1e-3)


def test_collapse_lowers_the_rank():
    states = random_states([40] * 10, 32)
    mean = np.concatenate(states).mean(axis=0)
    axis = np.random.default_rng(1).normal(size=32)
    flat = [(mean + np.outer(s @ axis, axis) / 32 + 0.01 * s).astype(np.float32) for s in states]
    batches = batches_of([40] * 10)
    assert measured(flat, batches).effective_rank < 0.2 * measured(states, batches).effective_rank


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_equal_states_span_nothing(value):
    states = [np.full((n, 5), value, dtype=np.float32) for n in LENGTHS]
    assert measured(states, batches_of(LENGTHS)) == LayerStatistics(0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_nan(bad):
    lengths = [60] * 20
    batches = batches_of(lengths)
    for probe, token in ((0, 1), (11, 30), (19, 59)):
        states = random_states(lengths, 6)
        states[probe][token, 2] = bad
        found = measured(states, batches, rubbish=0.0)
        assert math.isnan(found.variance)
        assert math.isnan(found.effective_rank)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
def test_first_tokens_targets_and_padding_never_enter(rubbish):
    states = random_states(LENGTHS, 6)
    clean = measured(states, batches_of(LENGTHS), rubbish=0.0)
    for side in ("right", "left"):
        found = measured(states, batches_of(LENGTHS, side=side), rubbish=rubbish)
        assert found.variance == pytest.approx(clean.variance, rel=1e-12)
        assert found.effective_rank == clean.effective_rank


def test_no_position_that_counts_is_nan():
    states = random_states([1, 1], 6)
    found = measured(states, batches_of([1, 1]))
    assert math.isnan(found.variance)
    assert math.isnan(found.effective_rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_read(dtype):
    states = random_states(LENGTHS, 6)
    rounded = [torch.tensor(s).to(dtype).double().numpy() for s in states]
    found = measured(states, batches_of(LENGTHS), dtype=dtype)
    np.testing.assert_allclose([found.variance, found.effective_rank], oracle(rounded), rtol=1e-6)


def test_the_sample_is_close_to_all_positions():
    lengths = [40] * 100
    assert sum(lengths) > 10 * MAX_POSITIONS
    states = random_states(lengths, 16)
    found = measured(states, batches_of(lengths))
    assert found.effective_rank == pytest.approx(oracle(states)[1], rel=0.05)
    # Where each token has a direction of its own, the sample must see all of them.
    by_token = [np.eye(40, dtype=np.float32) for _ in lengths]
    assert measured(by_token, batches_of(lengths)).effective_rank > 30


def test_missing_batches_are_an_error():
    batches = batches_of(LENGTHS, max_tokens=20)
    assert len(batches) > 1
    sample = ActivationSample(CountedPositions(batches))
    sample.add(torch.zeros(*batches[0].inputs.ids.shape, 3), batches[0])
    with pytest.raises(ValueError, match="positions were added"):
        sample.statistics()
