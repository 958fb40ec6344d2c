"""The paper's own numbers: what is shipped, the test behind its p-values, and a misprint."""

import hashlib
from importlib import resources

import numpy as np
import pytest
from scipy import stats

from mergekit_collapse.study.misprint import find_misprint
from mergekit_collapse.study.paper_tables import GLUE_ROWS, read_paper_tables
from mergekit_collapse.study.printed_p import BEST, try_tests

DATA = resources.files("mergekit_collapse.data")
TABLES = read_paper_tables()
GROUPS = {group.name: group for group in TABLES.groups}
SIZES = {size.size: size for size in TABLES.sizes}
TRIED = {test.name: test for test in try_tests(TABLES.groups)}


def test_the_tables_are_the_documented_bytes():
    digest = hashlib.sha256((DATA / "paper_tables.json").read_bytes()).hexdigest()
    assert digest in (DATA / "README.md").read_text(encoding="utf-8")


def test_the_tables_name_their_source():
    assert TABLES.source.startswith(
        "arXiv 2603.09463v1, detail tables of section 3.4.4 and Table 2"
    )


def test_every_table_has_eight_tasks():
    assert [(g.name, g.loss.shape, g.mds.shape) for g in TABLES.groups] == [
        (name, (3, 8), (8,)) for name in ("GLUE", "a", "b", "c")
    ]
    assert [(s.size, s.loss.shape, s.finetuned.shape) for s in TABLES.sizes] == [
        (size, (5, 8), (8,)) for size in ("3B", "7B", "14B")
    ]
    assert GROUPS["GLUE"].tasks == tuple(GLUE_ROWS) == SIZES["3B"].tasks
    assert GROUPS["b"].tasks[GROUPS["b"].hardest] == "task 6"


def test_leaving_methods_out_keeps_the_rows_of_the_others():
    rest = SIZES["7B"].without("DARE", "TA")
    assert rest.methods == ("LA", "TIES", "SLERP")
    np.testing.assert_array_equal(rest.loss, SIZES["7B"].loss[[0, 2, 4]])


@pytest.mark.parametrize(
    ("group", "p"), [("GLUE", 0.00326), ("a", 0.00125), ("b", 0.02871), ("c", 0.00575)]
)
def test_the_printed_p_value_follows_from_the_printed_table(group, p):
    found = stats.pearsonr(GROUPS[group].mds, GROUPS[group].best).pvalue
    assert round(found, 5) == p
    assert TRIED[BEST].p[list(GROUPS).index(group)].value == pytest.approx(found, rel=1e-9)


def test_only_the_best_loss_gives_all_four_printed_p_values():
    """The others are the negative control: rounding cannot save them."""
    assert [name for name, test in TRIED.items() if all(test.reaches)] == [BEST]


@pytest.mark.parametrize(("group", "p"), [("a", 0.23), ("b", 0.72), ("c", 0.48)])
def test_without_the_hardest_task_three_groups_show_nothing(group, p):
    """One task carries each of them: a warning about how far the score may be trusted."""
    table = GROUPS[group]
    rest = np.arange(8) != table.hardest
    assert stats.pearsonr(table.mds[rest], table.best[rest]).pvalue == pytest.approx(p, abs=5e-3)


def test_harder_tasks_lose_more_in_every_group():
    for group in TABLES.groups:
        assert np.corrcoef(group.mds, group.best)[0, 1] < -0.5


def test_the_printed_row_of_ties_ends_in_the_losses_of_dare():
    found = find_misprint(GROUPS["GLUE"], SIZES["3B"])
    assert found.cells == 24
    assert [(d.method, d.task, d.in_group, d.in_sizes, d.same_as) for d in found.disagreements] == [
        ("TIES", "RTE", -10.4, -2.8, ("DARE",)),
        ("TIES", "SST-2", -22.7, -3.7, ("DARE",)),
        ("TIES", "WNLI", -30.8, -36.5, ("DARE",)),
    ]
    assert round(found.p_corrected, 5) == 0.00087


def test_a_corrected_group_has_no_misprint():
    corrected = find_misprint(GROUPS["GLUE"], SIZES["3B"]).corrected
    again = find_misprint(corrected, SIZES["3B"])
    assert again.disagreements == ()
    assert again.p_printed_row == again.p_corrected
