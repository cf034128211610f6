"""Going on after an interruption: states of a run on disk, and a stop that ends a step first.

    <folder>/step-<number, nine digits>.pt      written aside, then renamed; the last few are kept

A file holds tensors, numbers and text only: it is read without running any code from it.
"""

import logging
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

logger = logging.getLogger(__name__)

FORGOTTEN_DAYS = 30  # after which the states of another run are removed


class Checkpoints:
    """States of one run in a folder, written every so many minutes."""

    def __init__(self, folder: Path, minutes: float, keep: int) -> None:
        self.folder = folder
        self.minutes = minutes
        self.keep = keep
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def due(self) -> bool:
        """Tell whether it is time for the next one."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of a run after `step` steps and remove the oldest.

        A full disk does not end the run: it is logged, and the states before stay.
        """
        target = self.folder / f"step-{step:09d}.pt"
        aside = target.with_suffix(".new")
        try:
            torch.save(state, aside)
            os.replace(aside, target)
        except (OSError, RuntimeError) as error:  # torch's writer has no error class of its own
            aside.unlink(missing_ok=True)
            logger.warning("the state of step %d could not be written: %s", step, error)
        else:
            for old in self._paths()[: -self.keep]:
                old.unlink()
        self._saved = time.monotonic()

    def newest(self) -> dict[str, Any] | None:
        """Return the latest state that can be read, on the CPU; None if there is none."""
        for path in reversed(self._paths()):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
                logger.warning("%s is damaged and left out: %s", path, error)
            else:
                return state
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))


def remove_forgotten(folder: Path) -> None:
    """Remove the states of runs that nobody has gone on with for a month."""
    limit = time.time() - 24 * 3600 * FORGOTTEN_DAYS
    for run in {path.parent for path in folder.glob("*/step-*.pt")}:
        if max(path.stat().st_mtime for path in run.iterdir()) < limit:
            logger.info("removing the states of %s, %d days old", run, FORGOTTEN_DAYS)
            shutil.rmtree(run)


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM has come since.

    The first signal only sets the flag, so that a step is never cut in two; the second interrupts.
    """
    requested = threading.Event()

    def request(signum: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        logger.info("stopping after this step; a second signal stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
