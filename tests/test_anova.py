"""Analysis of variance against scipy, against least squares, and against explicit projections."""

import numpy as np
import pytest
from scipy import stats

from mergekit_collapse.study.anova import two_factors
from mergekit_collapse.study.method_against_task import analyse, distances
from mergekit_collapse.study.paper_tables import read_paper_tables

TABLES = read_paper_tables()
RANDOM = np.random.default_rng(1)
MADE = [RANDOM.normal(size=shape) for shape in ((3, 4), (5, 8), (8, 3), (2, 6))]
PRINTED = [size.loss for size in TABLES.sizes]


def indicators(table):
    """One column a row, one column a column of the table, for its numbers in reading order."""
    rows, columns = table.shape
    return np.kron(np.eye(rows), np.ones((columns, 1))), np.kron(
        np.ones((rows, 1)), np.eye(columns)
    )


def residual_square(design, y):
    return float(np.sum((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2))


@pytest.mark.parametrize("table", [*MADE, *PRINTED])
def test_one_way_is_that_of_scipy(table):
    for effect, groups in zip(two_factors(table).alone, (table, table.T), strict=True):
        expected = stats.f_oneway(*groups)
        assert effect.f == pytest.approx(expected.statistic, rel=1e-9)
        assert effect.p_value == pytest.approx(expected.pvalue, rel=1e-9)
        assert (effect.df, effect.df_error) == (len(groups) - 1, table.size - len(groups))


@pytest.mark.parametrize("table", [*MADE, *PRINTED])
def test_one_way_is_least_squares_by_hand(table):
    y, constant = table.ravel(), np.ones((table.size, 1))
    for effect, design in zip(two_factors(table).alone, indicators(table), strict=True):
        less, more = residual_square(constant, y), residual_square(design, y)
        free = table.size - np.linalg.matrix_rank(design)
        expected = (less - more) / effect.df / (more / free)
        assert effect.f == pytest.approx(expected, rel=1e-9)
        assert effect.share == pytest.approx(1 - more / less, rel=1e-9)


@pytest.mark.parametrize("table", [*MADE, *PRINTED])
def test_two_way_is_a_comparison_of_explicit_projections(table):
    """F of a factor: what its projection takes from the residual of the other, over the rest."""
    y = table.ravel()
    both = np.hstack(indicators(table))
    whole = both @ np.linalg.pinv(both)
    rest = y @ (np.eye(y.size) - whole) @ y
    df_rest = y.size - np.linalg.matrix_rank(both)
    for effect, other in zip(two_factors(table).together, reversed(indicators(table)), strict=True):
        gained = whole - other @ np.linalg.pinv(other)
        df = np.linalg.matrix_rank(gained)
        assert (effect.df, effect.df_error) == (df, df_rest)
        assert effect.f == pytest.approx((y @ gained @ y / df) / (rest / df_rest), rel=1e-9)
        assert effect.p_value == pytest.approx(stats.f.sf(effect.f, df, df_rest), rel=1e-9)


def test_ranks_are_those_of_friedman():
    table = MADE[1]
    assert two_factors(table).ranks == pytest.approx(
        (stats.friedmanchisquare(*table).pvalue, stats.friedmanchisquare(*table.T).pvalue)
    )
    assert two_factors(MADE[3]).ranks is None


def test_turning_the_table_turns_the_factors():
    one, other = two_factors(MADE[0]), two_factors(MADE[0].T)
    assert one.together[0].f == pytest.approx(other.together[1].f)
    assert one.alone[1].share == pytest.approx(other.alone[0].share)


def test_a_shift_of_one_row_is_seen_in_the_rows_alone():
    before = two_factors(MADE[1])
    shifted = MADE[1] + 10 * (np.arange(5) == 2)[:, None]
    after = two_factors(shifted)
    assert after.together[1].f == pytest.approx(before.together[1].f)
    assert after.together[0].p_value < 1e-9 < before.together[0].p_value


@pytest.mark.slow
def test_noise_shows_no_factor():
    """Negative control: 5 % of tables of noise are below .05."""
    small = [two_factors(RANDOM.normal(size=(5, 8))).together[0].p_value < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(small) < 0.08


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((1, 4)), "a table of 1 x 4 cannot be analysed; give two rows"),
        (np.array([[1.0, np.nan], [2.0, 3.0]]), "all finite"),
        (np.arange(3.0)[:, None] + np.arange(4.0), "no error left over"),
    ],
)
def test_tables_without_an_answer_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        two_factors(table)


def found(size, *methods):
    (one,) = (a for a in analyse(TABLES.sizes, ()) if (a.table, a.methods) == (size, methods))
    return one.factors


@pytest.mark.parametrize("size", ["3B", "14B"])
def test_the_task_explains_the_loss_at_3_and_14_b(size):
    method, task = found(size, "LA", "TA", "TIES", "DARE", "SLERP").together
    assert task.p_value < 0.001
    assert method.p_value > 0.05


def test_at_7_b_the_failures_of_dare_make_the_method_the_stronger():
    for methods in (("LA", "TA", "TIES", "DARE", "SLERP"), ("LA", "TIES", "DARE")):
        factors = found("7B", *methods)
        for method, task in (factors.alone, factors.together):
            assert method.p_value < task.p_value
    for methods in (("LA", "TA", "TIES", "SLERP"), ("LA", "TIES")):
        method, task = found("7B", *methods).together
        assert task.p_value < 0.001
        assert method.p_value > 0.02


def test_three_methods_are_near_copies():
    for one in distances(TABLES.sizes):
        if {one.first, one.second} <= {"LA", "TA", "SLERP"}:
            assert one.largest < 4
        else:
            assert one.largest > 9
