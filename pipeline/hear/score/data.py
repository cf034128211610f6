"""A task's embeddings and labels in memory, checked before anything is trained.

All rows of a task are one array, split after split; `TaskData.rows` says where each split is. The
rows of a split keep the order in which they are stored: hear-eval-kit does not shuffle, although it
means to (it compares the list of training splits with the text "train").
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.hear.score.events import FileFrames, files_of_frames
from pipeline.hear.score.protocol import Fold, Hyperparameters
from pipeline.hear.tasks.task import Event, Task, existing, read_task

SLICE = 2**14  # rows that are looked at together
REMEDY = "Run `dvc repro` again, so that the embeddings are made anew."


@dataclass(frozen=True)
class TaskData:
    """Embeddings and labels of a task; `frames` of event tasks only."""

    task: Task
    x: Float32[np.ndarray, "N D"]
    y: UInt8[np.ndarray, "N C"]  # 1: the row has the label
    rows: Mapping[str, range]  # of each split
    frames: Mapping[str, Sequence[FileFrames]]  # files of each split

    def place(self, split: str) -> slice:
        """Return where a split's rows are."""
        return slice(self.rows[split].start, self.rows[split].stop)

    def select(self, names: Sequence[str]) -> np.ndarray:
        """Return the numbers of the rows of some splits, one split after the other."""
        return np.concatenate([np.asarray(self.rows[name]) for name in names])


def read_data(folder: Path) -> TaskData:
    """Read a folder of `pipeline.hear.embed.embed`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files do not fit together, an embedding is not finite, or a label is not in the
            vocabulary. The message names file and row.
    """
    task = read_task(folder)
    names = task.metadata.splits
    shapes = {name: _shape(folder / f"{name}.embedding-dimensions.json") for name in names}
    dims = {shape[1] for shape in shapes.values()}
    if len(dims) != 1:
        raise ValueError(
            f"{folder}, *.embedding-dimensions.json: embeddings of {sorted(dims)} dimensions, "
            f"which must be the same in all splits. {REMEDY}"
        )
    ends = np.cumsum([shape[0] for shape in shapes.values()]).tolist()
    rows = {name: range(end - shapes[name][0], end) for name, end in zip(names, ends, strict=True)}
    x = np.empty((ends[-1], dims.pop()), np.float32)
    y = np.zeros((ends[-1], len(task.vocabulary)), np.uint8)
    for name in names:
        place = slice(rows[name].start, rows[name].stop)
        _read_embeddings(folder / f"{name}.embeddings.npy", x[place])
        _read_labels(folder / f"{name}.target-labels.pkl", task, y[place])
    frames = {}
    if task.metadata.embedding_type == "event":
        frames = {name: _read_frames(folder, name, len(rows[name])) for name in names}
    return TaskData(task, x, y, rows, frames)


def check_batches(data: TaskData, grid: Sequence[Hyperparameters], splits: Sequence[Fold]) -> None:
    """Refuse a training split that leaves a batch of one row, which batch norm cannot take.

    Raises:
        ValueError: there is one; hear-eval-kit fails there as well.
    """
    sizes = sorted({hparams["batch_size"] for hparams in grid if hparams["hidden_layers"]})
    for split in splits:
        count = sum(len(data.rows[name]) for name in split.train)
        for size in sizes:
            if count % size == 1:
                files = ", ".join(f"{name}.embeddings.npy" for name in split.train)
                raise ValueError(
                    f"{data.task.name}: {files} in {data.task.folder} have {count} rows to train "
                    f"on, one more than a multiple of batch_size = {size}, so that the last batch "
                    "has a single row, which batch norm refuses (in hear-eval-kit as well). Take a "
                    f"file out of {split.train[-1]}.json, or set another batch_size in "
                    "'evaluation_params.task_specific_param_grid' of task_metadata.json."
                )


def _shape(path: Path) -> tuple[int, int]:
    content = json.loads(existing(path).read_text())
    if not (
        isinstance(content, list)
        and len(content) == 2
        and all(isinstance(number, int) and number > 0 for number in content)
    ):
        raise ValueError(f"{path}: must be [rows, dimensions], got {str(content)[:80]}. {REMEDY}")
    return content[0], content[1]


def _read_embeddings(path: Path, x: Float32[np.ndarray, "N D"]) -> None:
    size = existing(path).stat().st_size
    if size != x.nbytes:
        raise ValueError(
            f"{path} has {size} bytes, but {x.nbytes} belong to {x.shape[0]} float32 embeddings of "
            f"{x.shape[1]} dimensions. {REMEDY}"
        )
    with path.open("rb") as file:
        for start in range(0, len(x), SLICE):
            part = x[start : start + SLICE]
            part[:] = np.fromfile(file, np.float32, part.size).reshape(part.shape)
            faulty = ~np.isfinite(part).all(axis=1)
            if faulty.any():
                row, value = start + int(faulty.argmax()), part[faulty][0]
                raise ValueError(
                    f"{path}, row {row} (from 0): the embedding has the value "
                    f"{value[~np.isfinite(value)][0]}, all must be finite. The encoder has "
                    "diverged, or the file is damaged; train anew, or run `dvc repro embed` again."
                )


def _read_labels(path: Path, task: Task, y: UInt8[np.ndarray, "N C"]) -> None:
    """Mark the labels of each row in `y`, which is all zeros."""
    content = pickle.loads(existing(path).read_bytes())
    if len(content) != len(y):
        raise ValueError(f"{path}: labels of {len(content)} rows for {len(y)} embeddings. {REMEDY}")
    index = {label: i for i, label in enumerate(task.vocabulary)}
    for row, labels in enumerate(content):
        for label in labels:
            if str(label) not in index:
                raise ValueError(
                    f"{path}, row {row} (from 0): label {str(label)!r} is not in "
                    f"labelvocabulary.csv, which has {', '.join(task.vocabulary[:20])}. {REMEDY}"
                )
            y[row, index[str(label)]] = 1
    if task.metadata.prediction_type == "multiclass":
        count = y.sum(axis=1)
        if (count != 1).any():
            row = int((count != 1).argmax())
            raise ValueError(
                f"{path}, row {row} (from 0): {count[row]} labels, one is expected, since "
                f"prediction_type in task_metadata.json is multiclass. {REMEDY}"
            )


def _read_frames(folder: Path, split: str, count: int) -> list[FileFrames]:
    path = folder / f"{split}.filename-timestamps.json"
    stamps = json.loads(existing(path).read_text())
    if len(stamps) != count:
        raise ValueError(f"{path}: {len(stamps)} timestamps for {count} embeddings. {REMEDY}")
    return files_of_frames(stamps, path)


def events_of(task: Task, split: str) -> dict[str, list[dict[str, object]]]:
    """Return the events that a split's files have: label, start and end in ms."""
    return {
        name: [event.model_dump() for event in events if isinstance(event, Event)]
        for name, events in task.labels[split].items()
    }
