"""Locks that end with their process, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, work: str, why: str = "") -> Iterator[None]:
    """Keep other processes from doing the same `work` until the block ends, by locking a file.

    Raises:
        RuntimeError: another process holds the lock; `why` says what two would do wrong.
    """
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Another process is {work}. Wait for it, or end it (a stage outlives a killed "
                f"`dvc`).{why}"
            ) from None
        yield
