"""Find the clips of the pre-training data that are in a HEAR task's test split, by id and audio.

By audio: `pipeline.leaks.search`. By id: clips of FSD50K, in tasks whose files are recordings of
Freesound and carry their ids.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt32

from pipeline.features.front_end import LogMel
from pipeline.features.params import LogMelParams
from pipeline.hear.tasks import audio
from pipeline.hear.tasks.task import TRAIN_VALID_TEST, Task
from pipeline.leaks import fingerprint
from pipeline.leaks.search import (
    Index,
    Match,
    MatchCriteria,
    build_index,
    count_unsearchable,
    search,
)
from pipeline.leaks.table import Leak, TaskLeaks
from pipeline.parallel.processes import map_shards

FILES_PER_JOB = 256  # a process takes seconds to start
CLIPS_PER_JOB = 4096
FREESOUND_FILES = {"fsd50k": r"(\d+)", "esc50": r"\d-(\d+)-[A-Za-z]-\d+"}  # id in the file's name
FREESOUND_SOURCES = ("fsd50k",)  # whose recording ids are those of Freesound


@dataclass(frozen=True)
class Corpus:
    """Fingerprints of the pre-training clips."""

    source: str
    shards: Sequence[Path]
    clips_per_shard: int

    def log_mel(self) -> LogMelParams:
        """Return the front end of the fingerprints."""
        return fingerprint.read(self.shards[0]).log_mel

    def clip_ids(self) -> list[str]:
        """Return the ids of all clips."""
        return list(chain.from_iterable(fingerprint.read(path).clip_id for path in self.shards))


def find_leaks(
    task: Task, corpus: Corpus, criteria: MatchCriteria, workers: int, work_folder: Path
) -> TaskLeaks:
    """Return the clips that are in the task's test split; an id decides before the audio.

    Raises:
        ValueError: a test file or a shard is damaged, or has another sample rate or front end.
    """
    log_mel, files, clip_ids = corpus.log_mel(), tested_files(task), corpus.clip_ids()
    index = _index_files(task, files, log_mel, workers)
    with tempfile.TemporaryDirectory(dir=work_folder) as scratch:
        index.save(Path(scratch))
        step = -(-CLIPS_PER_JOB // corpus.clips_per_shard)
        jobs = [corpus.shards[i : i + step] for i in range(0, len(corpus.shards), step)]
        function = partial(search_shards, index_folder=Path(scratch), criteria=criteria)
        matches = chain.from_iterable(map_shards(function, jobs, workers, task.name))
        by_audio = leaks_by_audio(list(matches), files, log_mel)
    by_id = leaks_by_id(clip_ids, corpus.source, task.name, files)
    leaks = {leak.clip_id: leak for leak in [*by_audio, *by_id]}
    return TaskLeaks(
        task=task.name,
        files=len(files),
        unchecked=count_unsearchable(index, criteria),
        clips=len(clip_ids),
        leaks=[leaks[clip_id] for clip_id in clip_ids if clip_id in leaks],
    )


def tested_files(task: Task) -> list[tuple[str, str]]:
    """Return split and name of each file that the task is tested on; with folds, of all files."""
    metadata = task.metadata
    splits = TRAIN_VALID_TEST[-1:] if metadata.split_mode == "trainvaltest" else metadata.splits
    return [(split, name) for split in splits for name in task.labels[split]]


def _index_files(
    task: Task, files: Sequence[tuple[str, str]], log_mel: LogMelParams, workers: int
) -> Index:
    """Return the index of a task's test files."""
    paths = [task.audio(log_mel.sample_rate, split) / name for split, name in files]
    jobs = [paths[i : i + FILES_PER_JOB] for i in range(0, len(paths), FILES_PER_JOB)]
    function = partial(fingerprint_files, log_mel=log_mel)
    fingerprints = map_shards(function, jobs, workers, "test files")
    return build_index(list(chain.from_iterable(fingerprints)))


def search_shards(
    paths: Sequence[Path], index_folder: Path, criteria: MatchCriteria
) -> list[tuple[str, Match]]:
    """Return the clips of some shards of fingerprints that match a test file, with the match."""
    index, matches = Index.open(index_folder), []
    for shard in map(fingerprint.read, paths):
        bounds = zip(shard.clip_id, shard.start[:-1], shard.start[1:], strict=True)
        for clip_id, first, end in bounds:
            if match := search(index, shard.values[first:end], criteria):
                matches.append((clip_id, match))
    return matches


def fingerprint_files(
    paths: Sequence[Path], log_mel: LogMelParams
) -> list[UInt32[np.ndarray, " _"]]:
    """Return the fingerprints of every frame of each file.

    Raises:
        ValueError: a file is damaged, or does not have the front end's sample rate.
    """
    torch.set_num_threads(1)  # the processes share the cores
    front_end = LogMel(log_mel)
    return [fingerprint.fingerprint(_log_mel(path, front_end)) for path in paths]


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


def leaks_by_id(
    clip_ids: Sequence[str], source: str, task: str, files: Sequence[tuple[str, str]]
) -> list[Leak]:
    """Return the clips whose recording is also a test file's, where both have Freesound's ids."""
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
    """Return matches as rows of the result."""
    hop_s = log_mel.hop_length / log_mel.sample_rate
    return [
        Leak(clip_id, *files[match.file], "audio", round(match.offset * hop_s, 3),
             round(1 - match.bit_error, 3))
        for clip_id, match in matches
    ]  # fmt: skip
