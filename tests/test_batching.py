"""Batches hold every probe once, within their limits, and say where its states are."""

from itertools import product, starmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_collapse.probes.tokens import TokenizedProbe
from mergekit_collapse.states.batching import answer_count, make_batches, pad, plan_batches

token_lists = st.lists(st.integers(1, 99), min_size=1, max_size=9).map(tuple)
targets = st.lists(st.integers(1, 99), max_size=4).map(tuple)
probe_lists = st.lists(st.tuples(token_lists, targets), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), max_size=30))
def test_a_plan_keeps_its_limits_and_loses_nothing(items):
    lengths, answers = [length for length, _ in items], [count for _, count in items]
    plan = plan_batches(lengths, answers, max_tokens=40, max_answers=8)
    assert sorted(i for batch in plan for i in batch) == list(range(len(items)))
    for batch in plan:
        size = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or (size <= 40 and sum(answers[i] for i in batch) <= 8)
    order = [lengths[i] for batch in plan for i in batch]
    assert order == sorted(order, reverse=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=9))
def test_no_plan_costs_less(items):
    """Against every way to cut the probes, sorted by length, into batches."""
    items = sorted(items, reverse=True)
    lengths, answers = [length for length, _ in items], [count for _, count in items]

    def cost(batches):
        sizes = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
        asked = [sum(answers[i] for i in batch) for batch in batches]
        alone = [len(batch) == 1 for batch in batches]
        fits = (
            one or (size <= 64 and count <= 8)
            for one, size, count in zip(alone, sizes, asked, strict=True)
        )
        return sum(sizes) + 2 * len(batches) if all(fits) else float("inf")

    ways = []
    for cuts in product([False, True], repeat=len(items) - 1):
        batches = [[0]]
        for index, cut in enumerate(cuts, start=1):
            batches = [*batches, [index]] if cut else [*batches[:-1], [*batches[-1], index]]
        ways.append(cost(batches))
    assert cost(plan_batches(lengths, answers, max_tokens=64, max_answers=8)) == min(ways)


def test_probes_of_unlike_lengths_are_not_padded_to_the_longest():
    lengths = [120, 119, *[10] * 40]
    assert [len(batch) for batch in plan_batches(lengths, [1] * 42, 2048, 256)] == [2, 40]
    # A few tokens of padding cost less than a batch more.
    assert len(plan_batches([12, 11, 10], [1] * 3, 2048, 256)) == 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_keeps_the_tokens_and_their_positions(side):
    padded = pad([[7, 8, 9], [5]], side)
    at = 0 if side == "right" else 2
    assert padded.ids[0].tolist() == [7, 8, 9]
    assert padded.ids[1, at] == 5
    assert padded.mask.sum(dim=1).tolist() == [3, 1]
    assert padded.starts == (0, at)
    assert padded.positions[0].tolist() == [0, 1, 2]
    assert padded.positions[1, at] == 0


@settings(max_examples=60, deadline=None)
@given(probe_lists, st.sampled_from(["right", "left"]), st.booleans(), st.integers(1, 60))
def test_a_decoder_reads_the_prompt_and_answers_from_its_last_token(
    probes, side, answers, max_tokens
):
    # Not in the strategy: run-time type checks draw random numbers, which hypothesis forbids there.
    probes = list(starmap(TokenizedProbe, probes))
    seen = []
    for batch in make_batches(
        probes, answers=answers, decoder_start=None, max_tokens=max_tokens, side=side
    ):
        seen += [*batch.probes, *(other for other, _ in batch.repeats)]
        for other, one in batch.repeats:
            assert one in batch.probes
            assert other > one
            assert probes[other] == probes[one]
        assert len({probes[i] for i in batch.probes}) == len(batch.probes)
        for row, index in enumerate(batch.probes):
            probe = probes[index]
            tokens = batch.inputs.ids[row][batch.inputs.mask[row].bool()].tolist()
            assert tokens == list(probe.prompt + (probe.target[:-1] if answers else ()))
            assert batch.inputs.ids[row][batch.pooled[row].bool()].tolist() == list(probe.prompt)
            at = batch.answer_positions[batch.answer_sequences == row]
            assert len(at) == answer_count(probe)
            if answers:
                # The token at each answer position is the one before the token it predicts.
                assert batch.inputs.ids[row, at].tolist() == [probe.prompt[-1], *probe.target[:-1]]
    assert sorted(seen) == list(range(len(probes)))


@settings(max_examples=40, deadline=None)
@given(probe_lists, st.sampled_from(["right", "left"]))
def test_an_encoder_decoder_is_teacher_forced_as_transformers_shifts_labels(probes, side):
    probes = list(starmap(TokenizedProbe, probes))
    for batch in make_batches(probes, answers=True, decoder_start=0, max_tokens=50, side=side):
        assert batch.decoder_inputs is not None
        assert torch.equal(batch.pooled, batch.decoder_inputs.mask)
        for row, index in enumerate(batch.probes):
            probe = probes[index]
            read = batch.decoder_inputs.ids[row][batch.pooled[row].bool()].tolist()
            assert read == [0, *probe.target[:-1]]
            at = batch.answer_positions[batch.answer_sequences == row]
            assert at.tolist() == list(range(answer_count(probe)))
