"""The embeddings of a HEAR task on disk, nearly in the format of hear-eval-kit.

One folder per task and model. For each split:

    <split>.embeddings.npy             raw float32 [rows, D]: no header, despite the name
    <split>.embedding-dimensions.json  [rows, D]
    <split>.embeddings.sha256          SHA-256 of that file, as `sha256sum --check` reads it
    <split>.target-labels.json         list of label lists, one per row
    <split>.filename-timestamps.json   events only: [[file, ms], ...], one per row

and copies of task_metadata.json, labelvocabulary.csv and <split>.json. A scene task has one row
per clip, an event task one per timestamp; the rows of a clip are consecutive. hear-eval-kit
reads the labels from a pickle, which can run code, so it is written from them for it alone
(`pickle_labels`): embeddings may come from a remote.
"""

import hashlib
import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from pipeline.core.files import sha256
from pipeline.hear.tasks.task import METADATA, VOCABULARY, require_file

LABELS = "target-labels.json"
FOR_HEAREVAL = (  # of each split
    "json",
    "embedding-dimensions.json",
    "embeddings.npy",
    "filename-timestamps.json",
)
BLOCK = 2**14  # rows that are read and checked at a time
REMEDY = "Run `dvc repro` again to rebuild the embeddings."

Labels = list[list[str | int]]  # of each row


@dataclass(frozen=True)
class ClipRows:
    """The rows of one clip."""

    position: int  # of the clip in its split
    name: str  # of its audio file
    embeddings: Float32[np.ndarray, "N D"]
    labels: Labels
    timestamps: Float[np.ndarray, " N"] | None  # ms; None: a scene, N = 1


def write_split(
    folder: Path, split: str, clips: Iterable[ClipRows], count: int, embedding_type: str
) -> int | None:
    """Write the files of a split; return D, or None if there are no clips.

    Args:
        clips: all clips of the split: scenes in any order, those of an event task in theirs.
        count: of the clips.
        embedding_type: scene | event.
    """
    labels: list[Labels] = [[] for _ in range(count)]
    timestamps: list[tuple[str, float]] = []
    size = None
    with embeddings_path(folder, split).open("wb") as file:
        for clip in clips:
            if clip.timestamps is None:
                file.seek(clip.position * clip.embeddings.nbytes)
            else:
                timestamps += [(clip.name, time_ms) for time_ms in clip.timestamps.tolist()]
            file.write(clip.embeddings.tobytes())
            labels[clip.position] = clip.labels
            size = clip.embeddings.shape[1]
    rows = [row for clip_labels in labels for row in clip_labels]
    _path(folder, split, "embedding-dimensions.json").write_text(json.dumps([len(rows), size]))
    labels_path(folder, split).write_text(json.dumps(rows))
    embeddings = embeddings_path(folder, split)
    checksum_path(folder, split).write_text(f"{sha256(embeddings)}  {embeddings.name}\n")
    if embedding_type == "event":
        _path(folder, split, "filename-timestamps.json").write_text(json.dumps(timestamps))
    return size


def read_shape(folder: Path, split: str) -> tuple[int, int]:
    """Return rows and dimensions of a split.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it does not hold two positive integers.
    """
    path = _path(folder, split, "embedding-dimensions.json")
    content = json.loads(require_file(path).read_text())
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
        ValueError: it has another size or SHA-256, or an embedding is not finite.
    """
    path = require_file(embeddings_path(folder, split))
    expected = require_file(checksum_path(folder, split)).read_text().partition(" ")[0]
    size = path.stat().st_size
    if size != out.nbytes:
        raise ValueError(
            f"{path} has {size} bytes, expected {out.nbytes}: {out.shape[0]} float32 embeddings of "
            f"{out.shape[1]} dimensions. {REMEDY}"
        )
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, len(out), BLOCK):
            block = out[start : start + BLOCK]
            block[:] = np.fromfile(file, np.float32, block.size).reshape(block.shape)
            checksum.update(block.data)
            faulty = ~np.isfinite(block).all(axis=1)
            if faulty.any():
                row, values = start + int(faulty.argmax()), block[faulty][0]
                raise ValueError(
                    f"{path}, row {row} (from 0): the embedding has the value "
                    f"{values[~np.isfinite(values)][0]}, all must be finite. The encoder has "
                    "diverged or the file is damaged: pre-train again, or run `dvc repro embed`."
                )
    if checksum.hexdigest() != expected:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {checksum.hexdigest()}, expected {expected!r} as "
            f"in {checksum_path(folder, split).name}. {REMEDY}"
        )


def read_labels(folder: Path, split: str, rows: int) -> Labels:
    """Return the labels of each row of a split.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds anything but lists of labels, or another number of rows.
    """
    path = require_file(labels_path(folder, split))
    try:
        labels: Labels = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not a list of labels ({error}). {REMEDY}") from None
    if not isinstance(labels, list) or not all(_are_labels(row) for row in labels):
        raise ValueError(f"{path} must be a list of lists of text or integers. {REMEDY}")
    if len(labels) != rows:
        raise ValueError(f"{path}: labels of {len(labels)} rows for {rows} embeddings. {REMEDY}")
    return labels


def link_for_heareval(folder: Path, splits: Sequence[str], target: Path) -> None:
    """Link what hear-eval-kit reads into an empty folder, and write the labels there as pickles.

    Other files are left out: hear-eval-kit would read a pickle among them, or write into them.

    Raises:
        FileNotFoundError, ValueError: see `read_shape` and `read_labels`.
    """
    own = [f"{split}.{kind}" for split in splits for kind in FOR_HEAREVAL]
    for path in [folder / name for name in (METADATA, VOCABULARY, *own)]:
        if path.exists():  # timestamps: of events only
            (target / path.name).symlink_to(path.resolve())
    pickle_labels(folder, splits, target)


def pickle_labels(folder: Path, splits: Sequence[str], target: Path) -> None:
    """Write the labels of some splits into another folder, as hear-eval-kit reads them.

    Raises:
        FileNotFoundError, ValueError: see `read_shape` and `read_labels`.
    """
    for split in splits:
        labels = read_labels(folder, split, read_shape(folder, split)[0])
        _path(target, split, "target-labels.pkl").write_bytes(pickle.dumps(labels))


def read_timestamps(folder: Path, split: str, rows: int) -> list[tuple[str, float]]:
    """Return file and time in ms of each row of an event task's split.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has another number of rows.
    """
    path = require_file(timestamps_path(folder, split))
    timestamps = json.loads(path.read_text())
    if len(timestamps) != rows:
        raise ValueError(f"{path}: {len(timestamps)} timestamps for {rows} embeddings. {REMEDY}")
    return [(str(name), float(time_ms)) for name, time_ms in timestamps]


def labels_path(folder: Path, split: str) -> Path:
    """Return the path of a split's labels."""
    return _path(folder, split, LABELS)


def embeddings_path(folder: Path, split: str) -> Path:
    """Return the path of a split's embeddings."""
    return _path(folder, split, "embeddings.npy")


def checksum_path(folder: Path, split: str) -> Path:
    """Return the path of the SHA-256 of a split's embeddings."""
    return _path(folder, split, "embeddings.sha256")


def timestamps_path(folder: Path, split: str) -> Path:
    """Return the path of a split's timestamps."""
    return _path(folder, split, "filename-timestamps.json")


def _path(folder: Path, split: str, kind: str) -> Path:
    return folder / f"{split}.{kind}"


def _are_labels(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(label, str | int) for label in row)
