"""Embedding files: the same as those of heareval's own runner, and faults are named."""

import json
import pickle
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from synthetic_hear import (
    RATE,
    SMALL,
    old_tool_environment,
    wave,
    write_checkpoint,
    write_event_task,
    write_fold_task,
    write_scene_task,
)
from torch import nn

from pipeline import hear_api
from pipeline.embeddings import HearModule, frame_labels, write_embeddings
from pipeline.hear_tasks import Event, read_task

TASKS = {"scene": write_scene_task, "event": write_event_task, "folds": write_fold_task}


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "audiontt"
    return write_checkpoint(folder, "audiontt", **SMALL)


@pytest.fixture(scope="module")
def task_folders(tmp_path_factory):
    """One task of each kind."""
    root = tmp_path_factory.mktemp("tasks")
    return {name: write(root / name) for name, write in TASKS.items()}


def embedded_by_heareval(checkpoint_folder: Path, tasks: Path, folder: Path) -> Path:
    """Folder of the embeddings that heareval's own runner makes of all tasks."""
    command = [sys.executable, "-m", "heareval.embeddings.runner", "pipeline.hear_api"]
    command += ["--model", checkpoint_folder, "--tasks-dir", tasks]
    done = subprocess.run(
        [*command, "--embeddings-dir", folder / "embeddings"],
        cwd=folder,
        env=old_tool_environment(folder / "stub"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "embeddings" / "pipeline.hear_api"


@pytest.fixture
def module(checkpoint_folder):
    return HearModule(hear_api, hear_api.load_model(str(checkpoint_folder)))


def written(folder: Path, module, target: Path) -> Path:
    target.mkdir()
    write_embeddings(read_task(folder), module, target)
    return target


def read_split(folder: Path, split: str) -> np.ndarray:
    shape = json.loads((folder / f"{split}.embedding-dimensions.json").read_text())
    return np.memmap(folder / f"{split}.embeddings.npy", np.float32, mode="r", shape=tuple(shape))


def row_labels(folder: Path, split: str) -> list[set]:
    rows = pickle.loads((folder / f"{split}.target-labels.pkl").read_bytes())
    assert isinstance(rows, list)
    return [set(row) for row in rows]


def assert_same_split(ours: Path, theirs: Path, split: str) -> None:
    embeddings = read_split(theirs, split)
    assert len(embeddings) > 3
    np.testing.assert_allclose(read_split(ours, split), embeddings, rtol=1e-5, atol=1e-5)
    assert row_labels(ours, split) == row_labels(theirs, split)
    stamps = f"{split}.filename-timestamps.json"
    assert (ours / stamps).exists() == (theirs / stamps).exists()
    if (ours / stamps).exists():
        rows = json.loads((theirs / stamps).read_text())
        assert json.loads((ours / stamps).read_text()) == [[Path(f).name, ms] for f, ms in rows]


def test_the_files_are_those_of_heareval(tmp_path, module, checkpoint_folder, task_folders):
    """Values, row order, labels and timestamps, for a scene, an event and a k-fold task."""
    embedded = embedded_by_heareval(checkpoint_folder, task_folders["scene"].parent, tmp_path)
    for name, folder in task_folders.items():
        ours, theirs = written(folder, module, tmp_path / name), embedded / name
        splits = list(read_task(folder).labels)
        for split in splits:
            assert_same_split(ours, theirs, split)
        for copy in ("task_metadata.json", "labelvocabulary.csv", *(f"{s}.json" for s in splits)):
            assert (ours / copy).read_bytes() == (theirs / copy).read_bytes()


def test_nothing_else_is_written(tmp_path, module, task_folders):
    folder = written(task_folders["scene"], module, tmp_path / "scene")
    endings = ("json", "embedding-dimensions.json", "embeddings.npy", "target-labels.pkl")
    names = {f"{split}.{end}" for split in ("train", "valid", "test") for end in endings}
    names |= {"task_metadata.json", "labelvocabulary.csv"}
    assert {path.name for path in folder.iterdir()} == names


def test_the_same_model_gives_the_same_bytes(tmp_path, module, task_folders):
    folders = [written(task_folders["event"], module, tmp_path / str(i)) for i in range(2)]
    first, second = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    assert first == second


def test_an_event_task_has_a_row_per_timestamp(tmp_path, module, task_folders):
    folder = written(task_folders["event"], module, tmp_path / "event")
    rows = 3 * 21  # clips of 1 s
    assert read_split(folder, "train").shape == (rows, 80)
    assert len(row_labels(folder, "train")) == rows
    assert len(json.loads((folder / "train.filename-timestamps.json").read_text())) == rows
    assert (folder / "train.embeddings.npy").stat().st_size == rows * 80 * 4


def test_a_frame_has_the_labels_of_the_events_it_lies_in_starts_and_ends_included():
    events = [
        Event(label="low", start=50.0, end=150.0),
        Event(label="high", start=100.0, end=101.0),
        Event(label="low", start=120.0, end=200.0),
        Event(label=7, start=149.0, end=149.5),
    ]
    timestamps = np.arange(0, 300, 50, dtype=np.float32)
    assert frame_labels(events, timestamps) == [[], ["low"], ["low", "high"], ["low"], ["low"], []]


class LengthModel(nn.Module):
    """Embeds a clip as its length and its loudest sample."""

    sample_rate = RATE


def length_module() -> HearModule:
    def scenes(audio, model):
        calls.append(tuple(audio.shape))
        return torch.stack([torch.full((len(audio),), audio.shape[1]), audio.amax(dim=1)], dim=1)

    calls: list[tuple[int, int]] = []
    api = ModuleType("toy")
    api.get_scene_embeddings, api.calls = scenes, calls
    return HearModule(api, LengthModel())


def test_clips_of_equal_length_share_a_call_and_any_hear_module_will_do(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    soundfile.write(folder / "16000/train/2.wav", wave("low", 0.3, np.random.default_rng()), RATE)
    module = length_module()
    target = written(folder, module, tmp_path / "out")
    lengths = read_split(target, "train")[:, 0].astype(int).tolist()
    assert sorted(lengths) == [4800] + [8000] * 5
    runs = [(len(list(same)), length) for length, same in groupby(lengths)]
    assert module.api.calls == [*runs, (4, 8000), (4, 8000)]


def test_no_call_gets_more_than_two_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.embeddings.BATCH_SAMPLES", 17_000)
    module = length_module()
    written(write_scene_task(tmp_path / "toy"), module, tmp_path / "out")
    assert {n for n, _ in module.api.calls} == {2}


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.full((6, 3), torch.nan), "toy, split train, file .*not finite.*history.csv"),
        (torch.zeros(5, 3), "toy, split train: 5 embeddings for 6 clips"),
    ],
)
def test_a_module_that_returns_no_embeddings_is_refused(tmp_path, embeddings, message):
    module = length_module()
    module.api.get_scene_embeddings = lambda audio, model: embeddings
    with pytest.raises(ValueError, match=message):
        written(write_scene_task(tmp_path / "toy"), module, tmp_path / "out")


def test_audio_of_another_rate_than_the_models_is_refused(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    path = folder / "16000/train/0.wav"
    soundfile.write(path, wave("low", 0.5, np.random.default_rng(0), 8000), 8000)
    with pytest.raises(ValueError, match=r"0\.wav has 8000 Hz, the model takes 16000 Hz"):
        written(folder, length_module(), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    shutil.rmtree(folder / "16000/valid")
    with pytest.raises(FileNotFoundError, match=r"16000/valid/.* is missing"):
        written(folder, length_module(), tmp_path / "out")
