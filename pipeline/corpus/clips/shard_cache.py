"""Cache of finished shards: one whose input and code are unchanged is not made again.

    .work/<stage>/shards/<key><suffix>       a finished shard that is not published yet
    .work/<stage>/shards/<key>.json          its SHA-256, and what changed in its clips' rows
    .work/<stage>/published/<key>.*          the same of the shards of the last output, linked

The key is a hash of all that determines a shard's bytes: the code (`code_identity`), the versions
of the libraries, the parameters and the input. An existing shard is used again if its bytes
have the recorded SHA-256. So an interrupted stage continues after the last finished shard,
processes and machines may share the work on one file system, and after a change of some clips only
their shards are made again.

Each run reads the shards of the last output once, to hash them. They take no extra space: they, the
output and DVC's cache are hard links to the same files (.dvc/config: `cache.type`). Where files
cannot be linked, they are stored twice. Removing the work folder costs time only.
"""

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable
from uuid import uuid4

from pipeline.core import shard_folder
from pipeline.core.files import link_or_copy, sha256
from pipeline.core.locks import LockedError, exclusive, shared
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, run, work_root
from pipeline.corpus.clips.ledger import COLUMNS, Row
from pipeline.parallel.processes import keep_freed_memory, map_shards

logger = logging.getLogger(__name__)

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
class Shard(Generic[J]):
    """One shard: what it is made of, and its paths."""

    job: J
    target: Path  # in the output
    finished: Path  # in the cache, not published yet
    published: Path  # in the cache, as part of the last output

    def __str__(self) -> str:
        return f"shard {self.target}"


class ShardCache(Generic[J]):
    """The shards of a stage's output, each made only if it is not in the cache.

    Args:
        stage: its name.
        output: folder that the stage writes.
        suffix: of its shards.
        function: makes a job's shard at a path and returns the job's rows, changed; at the top
            level of a module.
        code: hash of what it does, from `pipeline.core.code_identity`.
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
        self.folder = (work_root() / stage).absolute()
        self.lock = self.folder / "shards.lock"
        self.finished, self.published = self.folder / "shards", self.folder / "published"
        for folder in (self.finished, self.published):
            folder.mkdir(parents=True, exist_ok=True)
        self.shards = [
            Shard(
                job,
                shard_folder.shard_path(Path(output), number, suffix),
                *(
                    folder / f"{_key(code, job)}{suffix}"
                    for folder in (self.finished, self.published)
                ),
            )
            for number, job in enumerate(jobs)
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep other runs from moving or removing shards until the block ends."""
        with shared(self.lock):
            yield

    def finish(self, compute: ComputeParams, part: tuple[int, int] = (0, 1)) -> list[Path]:
        """Make what is missing of the shards and return where they are.

        Args:
            part: (i, n): only the shards whose number leaves i when divided by n.
        """
        first, step = part
        shards = self.shards[first::step]
        work = partial(_finish, self.function)
        done = map_shards(work, shards, compute.workers, self.stage, compute.scheduler)
        made = sum(is_new for _, is_new in done)
        logger.info("%d shards made, %d were there already", made, len(done) - made)
        return [path for path, _ in done]

    def rows(self, paths: Iterable[Path]) -> list[Row]:
        """Return the rows of all shards, given where these are."""
        rows: list[Row] = []
        for shard, path in zip(self.shards, paths, strict=True):
            changes = iter(_read_record(path)["changes"])
            rows += [replace(row, **next(changes)) if row.ok else row for row in shard.job.rows]
        return rows

    def place(self, paths: Iterable[Path], folder: Path) -> None:
        """Put the finished shards and the list of their SHA-256 into the output."""
        sums: dict[str, str] = {}
        for shard, path in zip(self.shards, paths, strict=True):
            link_or_copy(path, folder / shard.target.name)
            sums[shard.target.name] = _read_record(path)["sha256"]
        shard_folder.write_sums(folder, sums)

    def tidy(self) -> None:
        """Keep the shards that have been published in place of those of the output before.

        What has been left unfinished, or finished long ago and not used, is removed. Another run
        that is under way is not disturbed: then everything stays as it is until the next.
        """
        with suppress(LockedError), exclusive(self.lock, "using the shards"):
            for shard in self.shards:
                for path in (shard.finished, _record(shard.finished)):
                    if path.exists():
                        os.replace(path, shard.published.with_suffix(path.suffix))
            current = {shard.published.stem for shard in self.shards}
            forgotten = time.time() - FORGOTTEN_DAYS * 86400
            for path in (*self.published.iterdir(), *self.finished.iterdir()):
                is_old = path.suffix == PARTIAL or path.stat().st_mtime < forgotten
                if path.stem not in current and (path.parent == self.published or is_old):
                    path.unlink()


def _key(code: str, job: Job) -> str:
    return hashlib.sha256(json.dumps([code, job.identity()]).encode()).hexdigest()


def _finish(function: Callable[[J, Path], list[Row]], shard: Shard[J]) -> tuple[Path, bool]:
    """Return where a shard is, and whether it had to be made."""
    for path in (shard.finished, shard.published):
        if path.exists() and sha256(path) == _read_record(path).get("sha256"):
            return path, False
    keep_freed_memory()
    aside = shard.finished.with_name(f"{shard.finished.stem}.{uuid4().hex}{PARTIAL}")  # unique
    try:
        rows = function(shard.job, aside)
        record = {"sha256": sha256(aside), "changes": _changes(shard.job.rows, rows)}
        os.replace(aside, shard.finished)
        aside.write_text(json.dumps(record))
        os.replace(aside, _record(shard.finished))
    finally:
        aside.unlink(missing_ok=True)
    return shard.finished, True


def _changes(before: Sequence[Row], after: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the columns that differ, for each row of a clip that was usable before."""
    return [
        {name: getattr(b, name) for name in COLUMNS if getattr(b, name) != getattr(a, name)}
        for a, b in zip(before, after, strict=True)
        if a.ok
    ]


def _record(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _read_record(shard: Path) -> dict[str, Any]:
    """Return a shard's record, an empty one if it is not finished."""
    try:
        return dict(json.loads(_record(shard).read_text()))
    except (FileNotFoundError, ValueError):  # none, or cut off with the machine's power
        return {}


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
