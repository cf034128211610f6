"""Shards as separate pieces of work: what is finished, or published and unchanged, is not redone.

    .work/<stage>/shards/<key><suffix>    a finished shard that is not published yet
    .work/<stage>/shards/<key>.json       its SHA-256, and what changed in the ledger's rows

The key is a hash of all that determines a shard's bytes: the code (without comments), the versions
of the libraries, the parameters and what goes in. A finished shard is used if its bytes have the
recorded SHA-256: the one in the work folder, or else the one that is published under the same
number. So an interrupted stage goes on after the last finished shard, processes and machines may
share the work on one file system, and after a change of some clips only their shards are made anew.

What it costs: each run reads the published shards once, to hash them. They are linked into the new
output, not copied, and finished ones leave the work folder when they are published, so that no
audio is kept twice. For that, dvc.yaml lets the stage's last output stay while the stage runs
(`persist`); where the file system cannot share blocks (no reflinks), DVC makes of it, for the time
of the run, a copy apart from its cache. Records stay: a few bytes for each clip.
"""

import ast
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable
from uuid import uuid4

from pipeline import manifest
from pipeline.ledger import COLUMNS, Row
from pipeline.params.data import ComputeParams
from pipeline.pool import map_shards
from pipeline.stage import Stage, root, run

logger = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
PARTIAL = ".partial"
FORGOTTEN_DAYS = 30  # after which finished shards and records that no run has used are removed


@runtime_checkable
class Job(Protocol):
    """What one shard is made of."""

    @property
    def rows(self) -> list[Row]:
        """The ledger's rows of the shard."""

    def identity(self) -> Any:
        """Return all that determines the shard's bytes, but for the code, as JSON."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Task(Generic[J]):
    """One shard to do."""

    job: J
    finished: Path  # where it is when it is done
    published: Path  # the shard of the same number in the last output

    def __str__(self) -> str:
        return f"shard {self.published}"

    @property
    def record(self) -> Path:
        """Path of its SHA-256 and of the changes in its rows."""
        return self.finished.with_suffix(".json")


class Shards(Generic[J]):
    """The shards of a stage's output.

    Args:
        stage: its name.
        output: folder that the stage writes.
        suffix: of its shards.
        function: makes a job's shard at a path and returns the job's rows, changed; at the top
            level of a module.
        code: hash of what it does, from `fingerprint`.
        jobs: one for each shard, in order.
    """

    def __init__(
        self,
        stage: str,
        output: str,
        suffix: str,
        function: Callable[[J, Path], list[Row]],
        code: str,
        jobs: Sequence[J],
    ) -> None:
        self.stage = stage
        self.function = function
        self.folder = (root() / ".work" / stage / "shards").absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tasks = [
            Task(
                job,
                self.folder / f"{_key(code, job)}{suffix}",
                manifest.shard_path(Path(output).absolute(), number, suffix),
            )
            for number, job in enumerate(jobs)
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep other runs from removing finished shards until the block ends."""
        with (self.folder / "lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    def finish(self, compute: ComputeParams, part: tuple[int, int] = (0, 1)) -> list[Path]:
        """Make what is missing of the shards and return where they are.

        Args:
            part: (i, n): only the shards whose number leaves i when divided by n.
        """
        first, step = part
        tasks = self.tasks[first::step]
        work = partial(_finish, self.function)
        done = map_shards(work, tasks, compute.workers, self.stage, compute.scheduler)
        made = sum(is_new for _, is_new in done)
        logger.info("%d shards made, %d were there already", made, len(done) - made)
        return [path for path, _ in done]

    def rows(self) -> list[Row]:
        """Return the rows of all shards, which must be finished."""
        return [row for task in self.tasks for row in _changed(task)]

    def place(self, paths: Iterable[Path], folder: Path) -> None:
        """Put the finished shards and the list of their SHA-256 into the output."""
        sums = []
        for task, path in zip(self.tasks, paths, strict=True):
            _link(path, folder / task.published.name)
            sums.append(f"{_read_record(task)['sha256']}  {task.published.name}\n")
        (folder / SUMS).write_text("".join(sums))

    def tidy(self) -> None:
        """Remove the shards that have been published, and what has been left here long ago.

        Another run that is under way is not disturbed: then everything stays for the next time.
        """
        forgotten = time.time() - FORGOTTEN_DAYS * 86400
        published = {task.finished for task in self.tasks}
        with (self.folder / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for path in self.folder.iterdir():
                is_left = path.suffix == PARTIAL or path.stat().st_mtime < forgotten
                if path.name != "lock" and (path in published or is_left):
                    path.unlink()


def _key(code: str, job: Job) -> str:
    return hashlib.sha256(json.dumps([code, job.identity()]).encode()).hexdigest()


def _finish(function: Callable[[J, Path], list[Row]], task: Task[J]) -> tuple[Path, bool]:
    """Return where a shard is, and whether it had to be made."""
    if sha256 := _read_record(task).get("sha256"):
        task.record.touch()  # it is not forgotten
        for path in (task.finished, task.published):
            if _sha256(path) == sha256:
                return path, False
    aside = task.finished.with_name(f"{task.finished.stem}.{uuid4().hex}{PARTIAL}")  # no other's
    try:
        rows = function(task.job, aside)
        record = {"sha256": _sha256(aside), "changes": _changes(task.job.rows, rows)}
        os.replace(aside, task.finished)
        aside.write_text(json.dumps(record))
        os.replace(aside, task.record)
    finally:
        aside.unlink(missing_ok=True)
    return task.finished, True


def _changes(before: Sequence[Row], after: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for each row the columns that differ."""
    return [
        {name: getattr(b, name) for name in COLUMNS if getattr(b, name) != getattr(a, name)}
        for a, b in zip(before, after, strict=True)
    ]


def _changed(task: Task[Any]) -> Iterator[Row]:
    for row, changes in zip(task.job.rows, _read_record(task)["changes"], strict=True):
        yield replace(row, **changes) if changes else row


def _read_record(task: Task[Any]) -> dict[str, Any]:
    """Return a shard's record, an empty one if it is not finished."""
    try:
        return dict(json.loads(task.record.read_text()))
    except (FileNotFoundError, ValueError):  # none, or cut off with the machine's power
        return {}


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _link(path: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no hard links."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def read_sums(folder: Path, shards: int, stage: str) -> list[str]:
    """Return the SHA-256 of each shard of an output.

    Raises:
        FileNotFoundError: there is no list of them.
        ValueError: it is not one of that many shards.
    """
    remedy = f"Run `dvc repro -f {stage}`, or `dvc pull --force {stage}` if it was pushed."
    try:
        sums = [line.split()[0] for line in (folder / SUMS).read_text().splitlines()]
    except (FileNotFoundError, IndexError):
        raise FileNotFoundError(f"There is no {folder}/{SUMS}, or it is broken. {remedy}") from None
    if len(sums) != shards:
        raise ValueError(f"{folder}/{SUMS} has {len(sums)} lines, expected {shards}. {remedy}")
    return sums


def check_sum(path: Path, sha256: str, stage: str) -> None:
    """Stop if a shard is not the one that was published.

    Raises:
        ValueError: its SHA-256 is another.
    """
    if (found := _sha256(path)) != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, expected {sha256} as in {SUMS} beside it. "
            f"Run `dvc pull --force {stage}` if it was pushed, or `dvc repro -f {stage}`."
        )


def fingerprint(modules: Iterable[str], libraries: Iterable[str]) -> str:
    """Return a hash of what modules of this package do, and of the versions of libraries.

    Comments, docstrings and the layout of the code count for nothing.
    """
    described = [f"{name} {version(name)}" for name in libraries]
    for name in modules:
        tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [s for s in body if not _is_docstring(s)]  # type: ignore[attr-defined]
        described.append(ast.dump(tree))
    return hashlib.sha256("\n".join(described).encode()).hexdigest()


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def run_or_part(name: str, main: Callable[[Stage, tuple[int, int] | None], None]) -> None:
    """Run a stage, or the part of its shards that `--shard i/n` on the command line names."""
    part = _part(sys.argv[1:])
    instance = () if part is None else (f"shard-{part[0]}-of-{part[1]}",)
    run(name, lambda stage: main(stage, part), *instance)


def _part(given: Sequence[str]) -> tuple[int, int] | None:
    """Return (i, n) of `--shard i/n`, None without arguments; end the process for others."""
    if not given:
        return None
    numbers = re.fullmatch(r"--shard[= ](\d+)/(\d+)", " ".join(given))
    if numbers and int(numbers[1]) < int(numbers[2]):
        return int(numbers[1]), int(numbers[2])
    sys.exit(
        f"Wrong arguments {list(given)}. Usage: python -m stages.{Path(sys.argv[0]).stem} "
        "[--shard i/n], where i is from 0 to n - 1"
    )
