"""Shards on a Dask cluster: real schedulers and workers, killed workers, the same bytes."""

import re
import sys
from pathlib import Path

import dask
import distributed
import pytest
import test_data_stages
from dask_jobs import logmel_and_die_once, resample_and_die_once, square
from stage_runs import change_params, run_stages
from test_data_stages import content_of_all, forget

import stages.logmel
import stages.resample
from pipeline.parallel import dask as pipeline_dask
from pipeline.parallel import processes
from pipeline.parallel.processes import map_shards

_source = test_data_stages._source  # a fixture that every test uses


@pytest.fixture(scope="module")
def scheduler():
    """Address of a scheduler with two worker processes."""
    slow = {"distributed.deploy.lost-worker-timeout": "1 day"}  # else the killed one may not return
    with (
        dask.config.set(slow),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as running,
    ):
        yield running.scheduler_address


def test_both_stages_give_the_same_bytes_also_when_a_worker_is_killed(scheduler, monkeypatch):
    run_stages("download", "resample", "logmel")
    alone = content_of_all()
    forget("logmel", "resample")
    change_params({"compute": {"workers": "dask", "scheduler": scheduler}})
    monkeypatch.setattr(stages.resample, "resample_shard", resample_and_die_once)
    monkeypatch.setattr(stages.logmel, "logmel_shard", logmel_and_die_once)
    for name in ("resample", "logmel"):
        run_stages(name)
        assert Path(f".work/{name}/killed").exists()
    assert content_of_all() == alone


def test_results_are_in_the_order_of_the_jobs_however_many_there_are(scheduler):
    jobs = [*range(13), *range(14, 40)]
    assert map_shards(square, jobs, "dask", "demo", scheduler) == [job * job for job in jobs]
    assert map_shards(square, [], "dask", "demo", scheduler) == []


def test_a_cluster_of_this_machine_needs_no_address_and_names_a_job_that_kills(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 1)
    with pytest.raises(RuntimeError, match=r"on 13 was killed 3 times, usually for lack of mem"):
        map_shards(square, [1, 13, 2], "dask", "demo")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match=re.escape("pip install distributed")):
        map_shards(square, [1], "dask", "demo")


def test_a_scheduler_that_does_not_answer_is_named_with_its_parameter():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.1s"}),
        pytest.raises(
            RuntimeError, match=r"at tcp://127\.0\.0\.1:9 \(compute\.scheduler\): Timed out"
        ),
    ):
        map_shards(square, [1], "dask", "demo", "tcp://127.0.0.1:9")


def test_a_scheduler_without_workers_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(pipeline_dask, "WAIT_S", 0.1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(RuntimeError, match=r"has had no worker .*dask worker tcp://"),
    ):
        map_shards(square, [1], "dask", "demo", empty.scheduler_address)
