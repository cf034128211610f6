"""HDF5 shards of log-mel spectrograms.

Layout of one shard, written once and never changed:

    /log_mel    float16 [total_frames, F]   clips end to end, time first; contiguous, uncompressed
    /start      int64   [clips + 1]         clip i is log_mel[start[i]:start[i + 1]]
    /clip_id    utf-8   [clips]             "<recording_id>_<start in ms>"
    /labels     utf-8   [clips]             AudioSet ids, comma-joined
    attributes  logmel                      front end: section `logmel` of params.yaml as JSON
                count, sum, sumsq           of the values before they were rounded to float16

A crop of consecutive frames is one read of consecutive bytes. The same clips make the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float16, Int64

from pipeline.core.params import check
from pipeline.features import stats
from pipeline.features.params import REMEDY, STAGE, LogMelParams
from pipeline.features.stats import Totals

SUFFIX = ".h5"


@dataclass(frozen=True)
class Clip:
    """Log-mel of one clip, on its way into a shard."""

    clip_id: str
    labels: str
    frames: Float16[np.ndarray, "T F"]
    totals: Totals


@dataclass(frozen=True)
class ShardIndex:
    """Content of one shard except its frames, and where these are in the file."""

    start: Int64[np.ndarray, " clips_plus_1"]
    clip_id: list[str]
    log_mel: LogMelParams
    offset: int  # bytes before the first frame


@dataclass(frozen=True)
class Shard:
    """Content of one shard."""

    frames: Float16[np.ndarray, "total F"]
    start: Int64[np.ndarray, " clips_plus_1"]
    clip_id: list[str]
    labels: list[str]
    log_mel: LogMelParams
    totals: Totals


def write(path: Path, clips: Sequence[Clip], log_mel: LogMelParams) -> Totals:
    """Write a shard, which may hold no clips, and return the totals of its values."""
    start = np.cumsum([0, *(len(clip.frames) for clip in clips)], dtype=np.int64)
    totals = stats.merge(clip.totals for clip in clips)
    with h5py.File(path, "w", libver="latest") as file:
        frames = file.create_dataset("log_mel", (int(start[-1]), log_mel.n_mels), np.float16)
        for first, clip in zip(start, clips, strict=False):
            frames[first : first + len(clip.frames)] = clip.frames
        file["start"] = start
        text = h5py.string_dtype()
        file.create_dataset("clip_id", data=[clip.clip_id for clip in clips], dtype=text)
        file.create_dataset("labels", data=[clip.labels for clip in clips], dtype=text)
        file.attrs["logmel"] = log_mel.model_dump_json()
        file.attrs.update(count=totals.count, sum=totals.sum, sumsq=totals.sumsq)
    return totals


def read(path: Path) -> Shard:
    """Read a shard into memory.

    Raises:
        ValueError: as `read_index`.
    """
    index = read_index(path)
    with _opened(path) as file:
        frames, labels = file["log_mel"][:], file["labels"].asstr()[:].tolist()
        totals = _totals(file)
    return Shard(frames, index.start, index.clip_id, labels, index.log_mel, totals)


def read_index(path: Path) -> ShardIndex:
    """Read what a shard holds, but not its frames.

    Raises:
        ValueError: the file is not a shard, is damaged, or does not hold its frames in one piece.
    """
    with _opened(path) as file:
        frames, start = file["log_mel"], file["start"][:]
        clip_id = file["clip_id"].asstr()[:].tolist()
        log_mel = check(json.loads(file.attrs["logmel"]), LogMelParams, STAGE, path)
        offset = frames.id.get_offset() if frames.size else 0
        shape, kind = frames.shape, frames.dtype
    bounds = start.dtype == np.int64 and start[:1].tolist() == [0] and (np.diff(start) > 0).all()
    if not bounds or shape != (start[-1], log_mel.n_mels) or len(clip_id) != len(start) - 1:
        raise ValueError(
            f"{path} is damaged: {len(clip_id)} clips, frames of shape {shape} and `start` of "
            f"{len(start)} values do not belong together. {REMEDY}"
        )
    if offset is None or kind != np.dtype("<f2"):
        raise ValueError(
            f"{path} holds its frames as {kind}, in chunks or compressed; expected contiguous "
            f"float16, as `{STAGE}` writes them. {REMEDY}"
        )
    return ShardIndex(start, clip_id, log_mel, offset)


def read_totals(path: Path) -> Totals:
    """Return the totals of a shard's values without reading the values.

    Raises:
        ValueError: the file is not a shard, or is damaged.
    """
    with _opened(path) as file:
        return _totals(file)


def _totals(file: h5py.File) -> Totals:
    count, total, sumsq = (file.attrs[name] for name in ("count", "sum", "sumsq"))
    return Totals(int(count), float(total), float(sumsq))


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a shard of log-mels, or is damaged ({error}). {REMEDY}"
        ) from error
