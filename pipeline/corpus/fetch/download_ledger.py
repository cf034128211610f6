"""The ledger of the stage `download`: rows of clips that were fetched, lost or not tried yet."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.shard_folder import Manifest
from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import Outcome
from pipeline.corpus.fetch.failures import STAGE
from pipeline.corpus.params import DownloadParams

WAITING = "waiting"  # status of a clip that no run has tried


def clip_key(segment: Segment) -> str:
    """Return what a clip is stored under: recording, start and end."""
    return f"{segment.clip_id}_{round(segment.end_s * 1000)}"


def to_row(segment: Segment, outcome: Outcome | None) -> ledger.Row:
    """Return the ledger's row of a segment, given the outcome of its last attempt."""
    if outcome is None:
        return ledger.from_segment(segment).failed(STAGE, WAITING, "not tried yet")
    is_ok = outcome.status == ledger.OK
    return ledger.from_segment(
        segment,
        status=outcome.status,
        stage="" if is_ok else STAGE,
        reason=outcome.reason,
        bytes=outcome.bytes,
        sha256=outcome.sha256,
        duration_s=outcome.duration_s,
    )


def check_tried(rows: Sequence[ledger.Row], publish_partial: bool) -> None:
    """Stop if clips were left for a later run, unless a partial set may be published.

    Raises:
        RuntimeError: with their number and how to go on.
    """
    left = sum(row.status == WAITING for row in rows)
    if left and not publish_partial:
        raise RuntimeError(
            f"{left} of {len(rows)} clips were not tried yet: this run ended at network.limit. "
            "What was fetched is kept, nothing was published. Run it again to go on, or set "
            "download.publish_partial = true to publish what is there."
        )


def write_ledger(folder: Path, rows: Sequence[ledger.Row], params: DownloadParams) -> Manifest:
    """Write ledger.csv and return the manifest of the shards that belong to it.

    Raises:
        RuntimeError: clips were not tried yet, or too many were lost.
    """
    check_tried(rows, params.publish_partial)
    path = folder / "ledger.csv"
    ledger.write(path, rows)
    tried = [row for row in rows if row.status != WAITING]
    ledger.check_failed(tried, STAGE, params.max_failed, path)
    ledger.check_any(rows, path)
    return ledger.manifest_of(rows, params.clips_per_shard)
