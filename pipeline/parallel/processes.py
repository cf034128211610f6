"""Work on shards in several processes: of this machine, or of a Dask cluster.

If a process is killed, only the shard that it was working on is attempted again.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Literal, TypeVar

from tqdm import tqdm

from pipeline.core.settings import cores
from pipeline.parallel import dask

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
ATTEMPTS = 3  # at a job whose process was killed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_ARRAY_BYTES = 1 << 25  # the most that glibc takes
KEPT_BYTES = 1 << 27


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; re-allocating it costs a third of each clip's time.

    It has no effect with another C library.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_ARRAY_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def map_shards(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | Literal["dask"],
    description: str,
    scheduler: str = "",
) -> list[Result]:
    """Return `function(job)` for each job, in their order, computed by `workers` processes.

    Processes are spawned, so `function` must be at the top level of a module and the jobs must be
    picklable; `str(job)` names a job in messages. With one worker, this process does the work; 0 is
    one worker per core, "dask" the processes of a Dask cluster.

    Args:
        scheduler: address of the cluster's; empty: a cluster on this machine, a worker per core.

    Raises:
        RuntimeError: a job's process was killed three times, usually for lack of memory; or the
            Dask cluster cannot be used.
    """
    with tqdm(total=len(jobs), unit="shard", desc=description, disable=None) as bar:
        if isinstance(workers, str):
            return dask.map_jobs(function, jobs, scheduler, cores(), ATTEMPTS, bar)
        processes = min(workers or cores(), len(jobs))
        if processes <= 1:
            return [_counted(bar, function(job)) for job in jobs]
        return _in_processes(function, jobs, processes, bar)


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, bar: tqdm
) -> list[Result]:
    """Use pools of one process each, so that a killed process is known by its job."""
    idle = [_start() for _ in range(workers)]
    busy: dict[Future[Result], tuple[int, ProcessPoolExecutor]] = {}
    waiting = deque(range(len(jobs)))
    killed: Counter[int] = Counter()
    results: dict[int, Result] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                number, executor = waiting.popleft(), idle.pop()
                busy[executor.submit(function, jobs[number])] = number, executor
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                number, executor = busy.pop(future)
                try:
                    results[number] = _counted(bar, future.result())
                except BrokenProcessPool:
                    killed[number] += 1
                    _check_killed(jobs[number], killed[number], workers)
                    executor.shutdown()
                    executor = _start()
                    waiting.appendleft(number)
                idle.append(executor)
    except BaseException:  # an interrupt or error: the other processes' work is lost anyway
        _end([*idle, *(executor for _, executor in busy.values())])
        raise
    for executor in idle:
        executor.shutdown()
    return [results[number] for number in range(len(jobs))]


def _start() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_follow_the_parent)


def _end(executors: Sequence[ProcessPoolExecutor]) -> None:
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)
    processes = multiprocessing.active_children()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    for executor in executors:
        executor.shutdown()


def _check_killed(job: object, times: int, workers: int) -> None:
    if times >= ATTEMPTS:
        raise RuntimeError(
            f"The process that worked on {job} was killed {times} times, usually for lack of "
            f"memory. Give compute.workers in params.yaml fewer than {workers} processes, or lower "
            "download.clips_per_shard. What is finished is kept: the next run continues from there."
        )
    logger.warning("The process that worked on %s was killed; it is attempted again.", job)


def _follow_the_parent() -> None:
    """Leave interrupts to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        raise AssertionError("a worker has a parent")
    parent.join()
    os._exit(1)  # at once, whatever the worker is doing


def _counted(bar: tqdm, result: Result) -> Result:
    bar.update()
    return result
