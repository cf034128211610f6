"""What every stage does around its work: parameters, errors, atomic outputs, run time.

A stage script is

    def main(stage: Stage) -> None:
        params = stage.load("logmel", LogMelParams)
        with stage.output("data/logmel") as folder:
            ...

    if __name__ == "__main__":
        run("logmel", main)

Outputs are made in `.work/<stage>/<fingerprint>/` under the repository's root (also when DVC runs
the stage in a temporary copy of the repository) and appear under `data/` only when complete.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pipeline import params
from pipeline.params import Section

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)
EXPECTED_ERRORS = (ValueError, KeyError, OSError, RuntimeError, ArithmeticError)


class Stage:
    """One run of a stage: the parameters it has read, its work folder and its outputs."""

    def __init__(self, name: str, *instance: str) -> None:
        self.name = "-".join([name, *instance])
        self.values: dict[str, Any] = {}  # dotted key -> value as read at the start

    def load(self, key: str, section: type[S]) -> S:
        """Return a checked section of params.yaml and remember its value (see `output`)."""
        self.values[key] = params.load_value(key)
        return params.load(key, section)

    def value(self, key: str) -> Any:
        """Return one unchecked value of params.yaml and remember it (see `output`)."""
        self.values[key] = params.load_value(key)
        return self.values[key]

    def work_folder(self, *identity: str) -> Path:
        """Folder that survives interruption, one per configuration; `identity` adds to its key."""
        text = json.dumps([self.values, identity], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = root() / ".work" / self.name / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def output(self, target: str, file: bool = False) -> Iterator[Path]:
        """Yield a path to write to, which becomes `target` when the block ends without an error.

        The path is an empty folder, or, with `file`, that of a file to write.

        Raises:
            RuntimeError: the same configuration is being run by another process, or params.yaml
                was edited meanwhile, so that the output would not be what its parameters say.
        """
        work = self.work_folder()
        with _locked(work / f"{Path(target).name}.lock"):
            path = work / Path(target).name
            _remove(path)
            if not file:
                path.mkdir()
            yield path
            self._refuse_edited_params()
            publish(path, Path(target))

    def _refuse_edited_params(self) -> None:
        for key, value in self.values.items():
            if params.load_value(key) != value:
                raise RuntimeError(
                    f"{key} in params.yaml changed from {value!r} to {params.load_value(key)!r} "
                    f"while {self.name} ran. Nothing was published, since DVC would record the new "
                    "value for a result of the old one. Run `dvc repro` again, or use "
                    "`dvc exp run --queue`, which works on a copy."
                )


def root() -> Path:
    """Root of the repository, the main one also inside a temporary experiment."""
    return Path(os.environ.get("DVC_ROOT", "."))


def publish(path: Path, target: Path) -> None:
    """Move a finished folder or file to its place, replacing what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(target)
    shutil.move(path, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Another process is running the same configuration in {path.parent}. Wait for "
                "it, or end it (a stage outlives a killed `dvc`)."
            ) from None
        yield


def run(name: str, main: Callable[[Stage], None], *instance: str) -> None:
    """Run a stage: log to stderr, report errors in one message, record how long it took."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    stage = Stage(name, *instance)
    started = time.time()
    try:
        main(stage)
    except KeyboardInterrupt:
        logger.error("%s: interrupted; run it again to go on.", stage.name)
        sys.exit(130)
    except EXPECTED_ERRORS as error:
        log = root() / ".work" / f"{stage.name}.error.log"
        _write_traceback(log)
        logger.error("%s: %s\n(traceback in %s)", stage.name, _message(error), log)
        sys.exit(1)
    _record_runtime(stage, time.time() - started)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        free_gb = shutil.disk_usage(root()).free / 1e9
        return (
            f"no space left on the device of {root().resolve()} ({free_gb:.1f} GB free). Nothing "
            "was published; free some space, then run it again."
        )
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write_traceback(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
    except OSError:  # no space, read-only: the message itself still reaches the user
        traceback.print_exc()


def _record_runtime(stage: Stage, seconds: float) -> None:
    """Append one line; kept outside DVC, so that time is no part of any result."""
    record = {"stage": stage.name, "seconds": round(seconds, 2), "params": stage.values}
    path = root() / ".work" / "runtime.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        handle.write(json.dumps(record) + "\n")


def runtimes() -> dict[str, float]:
    """Seconds of the last run of each stage that read the same parameters as now."""
    path = root() / ".work" / "runtime.jsonl"
    if not path.exists():
        return {}
    current = params.read()

    def unchanged(key: str, value: Any) -> bool:
        found: Any = current
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return bool(found == value)

    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        r["stage"]: r["seconds"]
        for r in records
        if all(unchanged(key, value) for key, value in r["params"].items())
    }
