"""Audio of HEAR tasks: checking, reading, and resampling to the rate of the front end."""

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32
from tqdm import tqdm

from pipeline import audio
from pipeline.audio import BadAudioError
from pipeline.hear.tasks.task import METADATA, VOCABULARY, Task, require_file

SUFFIXES = (".wav", ".flac")
READ_AHEAD_BYTES = 2**24  # size of the files that are decoded ahead of use


def publish_task(task: Task, target: Path, sample_rate: int, max_bytes: float) -> None:
    """Copy a task into an existing folder, with its audio at `sample_rate`.

    Files of that rate are copied unchanged; others are resampled and written with 16 bits.

    Raises:
        FileNotFoundError: an audio file is missing.
        ValueError: a file is not WAV or FLAC, is damaged, not mono, empty, or has more than
            `max_bytes`.
    """
    for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in task.metadata.splits)):
        shutil.copyfile(require_file(task.folder / name), target / name)
    source_rate = _source_rate(task, sample_rate)
    for split, files in task.labels.items():
        folder = target / str(sample_rate) / split
        folder.mkdir(parents=True)
        for name in tqdm(files, desc=split, unit="clip", disable=None):
            path = task.audio(source_rate, split) / name
            publish_clip(_read(path, max_bytes), str(path), folder / name, sample_rate)


def _read(path: Path, max_bytes: float) -> bytes:
    size = require_file(path).stat().st_size
    if size > max_bytes:
        limit = f"{max_bytes / 1e6:g} MB (hear.max_file_mb)"
        raise ValueError(f"{path} has {size:,} bytes, more than {limit}. Replace it, or raise it.")
    return path.read_bytes()


def read_clip(path: Path) -> tuple[Float32[np.ndarray, " S"], int]:
    """Return a mono file's samples in [-1, 1] and its sample rate.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not WAV or FLAC, is damaged, not mono, or empty.
    """
    return _decode(require_file(path).read_bytes(), str(path))


def read_clips(
    paths: Sequence[Path], workers: int
) -> Iterator[tuple[Float32[np.ndarray, " S"], int]]:
    """Yield samples and sample rate of each file, in order; threads read ahead.

    libsndfile releases the GIL, so threads are as fast as processes, which take seconds to start.

    Raises:
        FileNotFoundError, ValueError: see `read_clip`.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque = deque()
        pending_bytes = 0
        for path in paths:
            size = path.stat().st_size if path.exists() else 0
            ahead.append((pool.submit(read_clip, path), size))
            pending_bytes += size
            while pending_bytes > READ_AHEAD_BYTES and len(ahead) > workers:
                future, size = ahead.popleft()
                pending_bytes -= size
                yield future.result()
        for future, _ in ahead:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def publish_clip(content: bytes, name: str, target: Path, sample_rate: int) -> None:
    """Write a mono file unchanged if it has the sample rate, else resampled with 16 bits.

    Args:
        content: the file's bytes.
        name: their origin for messages; its suffix must be that of WAV or FLAC.
        target: the file to write, in an existing folder.
        sample_rate: Hz.

    Raises:
        ValueError: it is not WAV or FLAC, is damaged, not mono, or empty.
    """
    wave, rate = _decode(content, name)
    if rate == sample_rate:
        target.write_bytes(content)
    else:
        resampled = audio.quantize(audio.resample(wave, rate, sample_rate))
        soundfile.write(target, resampled, sample_rate, subtype="PCM_16")


def _decode(content: bytes, name: str) -> tuple[Float32[np.ndarray, " S"], int]:
    if not name.lower().endswith(SUFFIXES):
        raise ValueError(f"{name}: a clip of a HEAR task must be {' or '.join(SUFFIXES)}.")
    try:
        wave, rate = audio.decode(content)
    except BadAudioError as error:
        raise ValueError(f"{name}: {error.reason}. Replace the file.") from error
    if wave.shape[1] != 1:
        raise ValueError(f"{name} has {wave.shape[1]} channels, expected 1. Mix it down first.")
    if not len(wave):
        raise ValueError(f"{name} holds no samples. Replace the file.")
    return wave[:, 0], rate


def _source_rate(task: Task, sample_rate: int) -> int:
    """Return `sample_rate` if the task has it, else its highest rate."""
    rates = [int(path.name) for path in task.folder.iterdir() if path.name.isdigit()]
    if not rates:
        raise FileNotFoundError(
            f"{task.folder} has no folder of audio, such as "
            f"{sample_rate}/{task.metadata.splits[0]}. Fetch the task again."
        )
    return sample_rate if sample_rate in rates else max(rates)
