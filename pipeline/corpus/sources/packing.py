"""Clips of a container to tar shards: each clip as it is, one at a time in memory.

`corpus.clips.shard_cache` keeps finished shards, so an interrupted run continues after the last.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.code_identity import code_identity
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.cutting import MIN_CLIP_S
from pipeline.corpus.fetch.failures import STAGE, UnavailableError
from pipeline.corpus.params import DownloadParams
from pipeline.corpus.sources import probing
from pipeline.corpus.sources.source import Container

LIBRARIES = ("av", "imageio-ffmpeg", "numpy", "soundfile")  # whose versions determine a shard


@dataclass(frozen=True)
class Job:
    """One shard to write, and the ledger's rows of it before any clip is read."""

    source: Container
    inputs: Any  # parameters and state of the source, as JSON
    segments: Sequence[Segment]
    rows: list[ledger.Row]
    max_bytes: float  # of a clip

    def identity(self) -> Any:
        """Return all that determines the shard's bytes, as JSON."""
        segments = [(s.recording_id, s.start_s, s.end_s, s.labels) for s in self.segments]
        return self.inputs, segments, self.max_bytes


def make_jobs(
    source: Container, inputs: Any, segments: Sequence[Segment], params: DownloadParams
) -> list[Job]:
    """Return a job for each shard, in order."""
    count, max_bytes = params.clips_per_shard, params.max_clip_mb * 1e6
    parts = [segments[start : start + count] for start in range(0, len(segments), count)]
    rows = [list(map(ledger.from_segment, part)) for part in parts]
    return [Job(source, inputs, *job, max_bytes) for job in zip(parts, rows, strict=True)]


def packing_code(source: Container) -> str:
    """Return the identity of the code that copies the clips of a source."""
    return code_identity(__name__, LIBRARIES) + code_identity(type(source).__module__)


def write_shard(job: Job, target: Path) -> list[ledger.Row]:
    """Write the shard's usable clips and return its rows: sizes, durations and failures."""
    rows: list[ledger.Row] = []

    def usable() -> Iterator[tuple[str, bytes]]:
        contents = job.source.contents(job.segments, job.max_bytes)
        for row, content in zip(job.rows, contents, strict=True):
            try:
                rows.append(describe(row, content))
            except UnavailableError as error:
                rows.append(row.failed(STAGE, error.kind, error.reason))
            else:
                assert isinstance(content, bytes)
                yield row.clip_id, content

    tar_shards.write(target, usable())
    return rows


def describe(row: ledger.Row, content: bytes | UnavailableError) -> ledger.Row:
    """Return the row of a clip with what is known of its content.

    Raises:
        UnavailableError: there is no content, or it is not audio.
    """
    if isinstance(content, UnavailableError):
        raise content
    duration_s = probing.duration_s(content)
    if duration_s is not None and duration_s < MIN_CLIP_S:
        raise UnavailableError("short", f"it lasts {duration_s:.3f} s")
    return replace(
        row,
        end_s=max(row.end_s, round(duration_s or 0.0, 6)),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        duration_s=None if duration_s is None else round(duration_s, 6),
    )
