"""Fetched clips on disk, so that an interrupted download goes on where it stopped.

    <folder>/journal.jsonl          one line per attempt that ended; the last one of a clip counts
    <folder>/<two letters>/<key>.flac    the clip, in place only when complete

A clip is done when the journal says so and its file has the size that the journal says: a process
that is killed loses at most the clips that were under way.
"""

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.ledger import OK

RETRIED = {"transient", "blocked"}  # statuses that say nothing about the clip itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How fetching one clip ended."""

    status: str  # as in the ledger
    reason: str = ""
    bytes: int | None = None
    sha256: str = ""
    duration_s: float | None = None
    origin: str = ""  # state of the recording, where it is a local file that may change


class ClipStore:
    """Clips and outcomes by key; `add` may be called by several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = folder / "journal.jsonl"
        self._lock = threading.Lock()
        self._outcomes = self._read_journal()

    def _read_journal(self) -> dict[str, Outcome]:
        if not self._journal.exists():
            return {}
        outcomes = {}
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                key = values.pop("key")
                outcomes[key] = Outcome(**values)
            except ValueError:  # empty, or cut short when the process was killed
                continue
        return outcomes

    def path(self, key: str) -> Path:
        """Return where the clip is, or will be."""
        return self.folder / key[:2] / f"{key}.flac"

    def last(self, key: str) -> Outcome | None:
        """Return how the last attempt at a clip ended, None if there was none."""
        return self._outcomes.get(key)

    def is_settled(self, key: str) -> bool:
        """Return whether another attempt is of no use: the clip is here, or cannot be had."""
        outcome = self.last(key)
        if outcome is None or outcome.status in RETRIED:
            return False
        return outcome.status != OK or _size(self.path(key)) == outcome.bytes

    def add(self, key: str, outcome: Outcome, clip: Path | None = None) -> None:
        """Record an outcome; a complete clip is moved into the store."""
        if clip is not None:
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
            os.replace(clip, self.path(key))
        line = "\n" + json.dumps({"key": key, **asdict(outcome)})  # after one cut short, too
        with self._lock, self._journal.open("a", encoding="utf-8") as journal:
            journal.write(line)
        self._outcomes[key] = outcome


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
