"""Locks that end with their process, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockedError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def exclusive(path: Path, work: str, why: str = "") -> Iterator[None]:
    """Keep other processes from doing the same `work` until the block ends, by locking a file.

    Raises:
        LockedError: another process holds the lock; `why` says what two would do wrong.
    """
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"Another process is {work}. Wait for it, or end it (a stage outlives a killed "
                f"`dvc`).{why}"
            ) from None
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Keep other processes from an exclusive lock of the file until the block ends."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
