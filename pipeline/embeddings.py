"""Embeddings of a HEAR task, in the files that hear-eval-kit's predictions read.

For each split, with its clips in the order that hear-eval-kit's own embeddings have (shuffled by
one `Random(0)` per task, split after split):

    <split>.embeddings.npy             raw float32 [rows, D]: no header, despite the name
    <split>.embedding-dimensions.json  [rows, D]
    <split>.target-labels.pkl          list of label lists, one per row
    <split>.filename-timestamps.json   events only: [[file, ms], ...], one per row

and copies of task_metadata.json, labelvocabulary.csv and <split>.json. A scene task has one row
per clip, an event task one per timestamp, those of a clip together.
"""

import json
import pickle
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.hear_audio import read_clip
from pipeline.hear_tasks import METADATA, VOCABULARY, Event, Labels, Task

BATCH_SAMPLES = 120 * 16_000  # in one call of the HEAR module, unless one clip is longer
END_MS = 0.0001  # added to an event's end, so that a timestamp on it is inside


@dataclass(frozen=True)
class HearModule:
    """A module with the HEAR API and the model that it has loaded."""

    api: ModuleType
    model: nn.Module

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the audio that the model takes."""
        rate: Any = self.model.sample_rate
        return int(rate)

    def __call__(
        self, waves: Float[Tensor, "B S"], embedding_type: str
    ) -> tuple[Float32[np.ndarray, "found N D"], Float[np.ndarray, "found N"] | None]:
        """Return the embeddings of clips of equal length; with timestamps in ms for events."""
        device = next(self.model.parameters(), waves).device
        with torch.inference_mode():
            if embedding_type == "scene":
                scenes = self.api.get_scene_embeddings(waves.to(device), self.model)
                return scenes[:, None].float().cpu().numpy(), None
            found, timestamps = self.api.get_timestamp_embeddings(waves.to(device), self.model)
            return found.float().cpu().numpy(), timestamps.cpu().numpy()


def write_embeddings(task: Task, module: HearModule, folder: Path) -> None:
    """Write the embeddings of every split into an existing folder.

    Raises:
        FileNotFoundError: an audio file is missing.
        ValueError: an audio file is faulty, or the module returns something that is no embedding.
    """
    shutil.copyfile(task.folder / METADATA, folder / METADATA)
    shutil.copyfile(task.folder / VOCABULARY, folder / VOCABULARY)
    order = random.Random(0)
    for split, labels in task.labels.items():
        shutil.copyfile(task.folder / f"{split}.json", folder / f"{split}.json")
        names = list(labels)
        order.shuffle(names)
        with tqdm(total=len(names), desc=split, unit="clip", disable=None) as progress:
            _write_split(task, split, names, module, folder, progress)


def check_sample_rate(task: Task, sample_rate: int, model: str) -> None:
    """Raise a ValueError if the task's audio has not the sample rate that the model takes."""
    rates = sorted(int(path.name) for path in task.folder.iterdir() if path.name.isdigit())
    if sample_rate not in rates:
        raise ValueError(
            f"{model} takes audio of {sample_rate} Hz, but that in {task.folder} has "
            f"{', '.join(map(str, rates)) or 'no'} Hz. Run `dvc repro`, so that both have "
            "logmel.sample_rate."
        )


def frame_labels(
    events: Sequence[Event], timestamps: Float[np.ndarray, " N"]
) -> list[list[str | int]]:
    """Return the labels of the events that each timestamp lies in, starts and ends included."""
    labels: list[list[str | int]] = [[] for _ in timestamps]
    for event in events:
        first, end = np.searchsorted(timestamps, [event.start, event.end + END_MS])
        for row in labels[first:end]:
            if event.label not in row:
                row.append(event.label)
    return labels


def _write_split(
    task: Task, split: str, names: Sequence[str], module: HearModule, folder: Path, progress: tqdm
) -> None:
    labels: list[list[str | int]] = []
    stamps: list[tuple[str, float]] = []
    dim = 0
    with (folder / f"{split}.embeddings.npy").open("wb") as file:
        for batch in _batches(task.audio(module.sample_rate, split), names, module.sample_rate):
            waves = torch.from_numpy(np.stack(list(batch.values())))
            embeddings, timestamps = module(waves, task.metadata.embedding_type)
            _refuse_faulty(embeddings, list(batch), f"{task.name}, split {split}")
            file.write(embeddings.tobytes())
            dim = embeddings.shape[-1]
            for i, name in enumerate(batch):
                found = None if timestamps is None else timestamps[i]
                labels += _row_labels(task.labels[split][name], found)
                stamps += [] if found is None else [(name, time) for time in found.tolist()]
            progress.update(len(batch))
    (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps([len(labels), dim]))
    (folder / f"{split}.target-labels.pkl").write_bytes(pickle.dumps(labels))
    if task.metadata.embedding_type == "event":
        (folder / f"{split}.filename-timestamps.json").write_text(json.dumps(stamps))


def _row_labels(
    labels: Labels, timestamps: Float[np.ndarray, " N"] | None
) -> list[list[str | int]]:
    """Return the labels of each row of one clip."""
    events = [label for label in labels if isinstance(label, Event)]
    if timestamps is None:
        return [[label for label in labels if not isinstance(label, Event)]]
    return frame_labels(events, timestamps)


def _batches(
    folder: Path, names: Sequence[str], sample_rate: int
) -> Iterator[dict[str, Float32[np.ndarray, " S"]]]:
    """Yield the clips in order, as many at a time as follow each other with one length."""
    batch: dict[str, Float32[np.ndarray, " S"]] = {}
    for name in names:
        wave, rate = read_clip(folder / name)
        if rate != sample_rate:
            raise ValueError(
                f"{folder / name} has {rate} Hz, the model takes {sample_rate} Hz. "
                "Run `dvc repro hear_tasks`."
            )
        samples = sum(map(len, batch.values())) + len(wave)
        if batch and (len(next(iter(batch.values()))) != len(wave) or samples > BATCH_SAMPLES):
            yield batch
            batch = {}
        batch[name] = wave
    yield batch


def _refuse_faulty(
    embeddings: Float32[np.ndarray, "B N D"], names: Sequence[str], where: str
) -> None:
    if len(embeddings) != len(names):
        raise ValueError(f"{where}: {len(embeddings)} embeddings for {len(names)} clips.")
    faulty = ~np.isfinite(embeddings).all(axis=(1, 2))
    if faulty.any():
        raise ValueError(
            f"{where}, file {names[int(faulty.argmax())]!r}: its embedding is not finite. The "
            "encoder has diverged; see the curves in data/pretrain/history.csv."
        )
