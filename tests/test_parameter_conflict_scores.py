"""Conflict and norms of task vectors as predictors of collapse."""

import numpy as np
import pytest
import torch
from collapse_benchmark import drawn, value_of

from mergekit_collapse.parameters.conflict import ConflictSums

# isort: split
import parameter_conflict_scores
from parameter_conflict_scores import conflict_rows


def conflict(vectors, names):
    sums = ConflictSums(len(vectors))
    sums.add(torch.from_numpy(vectors))
    return sums.result("base", tuple(names), 1)


def test_a_groups_conflict_is_that_of_the_group_alone():
    vectors = drawn(4, 2000) * np.array([[1.0], [5.0], [0.3], [2.0]])
    rows = list(conflict_rows(("d", "a", "b"), conflict(vectors, "abcd"), 10.0, 1.0))
    alone = conflict(vectors[[3, 0, 1]], "dab")
    assert value_of(rows, "sign_change_ratio") == alone.mean("sign_change_ratio")
    assert value_of(rows, "magnitude_change_ratio") == alone.mean("magnitude_change_ratio")
    assert value_of(rows, "task_vector_cosine") == pytest.approx(1 - alone.mean_cosine)
    d = alone.cosine[0]
    assert value_of(rows, "task_vector_cosine", "d") == pytest.approx(1 - (d[1] + d[2]) / 2)
    assert value_of(rows, "task_vector_cosine_max") == pytest.approx(1 - alone.cosine.min())
    assert {r.predictor for r in rows} == set(parameter_conflict_scores.PREDICTORS)


def test_norms_of_task_vectors():
    vectors = np.zeros((2, 4))
    vectors[0, 0], vectors[1, 2] = 3.0, 6.0
    rows = list(conflict_rows(("a", "b"), conflict(vectors, "ab"), 12.0, 1.0))
    assert value_of(rows, "task_vector_norm") == 4.5
    assert value_of(rows, "task_vector_norm", "b") == 6
    assert value_of(rows, "task_vector_norm_max") == 6
    assert value_of(rows, "task_vector_norm_ratio") == 2
    assert value_of(rows, "task_vector_relative_norm_max") == 0.5


def test_an_expert_that_is_the_base_leaves_readings_undefined():
    vectors = drawn(2, 50)
    vectors[1] = 0
    rows = list(conflict_rows(("a", "b"), conflict(vectors, "ab"), 1.0, 1.0))
    assert value_of(rows, "task_vector_cosine") is None
    assert value_of(rows, "task_vector_norm_ratio") is None
    assert value_of(rows, "task_vector_norm", "b") == 0
