"""The download's ledger with what only the journal knows: attempts, tool, time and address.

`data/clips/ledger.csv` has none of these, so that a download that was killed and resumed ends with
the same bytes as an uninterrupted one. This table is for people; no stage depends on it.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.download_ledger import WAITING, clip_key
from pipeline.corpus.fetch.media import recording_url

COLUMNS = (
    *("clip_id", "recording_id", "start_s", "end_s", "labels", "status", "reason", "tries"),
    *("bytes", "duration_s", "sha256", "source", "tool", "time"),
)


def write(path: Path, segments: Sequence[Segment], store: ClipStore, template: str) -> None:
    """Write one row for each segment, in order; the file appears when it is complete.

    `time` is when the last attempt ended (UTC), `tries` counts the attempts of that run; cells of
    unknown values are empty.

    Args:
        path: of a CSV file.
        segments: of all clips.
        store: what was fetched of them.
        template: address of a recording, with {recording_id}.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(_rows(segments, store, template))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rows(
    segments: Sequence[Segment], store: ClipStore, template: str
) -> Iterator[tuple[Any, ...]]:
    for s in segments:
        segment = (s.clip_id, s.recording_id, s.start_s, s.end_s, s.labels)
        source = recording_url(template, s.recording_id)
        last = store.last(clip_key(s))
        if last is None:
            yield (*segment, WAITING, "not tried yet", 0, None, None, "", source, "", "")
        else:
            yield (
                *(*segment, last.status, last.reason, last.tries, last.bytes, last.duration_s),
                *(last.sha256, source, last.tool, _utc(last.time_s)),
            )


def _utc(time_s: float) -> str:
    if not time_s:
        return ""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
