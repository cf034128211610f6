"""Embeddings of a HEAR task by any module with the HEAR API.

The rows of a split are in the order of hear-eval-kit's own embeddings: all splits of a task, in
turn, are shuffled by one `Random(0)`. Its calls of the model take the clips in the order of
<split>.json, which matters only where a clip's embedding depends on the other clips of the call.
"""

import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.hear.api.inputs import device_of
from pipeline.hear.embed import files
from pipeline.hear.embed.cache import EmbeddingCache
from pipeline.hear.embed.checks import check_size, checked_output
from pipeline.hear.tasks.audio import read_clips
from pipeline.hear.tasks.task import METADATA, VOCABULARY, Event, Labels, Metadata, Task

BATCH_SAMPLES = 120 * 16_000  # in one call of the HEAR module, unless a clip is longer
END_MS = 0.0001  # added to an event's end, so that it includes a timestamp there

Decoded = tuple[int, tuple[Float32[np.ndarray, " S"], int]]  # position of a file, samples, rate
Embedded = tuple[int, Float32[np.ndarray, "N D"], Float[np.ndarray, " N"] | None]


@dataclass(frozen=True)
class HearModule:
    """A module with the HEAR API and the model that it loaded."""

    api: ModuleType
    model: nn.Module

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the audio that the model takes."""
        rate: Any = self.model.sample_rate
        return int(rate)

    @property
    def batch_dependent(self) -> bool:
        """Whether a clip's embedding depends on the other clips of the call."""
        return bool(getattr(self.model, "batch_dependent", False))

    def __call__(self, waves: Float[Tensor, "B S"], embedding_type: str) -> tuple[Any, Any]:
        """Return the module's output for clips of equal length: embeddings, then timestamps.

        Timestamps, in ms, are None for scenes.
        """
        waves = waves.to(device_of(self.model))
        with torch.inference_mode():
            if embedding_type == "scene":
                return self.api.get_scene_embeddings(waves, self.model), None
            output: tuple[Any, Any] = self.api.get_timestamp_embeddings(waves, self.model)
            return output


def write_embeddings(
    task: Task,
    module: HearModule,
    folder: Path,
    workers: int = 1,
    cache: EmbeddingCache | None = None,
) -> None:
    """Write the embeddings of every split into an existing folder.

    Args:
        workers: threads that decode audio.
        cache: of scene embeddings, which tasks with the same audio share.

    Raises:
        FileNotFoundError: an audio file is missing.
        ValueError: an audio file is invalid, or the module returns invalid embeddings.
    """
    shutil.copyfile(task.folder / METADATA, folder / METADATA)
    shutil.copyfile(task.folder / VOCABULARY, folder / VOCABULARY)
    order = random.Random(0)
    batch_size = heareval_batch_size(task.metadata, module) if module.batch_dependent else None
    embedding_type, size = task.metadata.embedding_type, None
    for split, labels in task.labels.items():
        shutil.copyfile(task.folder / f"{split}.json", folder / f"{split}.json")
        stored = list(labels)
        order.shuffle(stored)
        # Batches of one event clip need not keep the order of the JSON: no dropout is active there.
        calls_matter = batch_size is not None and (batch_size > 1 or embedding_type == "scene")
        names = list(labels) if calls_matter else stored
        paths = [task.audio(module.sample_rate, split) / name for name in names]
        clips = embed_files(paths, module, embedding_type, workers, batch_size, cache)
        progress = tqdm(clips, split, len(names), unit="clip", disable=None)
        rows = _clip_rows(task, split, names, stored, iter(progress), size)
        rows = _sorted(rows) if embedding_type == "event" else rows
        size = files.write_split(folder, split, rows, len(names), embedding_type)


def embed_files(
    paths: Sequence[Path],
    module: HearModule,
    embedding_type: str,
    workers: int = 1,
    batch_size: int | None = None,
    cache: EmbeddingCache | None = None,
) -> Iterator[Embedded]:
    """Yield each file's position in `paths`, its embeddings and, for events, timestamps in ms.

    Scenes come in any order, since files of one length share a call; events in the order of the
    files. With `batch_size`, each call has that many consecutive files.

    Raises:
        FileNotFoundError: an audio file is missing.
        ValueError: an audio file is invalid, or the module returns invalid embeddings.
    """
    order = list(range(len(paths)))
    if embedding_type == "scene" and batch_size is None:  # a WAV's size gives its length
        order.sort(key=lambda i: paths[i].stat().st_size if paths[i].exists() else 0)
    clips = zip(order, read_clips([paths[i] for i in order], workers), strict=True)
    cached: list[Embedded] = []
    new = _not_cached(clips, cache, cached) if cache else clips
    for batch in _batches(new, paths, module.sample_rate, batch_size):
        waves = torch.from_numpy(np.stack(list(batch.values())))
        output = module(waves, embedding_type)
        own_paths = [paths[i] for i in batch]
        duration_ms = 1000 * waves.shape[-1] / module.sample_rate
        embeddings, timestamps = checked_output(*output, embedding_type, own_paths, duration_ms)
        for row, (i, wave) in enumerate(batch.items()):
            if cache:
                cache.put(wave, embeddings[row])
            yield i, embeddings[row], None if timestamps is None else timestamps[row]
        yield from cached
        cached.clear()
    yield from cached


def _not_cached(
    clips: Iterator[Decoded], cache: EmbeddingCache, cached: list[Embedded]
) -> Iterator[Decoded]:
    """Yield the clips that are not in the cache; append the others' embeddings to `cached`."""
    for i, (wave, rate) in clips:
        entry = cache.get(wave)
        if entry is None:
            yield i, (wave, rate)
        else:
            cached.append((i, entry[0], None))


def check_sample_rate(task: Task, sample_rate: int, model: str, is_fixed: bool = False) -> None:
    """Raise a ValueError if the task's audio does not have the model's sample rate.

    Args:
        is_fixed: the model takes no other one, whatever logmel.sample_rate is.
    """
    rates = sorted(int(path.name) for path in task.folder.iterdir() if path.name.isdigit())
    if sample_rate in rates:
        return
    only, remedy = "", "Run `dvc repro` to give both logmel.sample_rate."
    if is_fixed:
        only = " only"
        remedy = (
            f"Set logmel.sample_rate to {sample_rate}, with which features and encoders are "
            "recomputed; or remove the model from hear.models; or, for a HEAR module, name one in "
            "hear.module.import that resamples its audio itself."
        )
    raise ValueError(
        f"{model} takes audio of {sample_rate} Hz{only}, but that in {task.folder} has "
        f"{', '.join(map(str, rates)) or 'no'} Hz. {remedy}"
    )


def frame_labels(
    events: Sequence[Event], timestamps: Float[np.ndarray, " N"]
) -> list[list[str | int]]:
    """Return the labels of the events at each timestamp, including their starts and ends."""
    labels: list[list[str | int]] = [[] for _ in timestamps]
    for event in events:
        first, end = np.searchsorted(timestamps, [event.start, event.end + END_MS])
        for row in labels[first:end]:
            if event.label not in row:
                row.append(event.label)
    return labels


def _clip_rows(
    task: Task,
    split: str,
    names: Sequence[str],
    stored: Sequence[str],
    clips: Iterator[Embedded],
    size: int | None,
) -> Iterator[files.ClipRows]:
    """Yield the rows of each clip, whose embeddings must be of `size`, if earlier ones set it.

    Args:
        names: of the files in the order in which they were passed to the model.
        stored: the same in the order of their rows.
    """
    positions = {name: i for i, name in enumerate(stored)}
    for i, embeddings, timestamps in clips:
        check_size(embeddings, size, f"{task.name}: an embedding of {split}/{names[i]}")
        size = embeddings.shape[1]
        labels = _row_labels(task.labels[split][names[i]], timestamps)
        yield files.ClipRows(positions[names[i]], names[i], embeddings, labels, timestamps)


def _sorted(clips: Iterable[files.ClipRows]) -> Iterator[files.ClipRows]:
    """Yield clips by position; those that come before their turn wait in memory."""
    early: dict[int, files.ClipRows] = {}
    turn = 0
    for clip in clips:
        early[clip.position] = clip
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _row_labels(
    labels: Labels, timestamps: Float[np.ndarray, " N"] | None
) -> list[list[str | int]]:
    """Return the labels of each row of one clip."""
    events = [label for label in labels if isinstance(label, Event)]
    if timestamps is None:
        return [[label for label in labels if not isinstance(label, Event)]]
    return frame_labels(events, timestamps)


def _batches(
    clips: Iterable[Decoded],
    paths: Sequence[Path],
    sample_rate: int,
    size: int | None,
) -> Iterator[dict[int, Float32[np.ndarray, " S"]]]:
    """Yield batches of consecutive clips of one length, keyed by position."""
    batch: dict[int, Float32[np.ndarray, " S"]] = {}
    for i, (wave, rate) in clips:
        if rate != sample_rate:
            raise ValueError(
                f"{paths[i]} has {rate} Hz, the model takes {sample_rate} Hz. "
                "Run `dvc repro hear_tasks`."
            )
        full = len(batch) == size if size else (len(batch) + 1) * len(wave) > BATCH_SAMPLES
        if batch and (full or len(next(iter(batch.values()))) != len(wave)):
            yield batch
            batch = {}
        batch[i] = wave
    if batch:
        yield batch


def heareval_batch_size(metadata: Metadata, module: HearModule) -> int:
    """Return how many clips hear-eval-kit passes to a module at once."""
    if metadata.sample_duration is None:
        return 1
    return max(1, int(0.7 * 120 / metadata.sample_duration * 16_000 / module.sample_rate))
