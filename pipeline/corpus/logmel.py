"""Tar shards of FLAC to HDF5 shards of log-mels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import audio
from pipeline.audio import BadAudioError
from pipeline.core import shard_folder
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.features import hdf5_shards
from pipeline.features.front_end import LogMel
from pipeline.features.params import LogMelParams
from pipeline.features.stats import Totals

STAGE = "logmel"
LIBRARIES = ("h5py", "numpy", "soundfile", "torch", "torchaudio")  # as in `resample`


@dataclass(frozen=True)
class Job:
    """One shard to do, and the ledger's rows of it."""

    source: Path
    sha256: str  # of the source
    rows: list[ledger.Row]
    params: LogMelParams

    def identity(self) -> Any:
        """Return all that determines the shard's bytes, as JSON."""
        clips = [(row.clip_id, row.labels) for row in self.rows if row.ok]
        return self.params.model_dump(), self.sha256, clips


def logmel_shard(job: Job, target: Path) -> list[ledger.Row]:
    """Write the shard and return its rows: numbers of frames and failures recorded."""
    shard_folder.check_sum(job.source, job.sha256, stage="resample")
    torch.set_num_threads(1)  # the processes share the cores; threads do not speed up one clip
    front_end = LogMel(job.params)
    rows = {row.clip_id: row for row in job.rows}
    clips = []
    arrived = [row.clip_id for row in job.rows if row.ok]
    for clip_id, content in tar_shards.read(job.source, arrived, stage="resample"):
        try:
            clip = transform(content, rows[clip_id], front_end)
        except BadAudioError as error:
            rows[clip_id] = rows[clip_id].failed(STAGE, error.kind, error.reason)
        else:
            clips.append(clip)
            rows[clip_id] = replace(rows[clip_id], frames=len(clip.frames))
    hdf5_shards.write(target, clips, job.params)
    return list(rows.values())


def transform(content: bytes, row: ledger.Row, front_end: LogMel) -> hdf5_shards.Clip:
    """Return the log-mel of one clip; batches are slower on a CPU.

    Raises:
        BadAudioError: the clip is damaged, or too short for one frame.
        ValueError: its sample rate is not the front end's.
    """
    wave, rate = audio.decode(content)
    if rate != front_end.params.sample_rate:
        raise ValueError(
            f"{row.clip_id} has {rate} Hz, expected logmel.sample_rate = "
            f"{front_end.params.sample_rate} Hz. Run `dvc repro resample`."
        )
    if len(wave) < front_end.min_samples:
        reason = f"{len(wave)} samples, one frame needs {front_end.min_samples}"
        raise BadAudioError("short", reason)
    with torch.inference_mode():  # it also reuses memory, which saves a third of the time
        log_mel = front_end(torch.from_numpy(audio.to_mono(wave))).numpy().T
    totals = Totals.from_array(log_mel)
    return hdf5_shards.Clip(row.clip_id, row.labels, log_mel.astype(np.float16), totals)


def summarize(totals: Totals, rows: Sequence[ledger.Row]) -> dict[str, float | int]:
    """Return the content of `stats.json`: the statistics that normalize a log-mel."""
    clips = sum(row.ok for row in rows)
    return {"mean": totals.mean, "std": totals.std, "count": totals.count, "clips": clips}
