"""Linear CKA as a predictor of collapse: what it sees, and what it cannot."""

import itertools
import json
import math

import numpy as np
import pytest
from collapse_benchmark import drawn, value_of

# isort: split
import cka_scores
from cka_scores import linear_cka


def orthogonal(size, seed=0):
    return np.linalg.qr(drawn(size, size, seed=seed))[0]


def feature_form(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return np.linalg.norm(y.T @ x) ** 2 / norms


def unbiased_hsic(k, lk):
    """The U-statistic over all quadruples of different probes, by its definition."""
    quadruples = list(itertools.permutations(range(len(k)), 4))
    total = sum(k[i, j] * (lk[i, j] + lk[q, r] - 2 * lk[i, q]) for i, j, q, r in quadruples)
    return total / len(quadruples)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_one_with_itself_and_symmetric(debiased):
    found = linear_cka(drawn(3, 12, 5), debiased=debiased)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T)
    assert found[0, 1] < 0.9


def test_cka_from_gram_matrices_is_cka_from_features():
    states = drawn(3, 20, 7)
    expected = [[feature_form(x, y) for y in states] for x in states]
    np.testing.assert_allclose(linear_cka(states), expected)


def test_debiased_cka_is_made_of_u_statistics():
    x, y = drawn(2, 7, 3)
    k, lk = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, lk) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(lk, lk))
    np.testing.assert_allclose(linear_cka(np.stack([x, y]), debiased=True)[0, 1], expected)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_sees_no_rotation_scale_or_shift(debiased):
    states = drawn(2, 30, 6)
    moved = states.copy()
    moved[1] = 1e-3 * states[1] @ orthogonal(6) + drawn(6, seed=3)
    expected = linear_cka(states, debiased=debiased)
    np.testing.assert_allclose(linear_cka(moved, debiased=debiased), expected)


def test_cka_sees_other_linear_maps():
    x = drawn(40, 6)
    stretched = x @ np.diag([10.0, 1, 1, 1, 1, 1])
    assert linear_cka(np.stack([x, stretched]))[0, 1] < 0.7


def test_of_unrelated_states_only_debiased_cka_is_about_zero():
    found = [
        [linear_cka(drawn(2, 24, 100, seed=s), debiased=debiased)[0, 1] for s in range(50)]
        for debiased in (False, True)
    ]
    assert min(found[0]) > 0.5
    assert abs(np.mean(found[1])) < 0.02


def test_cka_does_not_depend_on_the_others():
    states = drawn(4, 10, 5)
    np.testing.assert_allclose(linear_cka(states)[:2, :2], linear_cka(states[:2]))


def test_cka_is_undefined_for_states_that_do_not_vary():
    states = drawn(2, 10, 4)
    states[1] = 3.0
    found = linear_cka(states)
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan(found[1]).all()


def test_cka_refuses_what_it_cannot_tell():
    states = drawn(3, 10, 4)
    states[2, 5, 1] = np.inf
    with pytest.raises(ValueError, match=r"experts \[2\] have NaN or infinite states"):
        linear_cka(states)
    with pytest.raises(ValueError, match="needs at least 4 probes, got 3"):
        linear_cka(drawn(2, 3, 4), debiased=True)


def test_cka_rows_take_the_probes_of_the_groups_tasks(tmp_path):
    states = {name: drawn(2, 30, 5, seed=i) for i, name in enumerate("abc")}
    for name, task in (("a", "A"), ("b", "B"), ("c", "C-rotated")):
        (tmp_path / "experts" / name).mkdir(parents=True)
        (tmp_path / "experts" / name / "training.json").write_text(json.dumps({"task": task}))
        (tmp_path / "states" / name).mkdir(parents=True)
        for start, asked in ((0, "A"), (10, "B"), (20, "C")):
            part = states[name][:, start : start + 10]
            np.savez(tmp_path / "states" / name / f"{asked}.npz", mean=part, last=2 * part**3)
    rows = list(cka_scores.scores(tmp_path, [("a", "c")]))
    a, c = (states[name][1, [*range(10), *range(20, 30)]] for name in "ac")
    assert value_of(rows, "cka_mean") == pytest.approx(1 - feature_form(a, c))
    assert value_of(rows, "cka_last", "c") == pytest.approx(1 - feature_form(a**3, c**3))
    assert {r.predictor for r in rows} == set(cka_scores.PREDICTORS)
