"""hear-eval-kit in this process, with its random numbers recorded for our engine to replay.

    kit = run_kit(monkeypatch, folder, "default", points=2, precision=64)
    kit.raw         test.predicted-scores.json
    kit.trials      one per training: initial weights, dropout masks, validation scores
    kit.logits      of each test split
    Replay(kit)     these random numbers for `pipeline.hear.score`

Its code is unmodified: the random parts it is built from (its classifier's constructor, torch's
dropout) and two of Lightning's classes are replaced by subclasses that record what happens.
"""

import json
import logging
import pickle
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.core.files import sha256
from pipeline.hear.embed import files
from pipeline.hear.score.random_streams import RandomStreams
from pipeline.hear.tasks.task import read_task


@dataclass
class KitTrial:
    """One training of hear-eval-kit."""

    weights: dict[str, torch.Tensor]
    masks: list[torch.Tensor] = field(default_factory=list)  # [rows, units] of each call
    history: list[float] = field(default_factory=list)


@dataclass
class Kit:
    raw: dict
    trials: list[KitTrial]
    logits: dict[str, torch.Tensor]


class RecordedDropout(nn.Dropout):
    """Dropout that records its masks."""

    def __init__(self, p, masks):
        super().__init__(p)
        self.masks = masks

    def forward(self, x):
        if not self.training:
            return x
        mask = torch.rand(x.shape) >= self.p
        self.masks.append(mask)
        return x * mask / (1 - self.p)


def run_kit(monkeypatch, folder: Path, grid: str, points: int, precision: int) -> Kit:
    """Score a folder with hear-eval-kit, which writes into the working directory."""
    from heareval.predictions import task_predictions as kit

    trials: list[KitTrial] = []

    class Classifier(kit.FullyConnectedPrediction):
        def __init__(self, *args, **kwargs):
            trials.append(KitTrial({}))
            super().__init__(*args, **kwargs)
            linear = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
            for i, layer in enumerate(linear):
                trials[-1].weights[f"weight{i}"] = layer.weight.detach().clone()
                trials[-1].weights[f"bias{i}"] = layer.bias.detach().clone()

    class Stopping(kit.EarlyStopping):
        def _evaluate_stopping_criteria(self, current):
            trials[-1].history.append(current.item())
            return super()._evaluate_stopping_criteria(current)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = partial(kit.pl.Trainer, precision=precision, **quiet)
    with monkeypatch.context() as patch:
        patch.setattr(kit, "FullyConnectedPrediction", Classifier)
        patch.setattr(kit, "EarlyStopping", Stopping)
        patch.setattr(kit.pl, "Trainer", trainer)
        patch.setattr(nn, "Dropout", lambda p: RecordedDropout(p, trials[-1].masks))
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        patch.setenv("PL_GLOBAL_SEED", "")  # which it overwrites
        dimensions = next(folder.glob("*.embedding-dimensions.json"))
        files.pickle_labels(folder, read_task(folder).metadata.splits, folder)
        try:
            kit.task_predictions(
                embedding_path=folder,
                embedding_size=json.loads(dimensions.read_text())[1],
                grid_points=points,
                gpus=None,
                in_memory=True,
                deterministic=True,
                grid=grid,
                logger=logging.getLogger("kit"),
            )
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_default_dtype(torch.float32)  # a failure leaves float64
    raw = json.loads((folder / "test.predicted-scores.json").read_text())
    logits = {
        path.name.split(".")[0]: pickle.loads(path.read_bytes())["prediction_logit"]
        for path in folder.glob("*.predictions.pkl")
    }
    return Kit(raw, trials, logits)


class Replay(RandomStreams):
    """The random numbers of hear-eval-kit; classifier i gets those of its training i."""

    def __init__(self, kit: Kit) -> None:
        self.trials = kit.trials
        self.used = [0] * len(kit.trials)

    def weights(self, number, hparams, dim, classes):
        return {name: tensor.clone() for name, tensor in self.trials[number].weights.items()}

    def dropout_mask(self, numbers, shape, dropout, counts):
        result = torch.ones(shape, dtype=torch.bool)
        for position, (number, count) in enumerate(zip(numbers, counts, strict=True)):
            if count:
                masks = self.trials[number].masks
                assert self.used[number] < len(masks), "more steps than hear-eval-kit took"
                mask = masks[self.used[number]]
                assert mask.shape == (count, shape[1])
                result[position, :, :count] = mask.T
                self.used[number] += 1
        return result


def write_embedded_task(
    folder: Path, rows: dict[str, int], kind: str = "multiclass", noise: float = 0.8, **metadata
) -> Path:
    """A task's embeddings as `pipeline.hear.embed` writes them; for events, 20 frames per file.

    Args:
        rows: of each split.
        kind: multiclass | multilabel | event | one class (multiclass, but fold00 has a single one).
        noise: of the embeddings; those of different labels are about 2 apart.
    """
    rng = np.random.default_rng(0)
    classes, dim, hop, per_file = 3, 6, 50.0, 20
    labels = [f"l{i}" for i in range(classes)]
    folder.mkdir(parents=True)
    evaluation = {
        "multiclass": ["top1_acc", "mAP", "d_prime", "aucroc"],
        "one class": ["top1_acc", "mAP", "d_prime", "aucroc"],
        "multilabel": ["mAP", "top1_acc", "d_prime", "aucroc"],
        "event": ["event_onset_200ms_fms", "segment_1s_er"],
    }
    content = {
        "task_name": "toy",
        "embedding_type": "event" if kind == "event" else "scene",
        "prediction_type": "multilabel" if kind in ("event", "multilabel") else "multiclass",
        "split_mode": "trainvaltest" if "train" in rows else "new_split_kfold",
        "splits": list(rows),
        "sample_duration": 1.0,
        "evaluation": evaluation[kind],
        **metadata,
    }
    (folder / "task_metadata.json").write_text(json.dumps(content))
    table = [f"{i},{label}" for i, label in enumerate(labels)]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *table]) + "\n")
    centers = rng.standard_normal((classes, dim))
    for split, count in rows.items():
        if kind == "event":
            starts = rng.integers(0, per_file - 5, (count // per_file, classes))
            frame = np.arange(count)[:, None] % per_file
            first = np.repeat(starts, per_file, axis=0)
            y = (frame >= first) & (frame < first + 6)
        elif kind == "multilabel":
            y = rng.random((count, classes)) < 0.4
        else:
            several = kind == "multiclass" or split != "fold00"
            y = np.eye(classes, dtype=bool)[rng.integers(0, classes if several else 1, count)]
        x = y @ centers + noise * rng.standard_normal((count, dim))
        (folder / f"{split}.embeddings.npy").write_bytes(x.astype(np.float32).tobytes())
        (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps([count, dim]))
        row_labels = [[labels[i] for i in np.flatnonzero(row)] for row in y]
        files.labels_path(folder, split).write_text(json.dumps(row_labels))
        write_checksum(folder, split)
        if kind != "event":
            clips = {f"{i}.wav": row for i, row in enumerate(row_labels)}
        else:
            timestamps = [[f"{i // per_file}.wav", hop * (i % per_file)] for i in range(count)]
            (folder / f"{split}.filename-timestamps.json").write_text(json.dumps(timestamps))
            clips = {
                f"{i}.wav": [
                    {"label": labels[c], "start": hop * int(s), "end": hop * int(s + 5)}
                    for c, s in enumerate(row)
                ]
                for i, row in enumerate(starts)
            }
        (folder / f"{split}.json").write_text(json.dumps(clips))
    return folder


def write_checksum(folder: Path, split: str) -> None:
    """Write the SHA-256 of a split's embeddings."""
    path = files.embeddings_path(folder, split)
    files.checksum_path(folder, split).write_text(f"{sha256(path)}  {path.name}\n")
