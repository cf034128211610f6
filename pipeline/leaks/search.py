"""Search for a clip of the pre-training data among the test files of a HEAR task, by audio.

The fingerprints of all test files form an index. Wherever `KEY_BITS` bits of a clip's fingerprint
equal those of a test file, the two are aligned there and all bits are compared. Unrelated
recordings differ in half of the bits, with a standard deviation that falls with the square root of
the overlap. Below an overlap of `min_overlap_s`, the allowed share of differing bits therefore
shrinks, so that it stays the same number of standard deviations below one half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64, Real, UInt32

from pipeline.features.params import LogMelParams
from pipeline.leaks.fingerprint import BITS, SPAN, STRIDE, UNINFORMATIVE

KEY_BITS = 24  # the lower bands, which lossy coding spares
MAX_REPEATS = 256  # frames of the test files; keys shared by more frames are not discriminative
MIN_COVERAGE = 0.8  # share of the shorter clip that must overlap, if that is below min_overlap_s
BLOCK = 2**20  # fingerprints compared at a time


@dataclass(frozen=True)
class MatchCriteria:
    """What counts as the same recording."""

    max_bit_error: float  # share of the bits, at an overlap of min_overlap or more
    min_overlap: float  # fingerprints of stride 1 in min_overlap_s

    @classmethod
    def for_front_end(
        cls, max_bit_error: float, min_overlap_s: float, log_mel: LogMelParams
    ) -> "MatchCriteria":
        """Return the criteria for a front end, with the overlap in fingerprints."""
        frames = min_overlap_s * log_mel.sample_rate / log_mel.hop_length
        return cls(max_bit_error, max(frames - SPAN + 1, STRIDE))

    def allowed_bit_error(self, overlap: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the share of bits that may differ; below 0 where the overlap is too short."""
        relative = np.minimum(1.0, np.maximum(overlap, 1e-9) / self.min_overlap)
        return 0.5 - (0.5 - self.max_bit_error) / np.sqrt(relative)


@dataclass(frozen=True)
class Index:
    """Fingerprints of the test files, concatenated, and the positions of each key."""

    values: UInt32[np.ndarray, " total"]
    start: Int64[np.ndarray, " files_plus_1"]
    informative: Int64[np.ndarray, " files"]  # number of informative fingerprints
    keys: UInt32[np.ndarray, " keys"]  # sorted, unique
    first: Int64[np.ndarray, " keys_plus_1"]  # where[first[k]:first[k + 1]] have key k
    where: Int64[np.ndarray, " entries"]  # in `values`

    def save(self, folder: Path) -> None:
        """Write one file per array, so that processes can share them."""
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Return a saved index as memory maps."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})


def build_index(files: Sequence[UInt32[np.ndarray, " _"]]) -> Index:
    """Index the fingerprints of all test files."""
    values = np.concatenate([np.zeros(0, np.uint32), *files])
    start = np.cumsum([0, *map(len, files)], dtype=np.int64)
    where = np.flatnonzero(values != UNINFORMATIVE)
    key = _key(values[where])
    order = np.argsort(key, kind="stable")
    keys, counts = np.unique(key, return_counts=True)
    rare = counts <= MAX_REPEATS
    where = where[order][np.repeat(rare, counts)]
    first = np.cumsum([0, *counts[rare]], dtype=np.int64)
    informative = [np.count_nonzero(file) for file in files]
    return Index(values, start, np.array(informative, np.int64), keys[rare], first, where)


@dataclass(frozen=True)
class Match:
    """Where a clip and a test file agree."""

    file: int
    offset: int  # frames of the clip before the test file begins; negative if it begins earlier
    bit_error: float  # share of the bits that differ


def search(index: Index, clip: UInt32[np.ndarray, " N"], criteria: MatchCriteria) -> Match | None:
    """Return the best match of a clip's fingerprints, at stride `STRIDE`."""
    best: Match | None = None
    for file, offset in _candidates(index, clip):
        overlap, errors = _compare(index, clip, file, offset)
        shorter = np.minimum(index.informative[file], STRIDE * np.count_nonzero(clip))
        matches = overlap >= np.minimum(criteria.min_overlap, MIN_COVERAGE * shorter)
        bit_error = errors / np.maximum(BITS / STRIDE * overlap, 1)
        matches &= bit_error <= criteria.allowed_bit_error(overlap)
        if matches.any():
            i = int(np.where(matches, bit_error, np.inf).argmin())
            if best is None or bit_error[i] < best.bit_error:
                best = Match(int(file[i]), int(offset[i]), float(bit_error[i]))
    return best


def count_unsearchable(index: Index, criteria: MatchCriteria) -> int:
    """Return how many test files have too few fingerprints to be found by audio."""
    return int((criteria.allowed_bit_error(index.informative) <= 0).sum())


def _key(values: UInt32[np.ndarray, " N"]) -> UInt32[np.ndarray, " N"]:
    return values & np.uint32(2**KEY_BITS - 1)


def _candidates(
    index: Index, clip: UInt32[np.ndarray, " N"]
) -> Iterator[tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]]:
    """Yield blocks of test files and offsets at which a key agrees."""
    frames = np.flatnonzero(clip != UNINFORMATIVE)
    if not len(frames) or not len(index.keys):
        return
    clip_keys = _key(clip[frames])
    key = np.minimum(np.searchsorted(index.keys, clip_keys), len(index.keys) - 1)
    known = index.keys[key] == clip_keys
    frames, key = frames[known], key[known]
    first, counts = index.first[key], index.first[key + 1] - index.first[key]
    before = np.cumsum(counts) - counts
    entry = np.arange(counts.sum()) + np.repeat(first - before, counts)
    position = index.where[entry]
    file = np.searchsorted(index.start, position, side="right") - 1
    offset = STRIDE * np.repeat(frames, counts) - (position - index.start[file])
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
    """Return the number of frames where both are informative, and of bits that differ there."""
    start, end = index.start[file][:, None], index.start[file + 1][:, None]
    position = start + STRIDE * np.arange(len(clip)) - offset[:, None]
    inside: Bool[np.ndarray, "M N"] = (position >= start) & (position < end)
    other = index.values[np.where(inside, position, start)]
    both = inside & (other != UNINFORMATIVE) & (clip != UNINFORMATIVE)
    errors = np.where(both, np.bitwise_count(other ^ clip), 0)
    return STRIDE * both.sum(axis=1), errors.sum(axis=1, dtype=np.int64)
