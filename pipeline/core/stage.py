"""What every stage does around its work: parameters, errors, atomic outputs, run times.

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
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core import params, signals
from pipeline.core.files import OPEN_FILES, nearest_folder, open_files_hint
from pipeline.core.locks import exclusive
from pipeline.core.params import Section
from pipeline.core.repository import in_copy, root

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)
EXPECTED_ERRORS = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError)
NO_SPACE = os.strerror(errno.ENOSPC)  # in the text: errors of HDF5 and copytree have no errno


class Stage:
    """One run of a stage: the parameters it has read, its work folder, its outputs."""

    def __init__(self, name: str, *instance: str) -> None:
        self.name = "-".join([name, *instance])
        self.values: dict[str, Any] = {}  # dotted key -> value as read at the start
        self.targets: list[Path] = []  # outputs begun
        self.published: list[Path] = []  # outputs in their place

    def load(self, key: str, section: type[S]) -> S:
        """Return a checked section of params.yaml and remember its value (see `output`)."""
        self.values[key] = params.load_value(key)
        return params.load(key, section)

    def value(self, key: str) -> Any:
        """Return one unchecked value of params.yaml and remember it (see `output`)."""
        self.values[key] = params.load_value(key)
        return self.values[key]

    def record(self, *keys: str) -> None:
        """Remember values of params.yaml that the output shows as they are (see `output`)."""
        self.values |= {key: params.load_value(key) for key in keys}

    def work_folder(self, *identity: str) -> Path:
        """Folder that survives interruption, one per configuration; `identity` adds to its key."""
        text = json.dumps([self.values, identity], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = work_root() / self.name / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def output(self, target: str, file: bool = False) -> Iterator[Path]:
        """Yield a path to write to, which becomes `target` when the block ends without an error.

        The path is an empty folder, or, with `file`, that of a file to write.

        Raises:
            RuntimeError: another process runs the same configuration (a copy of the repository
                waits for it instead), or params.yaml was edited meanwhile, so that DVC would
                record parameters that the output does not have.
        """
        work = self.work_folder()
        self.targets.append(Path(target))
        lock = work / f"{Path(target).name}.lock"
        doing = f"running the same configuration in {work}"
        with exclusive(lock, doing, wait=in_copy()):
            path = work / Path(target).name
            _remove(path)
            if not file:
                path.mkdir()
            yield path
            self._refuse_edited_params()
            publish(path, Path(target))
            self.published.append(Path(target))

    def describe_published(self) -> str:
        """Return which outputs this run has published, in words."""
        if not self.published:
            return "nothing was published"
        return f"of its outputs, only {', '.join(map(str, self.published))} was published"

    def _refuse_edited_params(self) -> None:
        for key, value in self.values.items():
            if params.load_value(key) != value:
                raise RuntimeError(
                    f"{key} in params.yaml changed from {value!r} to {params.load_value(key)!r} "
                    f"while {self.name} ran. Nothing was published, since DVC would record the new "
                    "value for a result of the old one. Run `dvc repro` again, or use "
                    "`dvc exp run --queue`, which works on a copy."
                )


def work_root() -> Path:
    """Return the folder of what is kept between runs, but is not an output."""
    return root() / ".work"


def arguments(*wanted: str) -> list[str]:
    """Return the command line's arguments, one for each of `wanted`.

    `<task>` is the plain name of a file or folder, `a|b` is one of the two. Anything else ends the
    process with the usage.
    """

    def fits(value: str, expected: str) -> bool:
        plain = bool(value.strip(".")) and not set(value) & set("/\\")
        return plain if expected.startswith("<") else value in expected.split("|")

    given = sys.argv[1:]
    if len(given) != len(wanted) or not all(map(fits, given, wanted)):
        usage = " ".join(["python -m", f"stages.{Path(sys.argv[0]).stem}", *wanted])
        sys.exit(f"Wrong arguments {given}. Usage: {usage}")
    return given


def publish(path: Path, target: Path) -> None:
    """Move a finished folder or file to its target, replacing what was there.

    The old one stays until the new one is complete beside it, on the same file system. The next
    call removes what a killed call has left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = (target.with_name(f".{target.name}.{age}") for age in ("new", "old"))
    _remove(new)
    try:
        shutil.move(path, new)
    except OSError:
        _remove(new)
        raise
    _remove(old)
    if os.path.lexists(target):
        target.rename(old)  # a folder cannot be replaced in one step
    new.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(name: str, main: Callable[[Stage], None], *instance: str) -> None:
    """Run a stage: log to stderr, report an error as one message, record the run time."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    signals.raise_keyboard_interrupt()
    stage = Stage(name, *instance)
    started = time.time()
    try:
        main(stage)
        _record_runtime(stage, time.time() - started)
    except KeyboardInterrupt:
        signals.ignore()
        logger.error("%s: interrupted; %s. Run it again.", stage.name, stage.describe_published())
        sys.exit(signals.INTERRUPTED)
    except EXPECTED_ERRORS as error:
        signals.ignore()
        log = work_root() / f"{stage.name}.error.log"
        logger.error("%s: %s\n(%s)", stage.name, _message(error, stage), _write_traceback(log))
        sys.exit(1)


def _message(error: Exception, stage: Stage) -> str:
    text = str(error)
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, target, reason = error.args[0][0]  # of every file of a folder
        count = len(error.args[0])
        text = f"{source} and {count - 1} more files cannot be copied to {target}: {reason}"
    if isinstance(error, MemoryError):
        reason = f" ({text})" if text else ""
        return f"There is not enough memory{reason}. Free some, then run it again."
    if OPEN_FILES in text:
        return f"{text}\n{open_files_hint()}"
    if NO_SPACE not in text:
        return text
    free = _free_space([work_root(), *stage.targets])
    published = stage.describe_published()
    return f"{text}\nFree space: {free}; {published}. Free some space, then run it again."


def _free_space(paths: Iterable[Path]) -> str:
    """Return the free space of each file system that holds a path, in words."""
    found: dict[int, str] = {}
    for path in paths:
        folder = nearest_folder(path)
        free_gb = shutil.disk_usage(folder).free / 1e9
        found.setdefault(folder.stat().st_dev, f"{free_gb:.1f} GB at {folder}")
    return ", ".join(found.values())


def _write_traceback(path: Path) -> str:
    """Write the traceback of the current error and return where it is."""
    text = traceback.format_exc()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:  # no space, read-only
        sys.stderr.write(text)
        return f"traceback above; it could not be written to {path}: {error.strerror}"
    return f"traceback in {path}"


def _record_runtime(stage: Stage, seconds: float) -> None:
    """Append the run time to a file that DVC does not track: it is not part of a result."""
    record = {"stage": stage.name, "seconds": round(seconds, 2), "params": stage.values}
    path = work_root() / "runtime.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as handle:
            handle.write(f"\n{json.dumps(record)}")  # on its own line, even after a truncated one
    except OSError as error:
        logger.warning("The run time is not recorded: %s", error)


def runtimes() -> dict[str, float]:
    """Return the seconds of each stage's last run with the present parameters."""
    current = params.read()

    def unchanged(key: str, value: Any) -> bool:
        found: Any = current
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return bool(found == value)

    return {
        r["stage"]: r["seconds"]
        for r in _records()
        if all(unchanged(key, value) for key, value in r["params"].items())
    }


def last_record(stage: str) -> dict[str, Any] | None:
    """Return stage, seconds and params of a stage's last run, None if it has not run."""
    return next((record for record in reversed(_records()) if record["stage"] == stage), None)


def _records() -> list[dict[str, Any]]:
    path = work_root() / "runtime.jsonl"
    return list(filter(None, map(_record, path.read_bytes().splitlines()))) if path.exists() else []


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None if the line is truncated."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and {"stage", "seconds", "params"} <= record.keys()
    return record if whole else None
