"""Jobs for the workers of a cluster, in a module of their own that is quick to import."""

import os
import signal
from typing import Any


def die_once(target: Any) -> None:
    """Leave half a shard and end as if for lack of memory, the first time."""
    marker = target.parents[1] / "killed"
    if not marker.exists():
        marker.touch()
        target.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def resample_and_die_once(job: Any, target: Any) -> Any:
    """Do the shard step of `resample`, but not at the first attempt."""
    from pipeline.corpus.resample import resample_shard

    die_once(target)
    return resample_shard(job, target)


def logmel_and_die_once(job: Any, target: Any) -> Any:
    """Do the shard step of `logmel`, but not at the first attempt."""
    from pipeline.corpus.logmel import logmel_shard

    die_once(target)
    return logmel_shard(job, target)


def square(number: int) -> int:
    """Return the square; 13 kills the worker."""
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number
