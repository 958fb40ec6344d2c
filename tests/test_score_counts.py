"""Eq. 1 against Table 2: whole numbers of right answers, and tables that are none."""

from dataclasses import replace

import numpy as np
import pytest

from mergekit_collapse.study.paper_tables import GLUE_ROWS, read_paper_tables
from mergekit_collapse.study.score_counts import below_half, count_answers, merged_scores

SIZES = read_paper_tables().sizes
SMALL = ("MRPC", "RTE", "WNLI")


PRINTED = {one.task: one for one in count_answers(SIZES)}


def test_every_printed_loss_is_a_ratio_of_whole_numbers_of_answers():
    for one in PRINTED.values():
        assert one.as_ratio == one.losses == 15
    assert sum(PRINTED[task].by_chance for task in SMALL) < 11


def test_they_are_no_differences_of_scores():
    """Negative control on the same numbers."""
    assert sum(PRINTED[task].as_points for task in SMALL) < 15


def test_wnli_by_hand():
    """52 of 71 right is 73.2 %; 27, 33, 36 and 28 of them are the losses that are printed."""
    size = SIZES[0]
    assert round(100 * 52 / 71, 1) == size.finetuned[-1]
    expected = [round(100 * (right / 52 - 1), 1) for right in (27, 27, 33, 36, 28)]
    assert size.loss[:, -1].tolist() == expected


def test_chance_counts_the_losses_that_some_number_of_answers_gives():
    """In small splits two numbers of answers never print the same loss."""
    for column, task in enumerate(GLUE_ROWS):
        if task in SMALL:
            right = [round(size.finetuned[column] * GLUE_ROWS[task] / 100) for size in SIZES]
            expected = sum(5 * (count + 1) / 1001 for count in right)
            assert PRINTED[task].by_chance == pytest.approx(expected)


def test_scores_that_no_count_gives_fit_nothing():
    """73.0 % of 71 rows would be 51.83 answers."""
    wrong = replace(SIZES[0], finetuned=np.full(8, 73.0))
    assert count_answers((wrong,))[-1].as_ratio == 0


def test_a_merged_score_is_the_expert_s_less_its_loss():
    scores = merged_scores(SIZES[0])
    assert scores[0, -1] == pytest.approx(100 * 27 / 71, abs=0.1)
    losses = 100 * (scores / SIZES[0].finetuned - 1)
    np.testing.assert_allclose(losses, SIZES[0].loss, atol=1e-9)


def test_worse_than_a_coin_leaves_mnli_out():
    found = below_half(SIZES)
    assert {one.task for one in found} == {"COLA", "MRPC", "RTE", "SST-2", "WNLI"}
    assert merged_scores(SIZES[0])[3, list(GLUE_ROWS).index("MNLI")] < 50
    assert all(one.score < 50 for one in found)
