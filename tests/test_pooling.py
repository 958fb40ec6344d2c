"""Pooling against the same thing done one sequence at a time without padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_collapse.states.pooling import pool

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def padded(lengths, side, rubbish):
    """Random states, with rubbish where the padding stands."""
    generator = torch.Generator().manual_seed(sum(lengths))
    sequences = [torch.randn((n, 3), generator=generator) for n in lengths]
    width = max(lengths) + 1
    hidden = torch.full((len(lengths), width, 3), rubbish)
    mask = torch.zeros((len(lengths), width), dtype=torch.int64)
    for row, states in enumerate(sequences):
        where = slice(0, len(states)) if side == "right" else slice(width - len(states), width)
        hidden[row, where], mask[row, where] = states, 1
    return sequences, hidden, mask


@settings(max_examples=40, deadline=None)
@given(lengths, st.sampled_from(["right", "left"]), st.sampled_from([1e30, float("nan")]))
def test_padding_on_either_side_never_enters(lengths, side, rubbish):
    sequences, hidden, mask = padded(lengths, side, rubbish)
    mean = torch.stack([s.mean(dim=0) for s in sequences])
    torch.testing.assert_close(pool(hidden, mask, "mean"), mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(pool(hidden, mask, "last_token"), torch.stack([s[-1] for s in sequences]))
    assert torch.equal(pool(hidden, mask, "tokens"), torch.cat(sequences))


def test_what_follows_the_prompt_is_left_out():
    hidden = torch.arange(4.0).reshape(1, 4, 1)
    mask = torch.tensor([[0, 1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[1.5]]
    assert pool(hidden, mask, "last_token").tolist() == [[2.0]]
    assert pool(hidden, mask, "tokens").tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("pooling", ["mean", "last_token", "tokens"])
def test_a_nan_that_counts_is_handed_on(pooling):
    hidden = torch.tensor([[[1.0], [float("nan")]]])
    assert pool(hidden, torch.tensor([[1, 1]]), pooling).isnan().any()


def test_a_sequence_of_padding_only_is_an_error():
    with pytest.raises(ValueError, match="no token to pool"):
        pool(torch.zeros(2, 2, 1), torch.tensor([[1, 0], [0, 0]]), "mean")
