"""Locks that end with their process, however it ends."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class LockedError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def exclusive(path: Path, work: str, why: str = "", wait: bool = False) -> Iterator[None]:
    """Keep other processes from doing the same `work` until the block ends, by locking a file.

    Args:
        path: file to lock.
        work: what is done, in words that follow "is".
        why: what two processes would do wrong.
        wait: for the process that holds the lock, however long it takes.

    Raises:
        LockedError: another process holds the lock, and `wait` is false.
    """
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise LockedError(
                    f"Another process is {work}. Wait for it, or end it (a stage outlives a killed "
                    f"`dvc`).{why}"
                ) from None
            logger.info("Another process is %s; waiting for it.", work)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Keep other processes from an exclusive lock of the file until the block ends."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
