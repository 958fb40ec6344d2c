"""Stopping early: the jackknife, the spending of errors, and how often a stop is wrong."""

import numpy as np
import pytest
from scipy import stats

from mergekit_collapse.geometry.chance_distances import chance_distances
from mergekit_collapse.geometry.distances import probe_distances
from mergekit_collapse.geometry.jackknife import Jackknifed, jackknife, leave_one_out_weights
from mergekit_collapse.geometry.probe_parts import single_parts
from mergekit_collapse.geometry.resampling import interval, resample_weights, resampled_squared
from mergekit_collapse.geometry.rows import select_probes
from mergekit_collapse.geometry.scales import layer_scales
from mergekit_collapse.geometry.sequential import LEVEL, Held, clear_side, spending
from mergekit_collapse.probes.rounds import SIZES
from mergekit_collapse.recipe.limits import BudgetBlock
from mergekit_collapse.states.states import SpaceStates
from mergekit_collapse.stopping import deciding_quantities, outcome

LIMIT = 0.15
LOOKS = SIZES[:-1]
FEATURES = 16


def one_task(probes):
    return np.zeros(probes, dtype=np.int64)


def held(value, error, *, limit=1.0, skewness=0.0, freedom=7.0, corrected=None):
    arrays = [np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (value, error)]
    count = len(arrays[0])
    middle = arrays[0] if corrected is None else np.full(count, corrected)
    spread = np.broadcast_to(arrays[1], (count,))
    found = Jackknifed(arrays[0], middle, spread, np.full(count, freedom), np.full(count, skewness))
    return Held(found, limit)


def test_the_jackknife_of_a_mean_is_its_classical_error():
    values = np.random.default_rng(0).gamma(2.0, size=12)
    weights = leave_one_out_weights(one_task(12), single_parts(12))
    found = jackknife(weights @ values[:, None], one_task(12))
    assert found.value == pytest.approx(values.mean())
    assert found.corrected == pytest.approx(values.mean())
    assert found.error == pytest.approx(stats.sem(values))
    assert found.freedom == pytest.approx(11)
    assert found.skewness == pytest.approx(stats.skew(values) / np.sqrt(12) * (11 / 12) ** 1.5)


def test_the_jackknife_corrects_the_bias_of_a_variance():
    values = np.random.default_rng(1).normal(size=9)
    weights = leave_one_out_weights(one_task(9), single_parts(9))
    mean = weights @ values
    biased = weights @ values**2 - mean**2
    found = jackknife(biased[:, None], one_task(9))
    assert found.value == pytest.approx(values.var())
    assert found.corrected == pytest.approx(values.var(ddof=1))


def test_tasks_are_strata_and_one_probe_tells_no_error():
    tasks = np.array([0] * 6 + [1] * 3 + [2])
    values = np.random.default_rng(2).normal(size=10) + 5 * tasks
    weights = leave_one_out_weights(tasks, single_parts(10))
    assert weights.sum(axis=1) == pytest.approx(np.ones(10))
    assert len(weights) == 10
    found = jackknife(weights @ values[:, None], tasks)
    parts = [(values[tasks == k], (tasks == k).mean()) for k in (0, 1)]
    assert found.error == pytest.approx(
        np.sqrt(sum(share**2 * stats.sem(own) ** 2 for own, share in parts))
    )
    assert 2 < found.freedom < 7


def test_parts_are_left_out_whole():
    parts = np.array([0, 0, 1, 1, 2, 2])
    weights = leave_one_out_weights(one_task(6), parts)
    assert weights[0].tolist() == pytest.approx([0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4])
    assert weights.shape == (4, 6)


def test_spending_adds_up_and_follows_the_probes():
    assert spending([8, 16, 32, 64]) == pytest.approx((0.00625, 0.00625, 0.0125, 0.025))
    assert sum(spending([5, 11, 40])) == pytest.approx(LEVEL)
    assert spending([7]) == (LEVEL,)


def test_all_must_be_below_and_one_is_enough_above():
    assert clear_side([held([0.2, 0.3], 0.01)], 0.01) == "below"
    assert clear_side([held([0.2, 0.95], [0.01, 0.2])], 0.01) is None
    assert clear_side([held([0.2, 2.0], 0.01)], 0.01) == "above"
    assert clear_side([held(0.2, 0.01), held(2.0, 0.01)], 0.01) == "above"
    assert clear_side([held(0.2, 0.01), held(0.9, 0.1)], 0.01) is None
    assert clear_side([], 0.01) is None


def test_what_equals_its_limit_for_certain_is_below_it():
    assert clear_side([held(1.0, 0.0)], 0.01) == "below"
    assert clear_side([held(0.0, 0.0, limit=0.0)], 0.01) == "below"
    assert clear_side([held(1e-9, 0.0, limit=0.0)], 0.01) == "above"


@pytest.mark.parametrize("odd", [{"value": np.nan, "error": 0.1}, {"value": 0.1, "error": np.nan}])
def test_what_is_no_number_is_clear_on_neither_side(odd):
    assert clear_side([held(**odd)], 0.05) is None
    assert clear_side([held(**{**odd, "value": 10 * odd["value"]})], 0.05) is None
    assert clear_side([held(0.5, 0.0, freedom=0.0)], 0.05) is None
    assert clear_side([held(np.inf, np.nan)], 0.05) is None
    if np.isnan(odd["value"]):
        assert outcome([held(**odd)], 0.05, refusing=True) == "undefined"


def test_skewness_and_bias_widen_and_never_narrow():
    near = {"value": 0.7, "error": 0.05}
    assert clear_side([held(**near)], 0.02) == "below"
    assert clear_side([held(**near, skewness=1.5)], 0.02) is None
    assert clear_side([held(**near, skewness=-1.5)], 0.02) == "below"
    assert clear_side([held(**near, corrected=0.9)], 0.02) is None
    far = {"value": 1.2, "error": 0.05}
    assert clear_side([held(**far)], 0.02) == "above"
    assert clear_side([held(**far, skewness=-1.5)], 0.02) is None
    assert clear_side([held(**far, skewness=1.5)], 0.02) == "above"
    assert clear_side([held(**far, corrected=1.05)], 0.02) is None


def test_many_quantities_share_the_error_of_a_refusal_alone():
    above = [1.16] + [0.5] * 30
    assert clear_side([held(above[:1], 0.05)], 0.02) == "above"
    assert clear_side([held(above, 0.05)], 0.02) is None
    assert clear_side([held([0.8] * 31, 0.03)], 0.02) == clear_side([held(0.8, 0.03)], 0.02)


def test_a_recipe_that_is_to_be_repaired_is_not_stopped_above():
    over = [held(5.0, 0.01)]
    assert outcome(over, 0.01, refusing=True) == "above"
    assert outcome(over, 0.01, refusing=False) is None
    assert outcome([held(0.1, 0.01)], 0.01, refusing=False) == "below"


# Experts that are one random vector a probe with independent noise of variance v on each, the
# probe's own v being log-normal: D² = 2v/(1 + v), r² = D² (N − 1)/(2N).


def clouds(seed, experts, probes, radius_squared, tail):
    rng = np.random.default_rng(seed)
    share = radius_squared * experts / (experts - 1)
    sizes = np.exp(tail * rng.normal(size=probes) - tail**2 / 2) * share / (1 - share)
    common = rng.normal(size=(probes, FEATURES))
    noise = rng.normal(size=(experts, probes, FEATURES))
    return common + np.sqrt(sizes)[None, :, None] * noise


def space(states):
    probes = np.arange(states.shape[1], dtype=np.int64)
    return SpaceStates("hidden", "mean", (1,), (states.astype(np.float32),), probes)


def first_look(states, budget, tasks=1, alpha=None, owners=None):
    """Where our rule stops, and on which side; after all probes on none."""
    levels = spending([tasks * size for size in LOOKS])
    for size, level in zip(LOOKS, levels, strict=True):
        count = tasks * size
        named = [(f"task{k}", None if owners is None else owners[k]) for k in range(tasks)]
        found = deciding_quantities(
            space(states[:, :count]),
            len(states),
            np.arange(count, dtype=np.int64) % tasks,
            named,
            scale="variance",
            coefficients=alpha,
            budget=budget,
            seed=0,
        )
        side = clear_side(found, level)
        if side is not None:
            return size, side
    return SIZES[-1], None


def naive_look(states):
    """The same with the 95 % bootstrap interval at every look, for two experts (r² = Δ²/4)."""
    for size in LOOKS:
        task = one_task(size)
        rows = select_probes(space(states[:, :size]), np.arange(size))
        weights = resample_weights(task, 0, 200)
        scales = layer_scales(rows, range(2), "variance", weights, "all probes")
        distances = probe_distances(rows, [s.squared for s in scales])
        drawn = resampled_squared(distances, scales, weights)[:, 0, 1] / 4
        found = interval(drawn, float(distances.mean_squared[0, 1]) / 4)
        if found.high <= LIMIT:
            return size, "below"
        if found.low > LIMIT:
            return size, "above"
    return SIZES[-1], None


def outcomes(look, ratio, *, runs, experts=2, tail=1.0, tasks=1, **keys):
    probes = tasks * SIZES[-1]
    return [
        look(clouds(seed, experts, probes, ratio * LIMIT, tail), **keys) for seed in range(runs)
    ]


def rate(found, side):
    return sum(side == one for _, one in found) / len(found)


def not_over(found, side):
    """The rate of wrong stops, at most its level plus what chance makes of so many runs."""
    return rate(found, side) <= stats.binom.ppf(0.995, len(found), LEVEL) / len(found)


BALL = BudgetBlock(distortion=LIMIT, mds=None)
# Equal weights are the centre of the ball of experts that are all alike, so that each predicted
# distortion is r²; they are quicker to compute on every sample.
WEIGHTS = BudgetBlock(distortion=LIMIT, mds=None, rule="weights")


def weighted(ratio, *, runs, experts=2, **keys):
    alpha = np.full(experts, 1 / experts)
    return outcomes(
        first_look, ratio, runs=runs, experts=experts, budget=WEIGHTS, alpha=alpha, **keys
    )


@pytest.mark.slow
@pytest.mark.parametrize("tail", [0.0, 0.5, 1.0])
def test_few_stops_are_on_the_wrong_side(tail):
    assert not_over(weighted(1.001, runs=200, tail=tail), "below")
    assert not_over(weighted(1.0, runs=200, tail=tail), "above")


@pytest.mark.slow
def test_few_stops_are_wrong_of_the_ball_and_where_there_are_several_tasks():
    found = outcomes(first_look, 1.001, runs=60, experts=3, tasks=2, tail=0.5, budget=BALL)
    assert not_over(found, "below")
    found = outcomes(first_look, 1.0, runs=60, experts=3, tasks=2, tail=0.5, budget=BALL)
    assert not_over(found, "above")


@pytest.mark.slow
def test_the_naive_rule_is_wrong_more_often_than_it_says():
    naive = outcomes(naive_look, 1.001, runs=200)
    assert not not_over(naive, "below")
    assert rate(weighted(1.001, runs=200), "below") < rate(naive, "below") / 2


@pytest.mark.slow
def test_far_values_stop_at_once_and_close_ones_run_to_the_end():
    for ratio, side in ((0.2, "below"), (2.8, "above")):
        found = weighted(ratio, runs=100, tail=0.5)
        assert rate(found, side) == 1
        assert np.mean([size <= 16 for size, _ in found]) > 0.95
    for ratio in (0.97, 1.0, 1.03):
        found = weighted(ratio, runs=60, tail=0.5)
        assert np.mean([size == SIZES[-1] for size, _ in found]) > 0.85


def population_difficulty(states):
    """The dissimilarity 1 − 1/MDS of each expert, on very many probes."""
    count = states.shape[1]
    rows = select_probes(space(states), np.arange(count))
    apart = probe_distances(rows, [1.0]).mean_distance
    chance = chance_distances(rows, len(states), [1.0], 0).distance.mean(axis=0)
    share = apart / chance
    return (share.sum(axis=1) - np.diag(share)) / (len(states) - 1)


@pytest.mark.slow
def test_difficulty_scores_are_held_against_their_limit_in_the_same_way():
    large = population_difficulty(clouds(0, 3, 20_000, 0.2, 0.5)).mean()
    # Just under what the experts have, all alike; and far from it.
    close = BudgetBlock(distortion=None, mds=1 / (1 - 0.998 * large))
    found = outcomes(first_look, 0.2 / LIMIT, runs=100, experts=3, tail=0.5, budget=close)
    assert not_over(found, "below")
    close = BudgetBlock(distortion=None, mds=1 / (1 - 1.002 * large))
    found = outcomes(first_look, 0.2 / LIMIT, runs=100, experts=3, tail=0.5, budget=close)
    assert not_over(found, "above")
    for share, side in ((0.6, "above"), (1.6, "below")):
        far = BudgetBlock(distortion=None, mds=1 / (1 - share * large))
        found = outcomes(first_look, 0.2 / LIMIT, runs=30, experts=3, tail=0.5, budget=far)
        assert {one for _, one in found} == {side}
        assert max(size for size, _ in found) <= 16


@pytest.mark.parametrize(
    ("keys", "alpha", "owners"),
    [
        ({"rule": "ball"}, None, None),
        ({"rule": "corollary"}, None, None),
        ({"rule": "weights"}, (0.4, 0.3, 0.3), None),
        ({"rule": "ball", "over": "own_task"}, None, (0, 1, 2)),
        ({"rule": "weights", "over": "own_task"}, (0.4, 0.3, 0.3), (0, 1, 2)),
    ],
)
def test_every_reading_stops_on_the_side_of_its_verdict(keys, alpha, owners):
    alpha = None if alpha is None else np.array(alpha)
    for limit, side in ((20.0, "below"), (0.001, "above")):
        budget = BudgetBlock(distortion=limit, mds=None, **keys)
        states = clouds(0, 3, 3 * SIZES[-1], 0.1, 0.5)
        assert first_look(states, budget, 3, alpha, owners) == (8, side)


def test_readings_that_the_recipe_leaves_undefined_are_said_to_be():
    states, two = clouds(0, 3, 48, 0.1, 0.5), clouds(0, 2, 48, 0.1, 0.5)
    task = one_task(48)

    def found(states, **keys):
        return deciding_quantities(
            space(states),
            len(states),
            task,
            [("task", 0)],
            scale="variance",
            coefficients=None,
            budget=BudgetBlock(**keys),
            seed=0,
        )

    for clouded, keys in (
        (states, {"rule": "weights", "mds": None}),
        (states, {"over": "own_task", "mds": None}),
        (two, {"distortion": None, "mds": 3.0, "similarity": "group_minmax"}),
    ):
        assert outcome(found(clouded, **keys), 0.05, refusing=True) == "undefined"
