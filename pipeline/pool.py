"""Work on shards in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_shards(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, description: str
) -> list[Result]:
    """Return `function(job)` for each job, in their order, computed by `workers` processes.

    The processes are started afresh (spawn), so `function` must be at the top level of a module and
    the jobs must be picklable. One worker works in this process; 0 means one worker per core.

    Raises:
        RuntimeError: a process was killed, most often for lack of memory.
    """
    workers = min(workers or cores(), len(jobs))
    with tqdm(total=len(jobs), unit="shard", desc=description, disable=None) as bar:
        if workers <= 1:
            return [_counted(bar, function(job)) for job in jobs]
        try:
            return _in_processes(function, jobs, workers, bar)
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"A process of {description} was killed, most often for lack of memory. Give "
                f"compute.workers in params.yaml fewer than {workers} processes."
            ) from error


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, bar: tqdm
) -> list[Result]:
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_follow_the_parent)
    try:
        futures = [executor.submit(function, job) for job in jobs]
        return [_counted(bar, future.result()) for future in futures]
    except BaseException:  # an interrupt or error: what the other processes do is of no use
        executor.shutdown(wait=False, cancel_futures=True)
        processes = multiprocessing.active_children()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        raise
    finally:
        executor.shutdown()


def _follow_the_parent() -> None:
    """Leave interrupts to the parent, but end when it was killed."""
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
