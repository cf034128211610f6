"""Tar shards of clips as fetched to tar shards of mono FLAC at one sample rate."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pipeline import audio, ledger, tarshards
from pipeline.audio import BadAudioError
from pipeline.params.data import ResampleParams

STAGE = "resample"
TOLERANCE_S = 0.1  # a decoder may add or leave out its first and last block


@dataclass(frozen=True)
class Job:
    """One shard to do, and the ledger's rows of it."""

    source: Path
    target: Path
    rows: list[ledger.Row]
    params: ResampleParams
    sample_rate: int  # Hz


def resample_shard(job: Job) -> list[ledger.Row]:
    """Write the shard's usable clips and return its rows, failures recorded."""
    rows = {row.clip_id: row for row in job.rows}

    def usable() -> Iterator[tuple[str, bytes]]:
        arrived = [row.clip_id for row in job.rows if row.ok]
        for clip_id, content in tarshards.read(job.source, arrived, stage="download"):
            check_unchanged(content, rows[clip_id], job.source)
            try:
                wave = prepare(content, rows[clip_id], job.params, job.sample_rate)
            except BadAudioError as error:
                rows[clip_id] = rows[clip_id].failed(STAGE, error.kind, error.reason)
            else:
                yield clip_id, audio.encode_flac(wave, job.sample_rate)

    tarshards.write(job.target, usable())
    return list(rows.values())


def check_unchanged(content: bytes, row: ledger.Row, shard: Path) -> None:
    """Stop if a clip is not the one that was fetched; the recording is not to blame for that.

    Raises:
        ValueError: its SHA-256 is not the ledger's.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != row.sha256:
        raise ValueError(
            f"{shard} is damaged: {tarshards.member_name(row.clip_id, content)} in it has the "
            f"SHA-256 {found}, expected {row.sha256 or 'one'} as in {shard.parent}/ledger.csv. Run "
            "`dvc pull --force download` if it was pushed, or `dvc repro -f download`."
        )


def prepare(
    content: bytes, row: ledger.Row, params: ResampleParams, sample_rate: int
) -> Float32[np.ndarray, " S"]:
    """Return a clip as a mono waveform at `sample_rate`.

    Raises:
        BadAudioError: it is damaged, too short or silent.
    """
    wave, rate = audio.decode(content)
    duration_s = len(wave) / rate
    if row.duration_s is not None and abs(duration_s - row.duration_s) > TOLERANCE_S:
        reason = f"it lasts {duration_s:.3f} s, but {row.duration_s:.3f} s were fetched"
        raise BadAudioError("corrupt", reason)
    if duration_s < params.min_duration_s:
        reason = f"{duration_s:.3f} s, under resample.min_duration_s = {params.min_duration_s} s"
        raise BadAudioError("short", reason)
    mono = audio.resample(audio.to_mono(wave), rate, sample_rate)
    peak_db = audio.peak_db(mono)
    if peak_db < params.silence_db:
        reason = f"peak {peak_db:.1f} dB, under resample.silence_db = {params.silence_db} dB"
        raise BadAudioError("silent", reason)
    return mono
