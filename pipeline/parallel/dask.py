"""Work on the processes of a Dask cluster, on this machine or others.

All machines must see the repository under the same path, on a shared file system. Scheduler and
workers must be able to import `pipeline`; started in the repository by `python -m dask` they are,
by `dask` they are not. Jobs are handed out as workers become free, so that nobody holds more than a
few. The job of a worker that dies is attempted again.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")
WAIT_S = 60  # for the first worker
AHEAD = 2  # jobs under way for each thread of the workers


def map_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    scheduler: str,
    workers: int,
    attempts: int,
    bar: tqdm,
) -> list[Result]:
    """Return `function(job)` for each job, in their order.

    Args:
        scheduler: its address; empty: start `workers` processes on this machine.
        attempts: at a job whose worker is killed. A scheduler at an address has its own setting
            (`distributed.scheduler.allowed-failures`, 3 more than the first by default).

    Raises:
        RuntimeError: Dask is not installed, the scheduler does not answer, the cluster has no
            workers or was lost, or a job has killed as many workers as are allowed.
    """
    try:
        import distributed
    except ImportError:
        raise RuntimeError(
            "compute.workers = dask needs the package distributed, which is not installed. Run "
            "`pip install distributed`, or set compute.workers to a number."
        ) from None
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with (
        _explained_errors(distributed, scheduler, jobs),
        _client(distributed, scheduler, workers, attempts) as client,
    ):
        return _map(distributed, client, function, jobs, bar)


@contextmanager
def _explained_errors(distributed: Any, scheduler: str, jobs: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    except distributed.KilledWorker as error:
        raise RuntimeError(
            f"The worker that worked on {jobs[int(str(error.task).rpartition('-')[2])]} was killed "
            f"{error.allowed_failures + 1} times, usually for lack of memory. Give the workers "
            "more memory, or lower download.clips_per_shard. What is finished is kept: the next "
            "run continues from there."
        ) from None
    except (ModuleNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "deserialization" not in str(error):
            raise
        raise RuntimeError(
            "The Dask scheduler or a worker cannot import `pipeline`. Start all of them in this "
            "folder, with `python -m dask`, not `dask`."
        ) from error
    except CancelledError as error:
        raise RuntimeError(
            f"The Dask cluster {scheduler or 'on this machine'} was lost ({error}). What is "
            "finished is kept: run the stage again when it is back."
        ) from error


@contextmanager
def _client(distributed: Any, scheduler: str, workers: int, attempts: int) -> Iterator[Any]:
    if scheduler:
        try:
            connected = distributed.Client(scheduler)
        except OSError as error:
            raise RuntimeError(
                f"No Dask scheduler answers at {scheduler} (compute.scheduler): {error}. Start one "
                "in this folder with `python -m dask scheduler`, correct the address in "
                "params.yaml, or empty it for a cluster on this machine."
            ) from error
        with connected as client:
            try:
                client.wait_for_workers(1, timeout=WAIT_S)
            except TimeoutError:
                raise RuntimeError(
                    f"The Dask scheduler {scheduler} (compute.scheduler) has had no worker for "
                    f"{WAIT_S} s. Start one in this folder: python -m dask worker {scheduler}"
                ) from None
            yield client
        return
    import dask

    settings = {
        "distributed.scheduler.allowed-failures": attempts - 1,
        "distributed.scheduler.worker-saturation": 1.0,  # a worker has the job it works on, no more
        "distributed.deploy.lost-worker-timeout": "1 day",  # else one that restarts slowly is ended
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # none: Dask cannot know what a shard needs
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _map(
    distributed: Any,
    client: Any,
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    bar: tqdm,
) -> list[Result]:
    call = f"shards-{uuid4().hex}"  # a scheduler may serve several
    results: dict[int, Result] = {}
    waiting = iter(range(len(jobs)))
    numbers: dict[Any, int] = {}  # future -> job
    done = distributed.as_completed()

    def hand_out() -> None:
        ahead = AHEAD * max(sum(client.nthreads().values()), 1)
        while len(numbers) < ahead and (number := next(waiting, None)) is not None:
            future = client.submit(function, jobs[number], key=f"{call}-{number}", pure=False)
            numbers[future] = number
            done.add(future)

    hand_out()
    for future in done:
        results[numbers.pop(future)] = future.result()
        bar.update()
        hand_out()
    return [results[number] for number in range(len(jobs))]
