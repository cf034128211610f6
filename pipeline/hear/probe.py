"""Quick scores of an encoder: two small classifiers on a task's scene embeddings.

They train on the training split and are scored on the validation split. The test split is not
read, so that choosing an epoch by these scores does not bias its HEAR score. In a k-fold task the
first fold is the validation split and the others train. There each fold is also tested once, so
such a choice does favor the final score a little.

    knn      share of the nearest training clips, by cosine distance, that have a label
    linear   logistic regression; one per label if a clip may have several

Embeddings are standardized by the training split's statistics. The score is the accuracy or, if a
clip may have several labels, the mean average precision over the labels in the validation split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.encoders.snapshots import find_snapshots
from pipeline.hear.embed import files
from pipeline.hear.embed.embed import HearModule, write_embeddings
from pipeline.hear.tasks.task import Event, Task

COLUMNS = ["epoch", "knn", "linear"]  # of the table of scores
MAX_ITERATIONS = 1000  # of the solver; about 50 are needed


@dataclass(frozen=True)
class EmbeddedSplit:
    """Embeddings of clips and the labels of each."""

    x: Float[np.ndarray, "N D"]
    y: Bool[np.ndarray, "N L"]


def encoder_folders(pretrain: Path, random: Path) -> dict[int, Path]:
    """Return the folders of the initial encoder, the snapshots and the final encoder, by epoch."""
    last = int(pd.read_csv(pretrain / "epochs.csv")["epoch"].iloc[-1])
    return {0: random, **find_snapshots(pretrain), last: pretrain}


def training_and_validation(task: Task) -> tuple[list[str], str]:
    """Return the names of the splits to train on and of the one to score on.

    Raises:
        ValueError: it is an event task.
    """
    if task.metadata.embedding_type == "event":
        raise ValueError(f"probe.tasks: {task.name} is an event task; only scenes are probed.")
    if task.metadata.split_mode == "trainvaltest":
        return ["train"], "valid"
    first, *others = task.metadata.splits
    return others, first


def embed_splits(
    task: Task, module: HearModule, scratch: Path, workers: int = 1
) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    """Return the training and the validation split of a task, embedded.

    Args:
        scratch: an existing folder for the embeddings.
        workers: threads that decode audio.

    Raises:
        FileNotFoundError: an audio file is missing.
        ValueError: it is an event task, an audio file is invalid, or an embedding is not finite.
    """
    train, valid = training_and_validation(task)
    labels = {split: task.labels[split] for split in (*train, valid)}
    write_embeddings(replace(task, labels=labels), module, scratch, workers)
    rows = [row for clips in labels.values() for row in clips.values()]
    vocabulary = sorted({str(x) for row in rows for x in row if not isinstance(x, Event)})
    return _read(scratch, train, vocabulary), _read(scratch, [valid], vocabulary)


def _read(folder: Path, splits: Sequence[str], vocabulary: Sequence[str]) -> EmbeddedSplit:
    """Return the rows of several splits, in order."""
    parts, labels = [], []
    for split in splits:
        part = np.empty(files.read_shape(folder, split), np.float32)
        files.read_embeddings(folder, split, part)
        parts.append(part)
        labels += [set(map(str, row)) for row in files.read_labels(folder, split, len(part))]
    y = np.array([[label in row for label in vocabulary] for row in labels])
    return EmbeddedSplit(np.concatenate(parts), y)


def score(
    train: EmbeddedSplit, valid: EmbeddedSplit, multilabel: bool, neighbors: int, inverse_l2: float
) -> dict[str, float]:
    """Return the scores of both classifiers, from 0 to 1.

    Args:
        neighbors: of the kNN classifier; all training clips if there are fewer.
        inverse_l2: inverse strength of the logistic regression's L2 penalty.
    """
    scaler = StandardScaler().fit(train.x)
    x, x_valid = scaler.transform(train.x), scaler.transform(valid.x)
    with threadpool_limits(1):  # 25 times faster where other work shares the cores
        predictions = {
            "knn": _nearest(x, train.y, x_valid, neighbors),
            "linear": _linear(x, train.y, x_valid, inverse_l2, multilabel),
        }
    measure = map_of_present_labels if multilabel else accuracy
    return {name: round(measure(valid.y, scores), 6) for name, scores in predictions.items()}


def _nearest(
    x: Float[np.ndarray, "N D"],
    y: Bool[np.ndarray, "N L"],
    x_valid: Float[np.ndarray, "M D"],
    neighbors: int,
) -> Float[np.ndarray, "M L"]:
    search = NearestNeighbors(n_neighbors=min(neighbors, len(x)), metric="cosine").fit(x)
    return y[search.kneighbors(x_valid, return_distance=False)].mean(axis=1)


def _linear(
    x: Float[np.ndarray, "N D"],
    y: Bool[np.ndarray, "N L"],
    x_valid: Float[np.ndarray, "M D"],
    inverse_l2: float,
    multilabel: bool,
) -> Float[np.ndarray, "M L"]:
    model = LogisticRegression(C=inverse_l2, max_iter=MAX_ITERATIONS)
    scores = np.zeros((len(x_valid), y.shape[1]))
    if not multilabel:
        model.fit(x, y.argmax(axis=1))
        scores[:, model.classes_] = model.predict_proba(x_valid)
        return scores
    for label in np.flatnonzero(y.any(axis=0) & ~y.all(axis=0)):  # the others have a single class
        scores[:, label] = model.fit(x, y[:, label]).predict_proba(x_valid)[:, 1]
    return scores


def accuracy(y: Bool[np.ndarray, "N L"], scores: Float[np.ndarray, "N L"]) -> float:
    """Return the share of clips whose one label has the highest score."""
    return float((y.argmax(axis=1) == scores.argmax(axis=1)).mean())


def map_of_present_labels(y: Bool[np.ndarray, "N L"], scores: Float[np.ndarray, "N L"]) -> float:
    """Return the mean average precision over the labels that occur.

    hear-eval-kit's own mean (`pipeline.hear.score.metrics`) counts labels that do not as 0.
    """
    present = y.any(axis=0)
    return float(average_precision_score(y[:, present], scores[:, present], average="macro"))
