"""Processes over shards: order, errors, killed workers."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.pool import cores, map_shards


def square_slowly_at_first(job):
    time.sleep(0.05 if job == 0 else 0)
    return job * job, os.getpid()


def fail_on_two(job):
    if job == 2:
        raise ValueError("shard 2 is broken")
    time.sleep(0.01)


def report_and_hang(job):
    os.write(1, f"{job} is under way\n".encode())  # at once: two processes write here
    time.sleep(60)


def die(job):
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_the_order_of_the_jobs(workers):
    results = map_shards(square_slowly_at_first, range(6), workers, "demo")
    assert [result for result, _ in results] == [0, 1, 4, 9, 16, 25]


def test_one_worker_or_one_job_needs_no_process():
    for jobs, workers in ((range(3), 1), (range(1), 4)):
        results = map_shards(square_slowly_at_first, jobs, workers, "demo")
        assert {pid for _, pid in results} == {os.getpid()}


def test_no_jobs_have_no_results():
    assert map_shards(square_slowly_at_first, [], 0, "demo") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_comes_out(workers):
    with pytest.raises(ValueError, match="shard 2 is broken"):
        map_shards(fail_on_two, range(50), workers, "demo")


def test_a_killed_process_is_explained():
    with pytest.raises(RuntimeError, match=r"process of demo was killed.*compute\.workers"):
        map_shards(die, range(4), 2, "demo")


def test_workers_end_with_a_killed_parent():
    tests = Path(__file__).parent
    script = "import test_pool; test_pool.map_shards(test_pool.report_and_hang, range(2), 2, 'x')"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"if __name__ == '__main__': {script}"],
        env={**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    started = {parent.stdout.readline(), parent.stdout.readline()}
    parent.kill()
    try:
        rest, _ = parent.communicate(timeout=5)  # ends when no process holds its end of the pipe
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert started == {"0 is under way\n", "1 is under way\n"}
    assert rest == ""


def test_there_is_at_least_one_core():
    assert cores() >= 1
