"""Small checkpoints and HEAR tasks for the tests of the evaluation, and stubs for old tools."""

import json
import os
from pathlib import Path

import numpy as np
import soundfile
import torch

from pipeline.config import load_config
from pipeline.encoders import checkpoint
from pipeline.encoders.build import build_encoder
from pipeline.encoders.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
CONFIG = load_config()
RATE = CONFIG.logmel.sample_rate
MEAN, STD = -7.0, 4.5
SMALL = {"channels": 4, "hidden_dim": 16, "embed_dim": 80}
LABELS = ["high", "low", "noise"]


def write_checkpoint(folder: Path, name: str, **changes) -> Path:
    """Write a checkpoint whose batch norms have seen data, so their statistics are not 0 and 1."""
    torch.manual_seed(0)
    params = getattr(CONFIG.encoders, name).model_copy(update=changes)
    encoder = build_encoder(name, params, n_mels=64, crop_frames=96)
    encoder.train()(2 * torch.randn(8, 1, 64, 96) + 0.5)
    folder.mkdir(parents=True)
    saved = Checkpoint(encoder, name, params, CONFIG.logmel, MEAN, STD, crop_frames=96)
    checkpoint.save(saved, folder)
    return folder


def wave(label: str, seconds: float, rng: np.random.Generator, rate: int = RATE) -> np.ndarray:
    """Return a tone or noise, different for each label."""
    time = np.arange(round(seconds * rate)) / rate
    frequency = {"high": 3000, "low": 300}.get(label, 0) * rng.uniform(0.9, 1.1)
    tone = np.sin(2 * np.pi * frequency * time) if frequency else rng.standard_normal(len(time))
    return (0.2 * tone).astype(np.float32)


def write_task(folder: Path, labels: dict[str, dict], seconds: float = 0.5, **metadata) -> Path:
    """Write a task with audio; the first label of a file decides how it sounds."""
    kfold = "train" not in labels
    content = {
        "task_name": "toy",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "new_split_kfold" if kfold else "trainvaltest",
        "splits": list(labels),
        "sample_duration": seconds,
        "evaluation": ["top1_acc"],
        "version": "v1",
        **metadata,
    }
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text(json.dumps(content))
    rows = [f"{i},{label}" for i, label in enumerate(LABELS)]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows]) + "\n")
    rng = np.random.default_rng(0)
    for split, files in labels.items():
        (folder / f"{split}.json").write_text(json.dumps(files))
        audio = folder / str(RATE) / split
        audio.mkdir(parents=True)
        for name, tags in files.items():
            label = tags[0] if tags and isinstance(tags[0], str) else "low"
            soundfile.write(audio / name, wave(label, seconds, rng), RATE)
    return folder


def scenes(clips: int, prefix: str = "") -> dict[str, list[str]]:
    """Return the labels of a multiclass split, in unsorted order."""
    return {f"{prefix}{7 * i % clips}.wav": [LABELS[i % 3]] for i in range(clips)}


def events(clips: int, seconds: float, prefix: str = "") -> dict[str, list[dict]]:
    """Return the labels of an event split: two overlap, one is empty, one lasts to the end."""
    return {
        f"{prefix}{5 * i % clips}.wav": [
            {"label": "low", "start": 100.0 + 10 * i, "end": 250.0},
            {"label": "high", "start": 200.0, "end": 400.0},
            {"label": "noise", "start": 300.0, "end": 300.0},
            {"label": "high", "start": 450.0, "end": 1000 * seconds},
        ]
        for i in range(clips)
    }


def write_scene_task(folder: Path, clips: tuple[int, int, int] = (6, 4, 4)) -> Path:
    """Write a multiclass task with the three usual splits."""
    splits = zip(("train", "valid", "test"), clips, strict=True)
    return write_task(folder, {split: scenes(n) for split, n in splits})


def write_fold_task(folder: Path, folds: int = 3, clips: int = 4, **metadata) -> Path:
    """Write a k-fold multiclass task."""
    labels = {f"fold{i:02d}": scenes(clips, f"f{i}_") for i in range(folds)}
    return write_task(folder, labels, **metadata)


def write_event_task(folder: Path, clips: tuple[int, int, int] = (3, 2, 2), **metadata) -> Path:
    """Write an event task with the three usual splits."""
    splits = zip(("train", "valid", "test"), clips, strict=True)
    return write_task(
        folder,
        {split: events(n, seconds=1.0) for split, n in splits},
        seconds=1.0,
        embedding_type="event",
        prediction_type="multilabel",
        evaluation=["event_onset_200ms_fms", "segment_1s_er"],
        **metadata,
    )


def old_tool_environment(folder: Path) -> dict[str, str]:
    """Return an environment for tools that import TensorFlow without needing it for torch models.

    They compare a model's class with `Module`, and call `is_gpu_available` on machines with a GPU.
    """
    package = folder / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class Module: ...\nclass test:\n    is_gpu_available = staticmethod(lambda **_: True)\n"
    )
    path = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}
