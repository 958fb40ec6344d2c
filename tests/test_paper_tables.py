"""The paper's own numbers: the four p-values follow from its printed tables."""

import json
from importlib import resources

import numpy as np
import pytest
from scipy.stats import pearsonr

TABLES = json.loads(
    resources.files("mergekit_collapse.data").joinpath("paper_tables.json").read_text("utf-8")
)["groups"]


def p_value(table, keep=slice(None)):
    """Two-sided Pearson of MDS with the best loss of the three methods, task by task."""
    best = np.max([table["LA"], table["TA"], table["TIES"]], axis=0)
    return pearsonr(np.array(table["MDS"])[keep], best[keep]).pvalue


@pytest.mark.parametrize("group", list(TABLES))
def test_the_printed_p_value_follows_from_the_printed_table(group):
    assert p_value(TABLES[group]) == pytest.approx(TABLES[group]["p_value"], abs=2e-4)


@pytest.mark.parametrize(("group", "p"), [("a", 0.23), ("b", 0.72), ("c", 0.48)])
def test_without_the_hardest_task_three_groups_show_nothing(group, p):
    """One task carries each of them: a warning about how far the score may be trusted."""
    table = TABLES[group]
    others = np.arange(8) != np.argmax(table["MDS"])
    assert p_value(table, others) == pytest.approx(p, abs=5e-3)


def test_harder_tasks_lose_more_in_every_group():
    for table in TABLES.values():
        best = np.max([table["LA"], table["TA"], table["TIES"]], axis=0)
        assert np.corrcoef(table["MDS"], best)[0, 1] < -0.5
