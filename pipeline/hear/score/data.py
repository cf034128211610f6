"""A task's embeddings and labels in memory, checked before anything is trained.

All splits of a task are one array, end to end; `TaskData.rows` says where each split is. Rows keep
their stored order, since hear-eval-kit does not shuffle them either, although it means to: it
compares the list of training splits with the string "train".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.hear.embed import files
from pipeline.hear.embed.files import REMEDY
from pipeline.hear.score.events import FileFrames, group_by_file
from pipeline.hear.score.protocol import Fold, Hyperparameters
from pipeline.hear.tasks.task import Event, Task, read_task


@dataclass(frozen=True)
class TaskData:
    """Embeddings and labels of a task; `frames` of event tasks only."""

    task: Task
    x: Float32[np.ndarray, "N D"]
    y: UInt8[np.ndarray, "N C"]  # 1: the row has the label
    rows: Mapping[str, range]  # of each split
    frames: Mapping[str, Sequence[FileFrames]]  # of each file of each split

    def rows_of(self, split: str) -> slice:
        """Return the rows of a split."""
        return slice(self.rows[split].start, self.rows[split].stop)

    def select(self, names: Sequence[str]) -> np.ndarray:
        """Return the row numbers of several splits, in order."""
        return np.concatenate([np.asarray(self.rows[name]) for name in names])


def read_data(folder: Path) -> TaskData:
    """Read a folder of embeddings (`pipeline.hear.embed.files`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files do not belong together, an embedding is not finite, or a label is not in
            the vocabulary. The message names file and row.
    """
    task = read_task(folder)
    names = task.metadata.splits
    shapes = {name: files.read_shape(folder, name) for name in names}
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
        own = slice(rows[name].start, rows[name].stop)
        files.read_embeddings(folder, name, x[own])
        _mark_labels(folder, name, task, y[own])
    frames: dict[str, list[FileFrames]] = {}
    if task.metadata.embedding_type == "event":
        for name in names:
            timestamps = files.read_timestamps(folder, name, len(rows[name]))
            frames[name] = group_by_file(timestamps, files.timestamps_path(folder, name))
    return TaskData(task, x, y, rows, frames)


def check_batches(data: TaskData, grid: Sequence[Hyperparameters], folds: Sequence[Fold]) -> None:
    """Refuse training splits that leave a batch of one row, which batch norm cannot normalize.

    Raises:
        ValueError: there is such a batch; hear-eval-kit fails on it as well.
    """
    sizes = sorted({hparams["batch_size"] for hparams in grid if hparams["hidden_layers"]})
    for fold in folds:
        count = sum(len(data.rows[name]) for name in fold.train)
        for size in sizes:
            if count % size == 1:
                names = ", ".join(f"{name}.embeddings.npy" for name in fold.train)
                raise ValueError(
                    f"{data.task.name}: {names} in {data.task.folder} have {count} rows to train "
                    f"on, one more than a multiple of batch_size = {size}: the last batch would "
                    "have one row, which batch norm refuses (in hear-eval-kit as well). Remove a "
                    f"file from {fold.train[-1]}.json, or set another batch_size in "
                    "'evaluation_params.task_specific_param_grid' of task_metadata.json."
                )


def _mark_labels(folder: Path, split: str, task: Task, y: UInt8[np.ndarray, "N C"]) -> None:
    """Mark the labels of each row in `y`, which is all zeros."""
    path = files.labels_path(folder, split)
    index = {label: i for i, label in enumerate(task.vocabulary)}
    for row, labels in enumerate(files.read_labels(folder, split, len(y))):
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


def reference_events(task: Task, split: str) -> dict[str, list[dict[str, object]]]:
    """Return the events of each file of a split: label, start and end in ms."""
    return {
        name: [event.model_dump() for event in events if isinstance(event, Event)]
        for name, events in task.labels[split].items()
    }
