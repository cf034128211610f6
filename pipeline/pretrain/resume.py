"""Resuming after an interruption: training states on disk, and a stop between two steps.

    <folder>/step-<number, nine digits>.pt      written as .new, then renamed; the last few stay

A file holds tensors, numbers and text only; reading it runs no code.
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
from zipfile import BadZipFile, ZipFile

import torch

logger = logging.getLogger(__name__)

UNREADABLE = (BadZipFile, pickle.UnpicklingError)
FORGOTTEN_DAYS = 30  # after which another run's states are removed


class TrainingStates:
    """The states of one run in a folder, written every few minutes."""

    def __init__(self, folder: Path, minutes: float, keep: int) -> None:
        self.folder = folder
        self.minutes = minutes
        self.keep = keep
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("step-*.new"):
            unfinished.unlink()

    def due(self) -> bool:
        """Return whether it is time for the next state."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of a run after `step` steps; remove the oldest.

        A full disk does not end the run: it is logged, and earlier states stay.
        """
        target = self.folder / f"step-{step:09d}.pt"
        aside = target.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, aside)
            os.replace(aside, target)
        except (OSError, RuntimeError) as error:  # torch's writer has no error class of its own
            aside.unlink(missing_ok=True)
            free_gb = shutil.disk_usage(self.folder).free / 1e9
            logger.warning(
                "the state of step %d could not be written to %s, %.1f GB free: %s",
                step,
                self.folder,
                free_gb,
                error,
            )
        else:
            for old in self._paths()[: -self.keep]:
                old.unlink()
        self._saved = time.monotonic()

    def newest(self) -> dict[str, Any] | None:
        """Return the latest readable state, on the CPU, or None; rename damaged ones."""
        for path in reversed(self._paths()):
            try:
                return _load(path)
            except (OSError, RuntimeError, EOFError, ValueError, *UNREADABLE) as error:
                logger.warning("%s is damaged, so it is skipped: %s", path, error)
                path.rename(path.with_suffix(".damaged"))
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))


def _load(path: Path) -> dict[str, Any]:
    with ZipFile(path) as file:
        if damaged := file.testzip():  # torch does not verify checksums
            raise ValueError(f"the checksum of {damaged} is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def remove_forgotten(own: Path) -> None:
    """Remove the states of other runs that have not been continued for a month."""
    limit = time.time() - 24 * 3600 * FORGOTTEN_DAYS
    for run in {path.parent for path in own.parent.glob("*/step-*.pt")} - {own}:
        if max(path.stat().st_mtime for path in run.iterdir()) < limit:
            logger.info("removing the states of %s, %d days old", run, FORGOTTEN_DAYS)
            shutil.rmtree(run)


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has been received.

    The first signal only sets the flag, so that a step is never interrupted; the second interrupts.
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
