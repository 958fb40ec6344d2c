"""Candidates run on a real Ray cluster on this machine: the same numbers, and workers lost."""

import os
import signal
import sys
import uuid

import pytest
import yaml
from mergekit.options import MergeOptions
from test_devices import assert_same, pool, probes, states_of

from mergekit_collapse.caches import open_caches
from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.pool.selection import select
from mergekit_collapse.recipe.schema import CacheBlock
from mergekit_collapse.states import hidden_states, on_ray
from mergekit_collapse.states.on_ray import OnRay, _resources, require_ray
from mergekit_collapse.states.parts import run_part
from mergekit_collapse.states.run_models import run_models
from mergekit_collapse.states.state_store import NO_STORE

__all__ = ["pool", "probes"]


@pytest.fixture(scope="module")
def cluster():
    """Begun once: that takes longer than any test of it."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled")):
            patch.setenv(name, value)
        import ray

        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_every_number_is_that_of_this_process(cluster, pool, probes):
    assert_same(states_of(pool, probes, OnRay("", NO_STORE)), states_of(pool, probes, run_models))
    assert cluster.is_initialized()


@pytest.mark.slow
def test_an_error_comes_back_as_itself_and_is_not_tried_again(cluster, pool, probes, tmp_path):
    def fails(part, work):
        (tmp_path / uuid.uuid4().hex).touch()
        raise EvaluationError("m0: the states are NaN")

    with pytest.raises(EvaluationError) as error:
        states_of(pool[:1], probes, OnRay("", NO_STORE, fails))
    assert type(error.value) is EvaluationError
    assert str(error.value) == "m0: the states are NaN"
    assert len(list(tmp_path.iterdir())) == 1

    def wrong(part, work):
        raise KeyError("nothing")

    with pytest.raises(EvaluationError, match=r"m0: a Ray worker failed: 'nothing'; .* every node"):
        states_of(pool[:1], probes, OnRay("", NO_STORE, wrong))


@pytest.mark.slow
def test_what_is_in_the_cache_goes_to_no_worker(cluster, pool, probes):
    store = open_caches(CacheBlock()).states
    due = states_of(pool[:2], probes, OnRay("", store), store=store)
    assert due.cached == ()

    def only_the_last(part, work):
        assert [one.name for one in part.models] == ["m2"]
        return run_part(part, work)

    models = [*pool[:2], pool[-1]]
    found = states_of(models, probes, OnRay("", store, only_the_last), store=store)
    assert found.cached == ("m0", "m1")

    def nothing(part, work):
        raise AssertionError(part.names)

    again = states_of(models, probes, OnRay("", store, nothing), store=store)
    assert again.engine == hidden_states.CACHE
    for one, other in zip(again.hidden.values, found.hidden.values, strict=True):
        assert (one == other).all()


@pytest.mark.slow
def test_a_worker_uses_its_own_cache(cluster, pool, probes, own_cache):
    """The driver was killed before it had the result: the worker's is found by the next."""
    store = open_caches(CacheBlock()).states
    own_cache.mkdir(parents=True)
    states_of(pool[:2], probes, OnRay("", store))

    def runs_nothing(part, work):
        from mergekit_collapse.states import parts

        def run_models(work):
            assert not work.models
            return {}

        run, parts.run_models = parts.run_models, run_models
        try:
            return run_part(part, work)
        finally:
            parts.run_models = run

    states_of(pool[:2], probes, OnRay("", store, runs_nothing))


@pytest.mark.slow
def test_a_pool_is_chosen_from_as_without_ray(cluster, pool, tmp_path):
    path = tmp_path / "pool.yml"
    compat = {"probes": {"samples": 4, "max_tokens": 16}, "cache": False}
    candidates = [str(model) for model in pool[1:4]]
    path.write_text(
        yaml.safe_dump({"candidates": candidates, "dtype": "float32", "compat": compat}),
        encoding="utf-8",
    )
    options = MergeOptions(quiet=True)
    due, found = select(path, options, count=2), select(path, options, count=2, ray="")
    assert found.recipe.names == due.recipe.names
    assert (found.states.squared == due.states.squared).all()


@pytest.mark.slow
def test_a_killed_worker_is_replaced(cluster, pool, probes, tmp_path):
    mark = tmp_path / "killed"

    def killed_once(part, work):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return run_part(part, work)
        os.kill(os.getpid(), signal.SIGKILL)

    models = pool[:3]
    found = states_of(models, probes, OnRay("", NO_STORE, killed_once))
    assert mark.exists()
    assert_same(found, states_of(models, probes, run_models))


@pytest.mark.slow
def test_a_worker_that_is_lost_every_time_is_told(cluster, pool, probes, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_RETRIES", 1)

    def killed(part, work):
        os.close(os.open(tmp_path / str(os.getpid()), os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(EvaluationError, match=r"m0: the Ray worker was lost 2 times .*memory"):
        states_of(pool[:1], probes, OnRay("", NO_STORE, killed))
    assert len(list(tmp_path.iterdir())) == 2


class Nodes:
    """What ``_resources`` asks of Ray."""

    def __init__(self, *resources):
        self._resources = resources

    def nodes(self):
        return [{"Alive": True, "Resources": found} for found in self._resources]


def test_tasks_take_what_a_node_can_give():
    """Ray would wait forever for a node with more processors, or for a GPU."""
    nodes = Nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, {})
    assert _resources(nodes, 4, False) == ({"num_cpus": 4}, 3)
    assert _resources(nodes, 16, False) == ({"num_cpus": 8}, 1)
    assert _resources(nodes, 4, True) == ({"num_gpus": 1, "num_cpus": 0}, 2)
    with pytest.raises(EvaluationError, match="no node of the Ray cluster has a GPU"):
        _resources(Nodes({"CPU": 4.0}), 4, True)


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidRecipeError, match=r"pip install 'mergekit-collapse\[ray\]'"):
        require_ray()
    # Said before the pool is read.
    with pytest.raises(InvalidRecipeError, match="--ray: ray is not installed"):
        select(tmp_path / "pool.yml", MergeOptions(), ray="")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch, address):
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    told = rf"--ray {address}: no cluster: .*; name the address of one .* `ray start --head`"
    with pytest.raises(InvalidRecipeError, match=told), on_ray._cluster(address):
        pass
