"""Tar shards of clips as fetched to tar shards of mono FLAC at one sample rate."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline import audio
from pipeline.audio import BadAudioError
from pipeline.core.shard_folder import rebuild_hint
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.corpus.params import ResampleParams

STAGE = "resample"
LIBRARIES = ("av", "numpy", "soundfile", "soxr")  # whose versions determine a shard's bytes
NEAR_SILENT_DB = -60.0  # peak level, dB of full scale, under which the log counts a clip
TOLERANCE_S = 0.1  # a decoder may add or drop its first and last block


@dataclass(frozen=True)
class Job:
    """One shard to do, and the ledger's rows of it."""

    source: Path
    rows: list[ledger.Row]
    params: ResampleParams
    sample_rate: int  # Hz

    def identity(self) -> Any:
        """Return all that determines the shard's bytes, as JSON."""
        clips = [(row.clip_id, row.sha256, row.duration_s) for row in self.rows if row.ok]
        return self.params.model_dump(exclude={"max_failed"}), self.sample_rate, clips


def resample_shard(job: Job, target: Path) -> list[ledger.Row]:
    """Write the shard's usable clips and return its rows: levels and failures recorded."""
    rows = {row.clip_id: row for row in job.rows}

    def usable() -> Iterator[tuple[str, bytes]]:
        arrived = [row.clip_id for row in job.rows if row.ok]
        for clip_id, content in tar_shards.read(job.source, arrived, stage="download"):
            check_unchanged(content, rows[clip_id], job.source)
            try:
                wave, rows[clip_id] = prepare(content, rows[clip_id], job.params, job.sample_rate)
            except BadAudioError as error:
                rows[clip_id] = rows[clip_id].failed(STAGE, error.kind, error.reason)
            if rows[clip_id].ok:
                yield clip_id, audio.encode_flac(wave, job.sample_rate)

    tar_shards.write(target, usable())
    return list(rows.values())


def check_unchanged(content: bytes, row: ledger.Row, shard: Path) -> None:
    """Check that a clip is the one that was fetched; if not, the disk is at fault.

    Raises:
        ValueError: its SHA-256 is not the ledger's.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != row.sha256:
        raise ValueError(
            f"{shard} is damaged: {tar_shards.member_name(row.clip_id, content)} in it has the "
            f"SHA-256 {found}, expected {row.sha256 or 'one'} as in {shard.parent}/ledger.csv. "
            f"{rebuild_hint('download')}"
        )


def prepare(
    content: bytes, row: ledger.Row, params: ResampleParams, sample_rate: int
) -> tuple[Float32[np.ndarray, " S"], ledger.Row]:
    """Return a clip as a mono waveform at `sample_rate`, and its row with levels and status.

    Raises:
        BadAudioError: it is damaged.
    """
    wave, rate = audio.decode(content)
    duration_s = len(wave) / rate
    if row.duration_s is not None and abs(duration_s - row.duration_s) > TOLERANCE_S:
        reason = f"it lasts {duration_s:.3f} s, but {row.duration_s:.3f} s were fetched"
        raise BadAudioError("corrupt", reason)
    mono = audio.resample(audio.to_mono(wave), rate, sample_rate)
    peak_db = max(round(audio.peak_db(mono), 2), ledger.DIGITAL_SILENCE_DB)
    row = replace(row, peak_db=peak_db, clipped=round(audio.clipped(wave), 6))
    return mono, exclude(row, duration_s, params)


def exclude(row: ledger.Row, duration_s: float, params: ResampleParams) -> ledger.Row:
    """Return the row of a clip with known levels, as failed if the parameters exclude it."""
    assert row.peak_db is not None
    assert row.clipped is not None
    if duration_s < params.min_duration_s:
        limit = f"under resample.min_duration_s = {params.min_duration_s} s"
        return row.failed(STAGE, "short", f"{duration_s:.3f} s, {limit}")
    if row.peak_db < params.silence_db:
        limit = f"under resample.silence_db = {params.silence_db} dB"
        return row.failed(STAGE, "silent", f"peak {row.peak_db:.1f} dB, {limit}")
    if row.clipped > params.max_clipped:
        limit = f"over resample.max_clipped = {params.max_clipped:.3%}"
        return row.failed(STAGE, "clipped", f"{row.clipped:.3%} of the samples, {limit}")
    return row


def describe_levels(rows: Sequence[ledger.Row], params: ResampleParams) -> str:
    """Return how many clips are near-silent or clipped, and how many are excluded and why."""
    quiet = sum(row.peak_db is not None and row.peak_db < NEAR_SILENT_DB for row in rows)
    clipped = sum(bool(row.clipped) for row in rows)
    excluded = ledger.counts(row for row in rows if row.stage == STAGE)
    return (
        f"clips with a peak under {NEAR_SILENT_DB:.0f} dB: {quiet}, with samples at full scale: "
        f"{clipped}; excluded: {excluded.get('silent', 0)} under resample.silence_db = "
        f"{params.silence_db} dB, {excluded.get('clipped', 0)} over resample.max_clipped = "
        f"{params.max_clipped:.3%}, {excluded.get('short', 0)} under resample.min_duration_s = "
        f"{params.min_duration_s} s"
    )
