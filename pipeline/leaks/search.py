"""Clips of the pre-training data that are in the test split of a HEAR task: by id and by audio.

By audio: the fingerprints of all test files are an index. Where `KEY_BITS` bits of a clip's
fingerprint are those of a test file's, both are laid upon each other and all bits are compared.
Unrelated recordings differ in half of them; the standard deviation of that share falls with the
root of the overlap, so that the share allowed falls for clips shorter than `min_overlap_s`, by as
many standard deviations.

By id: clips of FSD50K, and the files of the tasks made of Freesound's recordings.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Real, UInt32

from pipeline.features.front_end import LogMel
from pipeline.features.params import LogMelParams
from pipeline.hear.tasks import audio
from pipeline.hear.tasks.task import TRAIN_VALID_TEST, Task
from pipeline.leaks import fingerprint
from pipeline.leaks.fingerprint import BITS, SPAN, STRIDE, UNINFORMATIVE
from pipeline.leaks.table import Leak

KEY_BITS = 24  # the lower bands, which lossy coding spares
MAX_REPEATS = 256  # frames of the test files; a key that more of them share says too little
MOST = 0.8  # share of the shorter clip that has to overlap, if that is less than min_overlap_s
BLOCK = 2**20  # fingerprints that are compared at a time
FILES_PER_JOB = 256  # a process takes seconds to start
CLIPS_PER_JOB = 4096
FREESOUND_FILES = {"fsd50k": r"(\d+)", "esc50": r"\d-(\d+)-[A-Za-z]-\d+"}  # id in the file's name
FREESOUND_SOURCES = ("fsd50k",)  # whose recordings' ids are Freesound's


@dataclass(frozen=True)
class Limits:
    """What counts as the same recording."""

    max_bit_error: float  # share of the bits, at an overlap of min_overlap_s or more
    overlap: float  # fingerprints of stride 1 in min_overlap_s

    def allowed(self, overlap: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the share of bits that may differ; below 0 where no overlap is long enough."""
        shorter = np.minimum(1.0, np.maximum(overlap, 1e-9) / self.overlap)
        return 0.5 - (0.5 - self.max_bit_error) / np.sqrt(shorter)


def limits(max_bit_error: float, min_overlap_s: float, log_mel: LogMelParams) -> Limits:
    """Return the limits for a front end."""
    frames = min_overlap_s * log_mel.sample_rate / log_mel.hop_length
    return Limits(max_bit_error, max(frames - SPAN + 1, STRIDE))


@dataclass(frozen=True)
class Index:
    """Fingerprints of the test files end to end, and where each key occurs in them."""

    values: UInt32[np.ndarray, " total"]
    start: Int64[np.ndarray, " files_plus_1"]
    informative: Int64[np.ndarray, " files"]  # fingerprints that are
    keys: UInt32[np.ndarray, " keys"]  # sorted, each once
    first: Int64[np.ndarray, " keys_plus_1"]  # where[first[k]:first[k + 1]] have key k
    where: Int64[np.ndarray, " entries"]  # in `values`

    def save(self, folder: Path) -> None:
        """Write one array a file, so that several processes can share them."""
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Return what `save` has written, read on demand."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})


def build_index(files: Sequence[UInt32[np.ndarray, " _"]]) -> Index:
    """Return the index of the fingerprints of all test files."""
    values = np.concatenate([np.zeros(0, np.uint32), *files])
    start = np.cumsum([0, *map(len, files)], dtype=np.int64)
    where = np.flatnonzero(values != UNINFORMATIVE)
    key = _key(values[where])
    order = np.argsort(key, kind="stable")
    keys, counts = np.unique(key, return_counts=True)
    kept = counts <= MAX_REPEATS
    where = where[order][np.repeat(kept, counts)]
    first = np.cumsum([0, *counts[kept]], dtype=np.int64)
    informative = [np.count_nonzero(file) for file in files]
    return Index(values, start, np.array(informative, np.int64), keys[kept], first, where)


@dataclass(frozen=True)
class Match:
    """Where a clip and a test file are the same."""

    file: int
    offset: int  # frames of the clip before the test file begins; negative if it begins earlier
    bit_error: float  # share of the bits that differ


def search(index: Index, clip: UInt32[np.ndarray, " N"], limit: Limits) -> Match | None:
    """Return the best match of a clip's fingerprints, at stride `STRIDE`."""
    best: Match | None = None
    for file, offset in _candidates(index, clip):
        overlap, errors = _compare(index, clip, file, offset)
        shorter = np.minimum(index.informative[file], STRIDE * np.count_nonzero(clip))
        found = overlap >= np.minimum(limit.overlap, MOST * shorter)
        bit_error = errors / np.maximum(BITS / STRIDE * overlap, 1)
        found &= bit_error <= limit.allowed(overlap)
        if found.any():
            i = int(np.where(found, bit_error, np.inf).argmin())
            if best is None or bit_error[i] < best.bit_error:
                best = Match(int(file[i]), int(offset[i]), float(bit_error[i]))
    return best


def _key(values: UInt32[np.ndarray, " N"]) -> UInt32[np.ndarray, " N"]:
    return values & np.uint32(2**KEY_BITS - 1)


def _candidates(
    index: Index, clip: UInt32[np.ndarray, " N"]
) -> Iterator[tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]]:
    """Yield test files and offsets at which a key is the same, in blocks."""
    asked = np.flatnonzero(clip != UNINFORMATIVE)
    if not len(asked) or not len(index.keys):
        return
    key = _key(clip[asked])
    place = np.minimum(np.searchsorted(index.keys, key), len(index.keys) - 1)
    known = index.keys[place] == key
    asked, place = asked[known], place[known]
    first, counts = index.first[place], index.first[place + 1] - index.first[place]
    before = np.cumsum(counts) - counts
    entry = np.arange(counts.sum()) + np.repeat(first - before, counts)
    position = index.where[entry]
    file = np.searchsorted(index.start, position, side="right") - 1
    offset = STRIDE * np.repeat(asked, counts) - (position - index.start[file])
    pairs = np.unique((file << 32) + (offset + 2**31))
    size = max(1, BLOCK // len(clip))
    for begin in range(0, len(pairs), size):
        block = pairs[begin : begin + size]
        yield block >> 32, (block & 0xFFFFFFFF) - 2**31


def _compare(
    index: Index,
    clip: UInt32[np.ndarray, " N"],
    file: Int64[np.ndarray, " M"],
    offset: Int64[np.ndarray, " M"],
) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
    """Return the frames in which both are informative, and the bits in which the clip's differ."""
    start, end = index.start[file][:, None], index.start[file + 1][:, None]
    position = start + STRIDE * np.arange(len(clip)) - offset[:, None]
    inside: Bool[np.ndarray, "M N"] = (position >= start) & (position < end)
    other = index.values[np.where(inside, position, start)]
    both = inside & (other != UNINFORMATIVE) & (clip != UNINFORMATIVE)
    errors = np.where(both, np.bitwise_count(other ^ clip), 0)
    return STRIDE * both.sum(axis=1), errors.sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class SearchJob:
    """Shards of fingerprints to search, and the folder of the index."""

    paths: list[Path]
    index: Path
    limit: Limits


def search_shards(job: SearchJob) -> list[tuple[str, Match]]:
    """Return the clips of some shards that have a match."""
    index, found = Index.open(job.index), []
    for shard in map(fingerprint.read, job.paths):
        bounds = zip(shard.clip_id, shard.start[:-1], shard.start[1:], strict=True)
        for clip_id, first, end in bounds:
            if match := search(index, shard.values[first:end], job.limit):
                found.append((clip_id, match))
    return found


@dataclass(frozen=True)
class FilesJob:
    """Test files to take the fingerprints of."""

    paths: list[Path]
    log_mel: LogMelParams


def fingerprint_files(job: FilesJob) -> list[UInt32[np.ndarray, " _"]]:
    """Return the fingerprints of each file, of every frame.

    Raises:
        ValueError: a file is damaged, or not at the front end's sample rate.
    """
    torch.set_num_threads(1)  # the processes share the cores among them
    front_end = LogMel(job.log_mel)
    return [fingerprint.fingerprint(_log_mel(path, front_end)) for path in job.paths]


def _log_mel(path: Path, front_end: LogMel) -> Float[np.ndarray, "T F"]:
    wave, rate = audio.read_clip(path)
    if rate != front_end.params.sample_rate:
        raise ValueError(
            f"{path} has {rate} Hz, expected logmel.sample_rate = {front_end.params.sample_rate} "
            "Hz. Run `dvc repro hear_tasks`."
        )
    if len(wave) < front_end.min_samples:
        return np.zeros((0, front_end.params.n_mels), np.float16)
    with torch.inference_mode():
        return front_end(torch.from_numpy(wave)).numpy().T.astype(np.float16)  # as in a shard


def tested_files(task: Task) -> list[tuple[str, str]]:
    """Return split and name of each file that the task is tested on; with folds, of all."""
    metadata = task.metadata
    splits = TRAIN_VALID_TEST[-1:] if metadata.split_mode == "trainvaltest" else metadata.splits
    return [(split, name) for split in splits for name in task.labels[split]]


def leaks_by_id(
    clip_ids: Sequence[str], source: str, task: str, files: Sequence[tuple[str, str]]
) -> list[Leak]:
    """Return the clips of recordings that test files are made of, where ids can tell."""
    patterns = [p for name, p in FREESOUND_FILES.items() if re.match(rf"{name}([-_]|$)", task)]
    if source not in FREESOUND_SOURCES or not patterns:
        return []
    names = ((re.fullmatch(patterns[0], Path(name).stem), s, name) for s, name in files)
    known = {match[1]: (split, name) for match, split, name in names if match}
    recordings = ((clip_id, clip_id.rpartition("_")[0]) for clip_id in clip_ids)
    return [Leak(clip_id, *known[r], how="id") for clip_id, r in recordings if r in known]


def leaks_by_audio(
    matches: Sequence[tuple[str, Match]],
    files: Sequence[tuple[str, str]],
    log_mel: LogMelParams,
) -> list[Leak]:
    """Return what was found as rows of the result."""
    hop_s = log_mel.hop_length / log_mel.sample_rate
    return [
        Leak(clip_id, *files[match.file], "audio", round(match.offset * hop_s, 3),
             round(1 - match.bit_error, 3))
        for clip_id, match in matches
    ]  # fmt: skip


def unchecked(index: Index, limit: Limits) -> int:
    """Return how many test files have too few fingerprints to be found by audio."""
    return int((limit.allowed(index.informative) <= 0).sum())
