"""Processes over shards: order, errors, killed workers."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.settings import cores
from pipeline.parallel.processes import map_shards


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


def die_on_two(job):
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_the_first_process_of_two(job):
    folder, number = job
    Path(folder, f"{number}-{os.getpid()}").touch()
    if number == 2 and len(list(Path(folder).glob("2-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


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


def test_a_job_whose_process_is_killed_is_done_again_and_the_others_once(tmp_path):
    jobs = [(str(tmp_path), number) for number in range(4)]
    assert map_shards(kill_the_first_process_of_two, jobs, 2, "demo") == [0, 1, 4, 9]
    starts = [len(list(tmp_path.glob(f"{number}-*"))) for number in range(4)]
    assert starts == [1, 1, 2, 1]


def test_a_job_that_kills_its_process_three_times_stops_the_work_and_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"on 2 was killed 3 times, .*memory.*fewer than 2 proc"):
        map_shards(die_on_two, range(3), 2, "demo")


def test_workers_end_with_a_killed_parent():
    tests = Path(__file__).parent
    script = "import test_processes as t; t.map_shards(t.report_and_hang, range(2), 2, 'x')"
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
