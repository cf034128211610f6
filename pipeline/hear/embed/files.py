"""The embeddings of a HEAR task on disk, in the format that hear-eval-kit's predictions read.

One folder per task and model. For each split:

    <split>.embeddings.npy             raw float32 [rows, D]: no header, despite the name
    <split>.embedding-dimensions.json  [rows, D]
    <split>.target-labels.pkl          list of label lists, one per row
    <split>.filename-timestamps.json   events only: [[file, ms], ...], one per row

and copies of task_metadata.json, labelvocabulary.csv and <split>.json. A scene task has one row
per clip, an event task one per timestamp; the rows of a clip are consecutive.
"""

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline.hear.tasks.task import existing

BLOCK = 2**14  # rows that are read and checked at a time
REMEDY = "Run `dvc repro` again to rebuild the embeddings."

Labels = list[list[str | int]]  # of each row


def embeddings_path(folder: Path, split: str) -> Path:
    """Return the path of a split's embeddings."""
    return folder / f"{split}.embeddings.npy"


def write_index(
    folder: Path,
    split: str,
    size: int | None,
    labels: Labels,
    timestamps: Sequence[tuple[str, float]] | None,
) -> None:
    """Write all files of a split but for its embeddings.

    Args:
        size: D; None if the split has no rows.
        labels: of each row.
        timestamps: file and ms of each row of an event task, None for scenes.
    """
    (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps([len(labels), size]))
    (folder / f"{split}.target-labels.pkl").write_bytes(pickle.dumps(labels))
    if timestamps is not None:
        (folder / f"{split}.filename-timestamps.json").write_text(json.dumps(timestamps))


def read_shape(folder: Path, split: str) -> tuple[int, int]:
    """Return rows and dimensions of a split.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it does not hold two positive integers.
    """
    path = folder / f"{split}.embedding-dimensions.json"
    content = json.loads(existing(path).read_text())
    if not (
        isinstance(content, list)
        and len(content) == 2
        and all(isinstance(number, int) and number > 0 for number in content)
    ):
        raise ValueError(f"{path}: must be [rows, dimensions], got {str(content)[:80]}. {REMEDY}")
    return content[0], content[1]


def read_embeddings(folder: Path, split: str, out: Float32[np.ndarray, "N D"]) -> None:
    """Read the embeddings of a split into an array of its shape.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has another size, or an embedding is not finite.
    """
    path = existing(embeddings_path(folder, split))
    size = path.stat().st_size
    if size != out.nbytes:
        raise ValueError(
            f"{path} has {size} bytes, expected {out.nbytes}: {out.shape[0]} float32 embeddings of "
            f"{out.shape[1]} dimensions. {REMEDY}"
        )
    with path.open("rb") as file:
        for start in range(0, len(out), BLOCK):
            block = out[start : start + BLOCK]
            block[:] = np.fromfile(file, np.float32, block.size).reshape(block.shape)
            faulty = ~np.isfinite(block).all(axis=1)
            if faulty.any():
                row, values = start + int(faulty.argmax()), block[faulty][0]
                raise ValueError(
                    f"{path}, row {row} (from 0): the embedding has the value "
                    f"{values[~np.isfinite(values)][0]}, all must be finite. The encoder has "
                    "diverged or the file is damaged: pre-train again, or run `dvc repro embed`."
                )


def read_labels(folder: Path, split: str, rows: int) -> Labels:
    """Return the labels of each row of a split.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds anything but lists of labels, or another number of rows.
    """
    path = folder / f"{split}.target-labels.pkl"
    try:
        labels: Labels = _PlainUnpickler(io.BytesIO(existing(path).read_bytes())).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is damaged or not a list of labels ({error}). {REMEDY}") from None
    if len(labels) != rows:
        raise ValueError(f"{path}: labels of {len(labels)} rows for {rows} embeddings. {REMEDY}")
    return labels


def read_timestamps(folder: Path, split: str, rows: int) -> list[tuple[str, float]]:
    """Return file and time in ms of each row of an event task's split.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has another number of rows.
    """
    path = timestamps_path(folder, split)
    timestamps = json.loads(existing(path).read_text())
    if len(timestamps) != rows:
        raise ValueError(f"{path}: {len(timestamps)} timestamps for {rows} embeddings. {REMEDY}")
    return [(str(name), float(time_ms)) for name, time_ms in timestamps]


def timestamps_path(folder: Path, split: str) -> Path:
    """Return the path of a split's timestamps."""
    return folder / f"{split}.filename-timestamps.json"


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, text and numbers only: a pickle may come from a remote."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")
