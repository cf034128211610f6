"""Fetched clips on disk, so that an interrupted download goes on where it stopped.

    <folder>/journal.jsonl        one line per finished attempt; the last one of a clip counts
    <folder>/packs/00000.pack     clips end to end in the order they came, at most 1 GB each
    <folder>/packs/<hash>.tar     finished shards, hard links to those in the stage's output
    <folder>/lock                 held by the one process that may write

A clip is complete if the journal lists it and its pack is as long as the journal says. Bytes are
written before the line, so a killed process loses at most the clips under way; what it left at the
end of a pack belongs to no clip. Packs are only appended to. A finished shard becomes the pack of
its clips, and their old pack is removed when no clip needs it any more: AudioSet's 1.6 million
clips are 400 files, and none is stored twice.

A folder belongs to one URL template, so neither a changed list of segments nor any other parameter
hides a fetched clip.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipeline.core.locks import exclusive
from pipeline.core.repository import in_copy
from pipeline.corpus.clips.ledger import OK

RETRIED = {"transient", "blocked"}  # statuses that say nothing about the clip itself
PACK_BYTES = 1 << 30
USUAL_S = 10.0  # duration of most clips


@dataclass(slots=True, kw_only=True)  # a frozen one takes twice as long, two million times
class Outcome:
    """How fetching one clip ended."""

    status: str  # as in the ledger
    reason: str = ""
    bytes: int | None = None
    sha256: str = ""
    duration_s: float | None = None
    origin: str = ""  # size and time of a local recording, which may change
    tries: int = field(default=0, compare=False)  # attempts of that run
    tool: str = field(default="", compare=False)  # that fetched it, with its version
    via: str = field(default="", compare=False)  # account and proxy used, see `client_id`
    time_s: float = field(default=0.0, compare=False)  # when, in seconds since 1970
    pack: str = field(default="", compare=False)  # file that holds the clip
    offset: int | None = field(default=None, compare=False)  # of its first byte


DEFAULTS = {f.name: f.default for f in fields(Outcome)}


class ClipStore:
    """Clips and outcomes by key; `add` may be called by several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packs = folder / "packs"
        self._journal = folder / "journal.jsonl"
        self._lock = threading.Lock()
        self._outcomes = self._read_journal()
        self._sizes: dict[str, int] = {}  # pack -> bytes, as known
        self._number: int | None = None  # of the pack being written
        self._users: Counter[str] | None = None  # pack -> clips in it, counted when needed

    def _read_journal(self) -> dict[str, Outcome]:
        self._read_bytes = _size(self._journal)
        if not self._read_bytes:
            return {}
        outcomes: dict[str, Outcome] = {}
        # Line by line, as there may be two million.
        with self._journal.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                try:
                    values = json.loads(line)
                except ValueError:  # empty, or cut short when the process was killed
                    continue
                key = values.pop("key")
                outcomes[key] = _outcome(values)
        return outcomes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing until the block ends.

        Raises:
            RuntimeError: another one is writing; a copy of the repository waits for it instead.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        why = " Two downloads at once would ask the site twice as often as allowed."
        doing = f"fetching clips into {self.folder}"
        with exclusive(self.folder / "lock", doing, why, wait=in_copy()):
            if _size(self._journal) != self._read_bytes:  # another process has written meanwhile
                self._outcomes = self._read_journal()
            yield

    def last(self, key: str) -> Outcome | None:
        """Return the outcome of the last attempt at a clip, None if there was none."""
        return self._outcomes.get(key)

    def is_settled(self, key: str) -> bool:
        """Return whether another attempt is pointless: the clip is here, or unavailable."""
        outcome = self.last(key)
        if outcome is None or outcome.status in RETRIED:
            return False
        return outcome.status != OK or self._is_complete(outcome)

    def _is_complete(self, outcome: Outcome) -> bool:
        if outcome.offset is None or outcome.bytes is None:
            return False
        end = outcome.offset + outcome.bytes
        if end > self._sizes.get(outcome.pack, 0):
            self._sizes[outcome.pack] = _size(self._packs / outcome.pack)
        return end <= self._sizes[outcome.pack]

    def read(self, key: str) -> bytes:
        """Return a clip that is here.

        Raises:
            RuntimeError: it is damaged; the next run fetches it again.
        """
        outcome = self._outcomes[key]
        content = b""
        if self._is_complete(outcome):
            with (self._packs / outcome.pack).open("rb") as pack:
                pack.seek(outcome.offset or 0)
                content = pack.read(outcome.bytes)
        if hashlib.sha256(content).hexdigest() == outcome.sha256:
            return content
        self.retry(key)
        raise RuntimeError(
            f"The clip {key} in {self._packs / outcome.pack} is damaged: its bytes are not those "
            "that were fetched. Run the stage again to fetch this clip again."
        )

    def add(self, key: str, outcome: Outcome, content: bytes | None = None) -> None:
        """Record an outcome, with the clip itself if there is one."""
        with self._lock:
            self._users = None
            if content is not None:
                pack, offset = self._append(content)
                outcome = replace(outcome, pack=pack, offset=offset)
            self._record(key, replace(outcome, time_s=outcome.time_s or round(time.time(), 3)))

    def link_shard(self, name: str, path: Path) -> bool:
        """Link a finished shard to `path`; return whether there is such a shard."""
        try:
            os.link(self._packs / name, path)
        except FileNotFoundError:
            return False
        return True

    def replace_packs(self, name: str, path: Path, offsets: dict[str, int]) -> None:
        """Keep a finished shard in place of the packs in which its clips came.

        Args:
            name: of the shard in the store.
            path: the shard, which is linked, not copied.
            offsets: first byte of each of its clips, by key.
        """
        if not (self._packs / name).exists():
            os.link(path, self._packs / name)
        if self._users is None:
            self._users = Counter(outcome.pack for outcome in self._outcomes.values())
        for key, offset in offsets.items():
            before = self._outcomes[key]
            if before.pack != name:
                self._record(key, replace(before, pack=name, offset=offset))
                self._users[before.pack] -= 1
                self._users[name] += 1
                if not self._users[before.pack]:
                    (self._packs / before.pack).unlink(missing_ok=True)
                    self._sizes.pop(before.pack, None)

    def compact(self) -> None:
        """Rewrite the journal with one line per clip, and remove packs without clips."""
        new = self._journal.with_suffix(".new")
        with new.open("w", encoding="ascii") as journal:
            journal.writelines(_line(key, outcome) for key, outcome in self._outcomes.items())
        os.replace(new, self._journal)
        self._read_bytes = _size(self._journal)
        used = {outcome.pack for outcome in self._outcomes.values()}
        for path in self._packs.glob("*"):
            if path.name not in used:
                path.unlink()

    def retry(self, key: str) -> None:
        """Let the next run try a clip again, whatever its outcome."""
        with self._lock:
            self._record(key, Outcome(status="transient", reason="to be tried again"))

    def items(self) -> Iterator[tuple[str, Outcome]]:
        """Yield every key with its last outcome."""
        yield from self._outcomes.items()

    def _record(self, key: str, outcome: Outcome) -> None:
        with self._journal.open("a", encoding="ascii") as journal:
            self._read_bytes += journal.write(_line(key, outcome))
        self._outcomes[key] = outcome

    def _append(self, content: bytes) -> tuple[str, int]:
        """Write a clip at the end of the last pack; return the pack's name and the offset."""
        self._packs.mkdir(parents=True, exist_ok=True)
        if self._number is None:
            self._number = max((int(p.stem) for p in self._packs.glob("*.pack")), default=0)
        path = self._packs / f"{self._number:05d}.pack"
        if path.exists() and path.stat().st_size + len(content) > PACK_BYTES:
            self._number += 1
            path = self._packs / f"{self._number:05d}.pack"
        with path.open("ab") as pack:
            offset = pack.tell()
            pack.write(content)
        return path.name, offset


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _line(key: str, outcome: Outcome) -> str:
    """Return an outcome as a line, led by a line end since the line before may be cut short."""
    values = {name: getattr(outcome, name) for name in DEFAULTS}
    known = {name: value for name, value in values.items() if value != DEFAULTS[name]}
    return "\n" + json.dumps({"key": key, **known})


def _outcome(values: dict[str, Any]) -> Outcome:
    """Return the outcome of a line; values that many clips share are kept once."""
    for name in ("status", "reason", "origin", "tool", "via", "pack"):
        if name in values:
            values[name] = sys.intern(values[name])
    if values.get("duration_s") == USUAL_S:
        values["duration_s"] = USUAL_S
    return Outcome(**values)
