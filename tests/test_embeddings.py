"""Embedding files equal those of heareval's own runner; faults are named."""

import json
import pickle
import random
import shutil
import subprocess
import sys
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

from pipeline.hear import api
from pipeline.hear.embed.cache import EmbeddingCache, shares_audio
from pipeline.hear.embed.embed import HearModule, frame_labels, write_embeddings
from pipeline.hear.tasks.task import Event, read_task

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


def embedded_by_heareval(checkpoint_folder: Path, tasks: Path, folder: Path, **options) -> Path:
    """Folder of the embeddings that heareval's own runner makes of all tasks."""
    command = [sys.executable, "-m", "heareval.embeddings.runner", "pipeline.hear.api.model"]
    command += ["--model", checkpoint_folder, "--tasks-dir", tasks]
    command += ["--model-options", json.dumps(options)]
    done = subprocess.run(
        [*command, "--embeddings-dir", folder / "embeddings"],
        cwd=folder,
        env=old_tool_environment(folder / "stub"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = next((folder / "embeddings").iterdir()).name  # of the module and its options
    return folder / "embeddings" / name


@pytest.fixture
def module(checkpoint_folder):
    return HearModule(api, api.load_model(str(checkpoint_folder)))


def embed(folder: Path, module, target: Path) -> Path:
    target.mkdir()
    write_embeddings(read_task(folder), module, target)
    return target


def read_split(folder: Path, split: str) -> np.ndarray:
    shape = json.loads((folder / f"{split}.embedding-dimensions.json").read_text())
    return np.memmap(folder / f"{split}.embeddings.npy", np.float32, mode="r", shape=tuple(shape))


def row_labels(folder: Path, split: str) -> list[set]:
    text, pickled = (folder / f"{split}.target-labels.{kind}" for kind in ("json", "pkl"))
    rows = json.loads(text.read_text()) if text.exists() else pickle.loads(pickled.read_bytes())
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
        ours, theirs = embed(folder, module, tmp_path / name), embedded / name
        splits = list(read_task(folder).labels)
        for split in splits:
            assert_same_split(ours, theirs, split)
        for copy in ("task_metadata.json", "labelvocabulary.csv", *(f"{s}.json" for s in splits)):
            assert (ours / copy).read_bytes() == (theirs / copy).read_bytes()


def test_a_batch_dependent_model_gets_the_batches_of_heareval(tmp_path):
    """Clips of a batch change each other's embeddings; the splits have 2, 1 and 3."""
    options = {"mode": "reference", "normalization": "reference", "edges": "cut"}
    checkpoint = write_checkpoint(tmp_path / "still", "audiontt", **SMALL, dropout=0.0)
    tasks = {"scene": write_scene_task, "event": write_event_task}
    for name, write in tasks.items():
        write(tmp_path / "tasks" / name, (6, 4, 9))
        metadata = tmp_path / "tasks" / name / "task_metadata.json"
        content = json.loads(metadata.read_text()) | {"sample_duration": 20.0}  # batches of 4
        metadata.write_text(json.dumps(content))
    embedded = embedded_by_heareval(checkpoint, tmp_path / "tasks", tmp_path, **options)
    module = HearModule(api, api.load_model(str(checkpoint), **options))
    for name in tasks:
        ours = embed(tmp_path / "tasks" / name, module, tmp_path / name)
        for split in ("train", "valid", "test"):
            assert_same_split(ours, embedded / name, split)


def test_nothing_else_is_written(tmp_path, module, task_folders):
    folder = embed(task_folders["scene"], module, tmp_path / "scene")
    endings = ("json", "embedding-dimensions.json", "embeddings.npy", "target-labels.json")
    endings += ("embeddings.sha256",)
    names = {f"{split}.{end}" for split in ("train", "valid", "test") for end in endings}
    names |= {"task_metadata.json", "labelvocabulary.csv"}
    assert {path.name for path in folder.iterdir()} == names


def test_the_same_model_gives_the_same_bytes(tmp_path, module, task_folders):
    folders = [embed(task_folders["event"], module, tmp_path / str(i)) for i in range(2)]
    first, second = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    assert first == second


def test_an_event_task_has_a_row_per_timestamp(tmp_path, module, task_folders):
    folder = embed(task_folders["event"], module, tmp_path / "event")
    rows = 3 * 21  # clips of 1 s
    assert read_split(folder, "train").shape == (rows, 80)
    assert len(row_labels(folder, "train")) == rows
    assert len(json.loads((folder / "train.filename-timestamps.json").read_text())) == rows
    assert (folder / "train.embeddings.npy").stat().st_size == rows * 80 * 4


def test_a_frame_has_the_labels_of_its_events_including_their_starts_and_ends():
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


def test_clips_of_equal_length_share_a_call_in_any_order_and_with_any_hear_module(
    tmp_path,
):
    folder = write_scene_task(tmp_path / "toy")
    generator = np.random.default_rng(0)
    for name in ("2.wav", "4.wav"):
        soundfile.write(folder / "16000/train" / name, wave("low", 0.3, generator), RATE)
    module = length_module()
    target = embed(folder, module, tmp_path / "out")
    assert module.api.calls == [(2, 4800), (4, 8000), (4, 8000), (4, 8000)]
    order = list(read_task(folder).labels["train"])
    random.Random(0).shuffle(order)
    files = [soundfile.read(folder / "16000/train" / name, dtype="float32")[0] for name in order]
    expected = [[len(samples), samples.max()] for samples in files]
    np.testing.assert_array_equal(read_split(target, "train"), np.array(expected, np.float32))


def test_threads_that_read_ahead_do_not_change_the_embeddings(tmp_path, monkeypatch):
    folder = write_scene_task(tmp_path / "toy")
    monkeypatch.setattr("pipeline.hear.tasks.audio.READ_AHEAD_BYTES", 20_000)
    for workers in (1, 3):
        (tmp_path / str(workers)).mkdir()
        write_embeddings(read_task(folder), length_module(), tmp_path / str(workers), workers)
    first, second = (tmp_path / name / "train.embeddings.npy" for name in "13")
    assert first.read_bytes() == second.read_bytes()


def test_no_call_gets_more_than_two_minutes_of_audio(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.hear.embed.embed.BATCH_SAMPLES", 17_000)
    module = length_module()
    embed(write_scene_task(tmp_path / "toy"), module, tmp_path / "out")
    assert {n for n, _ in module.api.calls} == {2}


@pytest.mark.parametrize(("seconds", "size"), [(0.5, 168), (120.0, 1), (30.0, 2), (5.0, 16)])
def test_a_batch_dependent_model_gets_hear_eval_kits_batches(tmp_path, seconds, size):
    folder = write_scene_task(tmp_path / "toy")
    path = folder / "task_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_duration": seconds}))
    module = length_module()
    module.model.batch_dependent = True
    embed(folder, module, tmp_path / "out")
    calls = 6 // min(size, 6)
    assert [n for n, _ in module.api.calls[:calls]] == [min(size, 6)] * calls


def returning(**changes):
    """A module for events whose output is correct except for `changes`."""
    times = torch.tensor([[0.0, 500.0, 1000.0]])
    correct = {"embeddings": torch.zeros(1, 3, 2), "timestamps": times}
    module = length_module()
    module.api.get_timestamp_embeddings = lambda audio, model: (*(correct | changes).values(),)
    return module


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": torch.full((1, 3, 2), torch.nan)}, "'embeddings' .*not finite.*history"),
        (
            {"embeddings": torch.zeros(2, 3, 2)},
            r"shape \[2, 3, 2\], expected \[1, timest",
        ),
        ({"embeddings": torch.zeros(1, 3)}, r"'embeddings' has the shape \[1, 3\]"),
        ({"embeddings": torch.zeros(1, 3, 0)}, r"'embeddings' has the shape \[1, 3, 0\]"),
        (
            {"embeddings": torch.zeros(1, 3, 2).half()},
            "torch.float16, expected torch.float32",
        ),
        ({"embeddings": [[[0.0]]]}, "'embeddings' is a list, expected a torch tensor"),
        (
            {"timestamps": torch.zeros(1, 2)},
            r"'timestamps' has the shape \[1, 2\], exp.* \[1, 3",
        ),
        (
            {"timestamps": torch.tensor([[0.0, 2.0, 1.0]])},
            "not increase: 2 ms is followed by 1 ms",
        ),
        ({"timestamps": torch.tensor([[0.0, 1.0, torch.inf]])}, "'timestamps' .*not finite"),
        ({"timestamps": torch.tensor([[-50.0, 0.0, 950.0]])}, "'timestamps' begins at -50 ms"),
        (
            {"timestamps": torch.tensor([[0.0, 0.5, 1.0]])},
            "'timestamps' ends at 1 ms in a clip of 1000 ms, expected ms: are these seconds",
        ),
        ({"timestamps": None}, "'timestamps' is a NoneType"),
    ],
)
def test_a_module_that_returns_invalid_embeddings_is_refused(tmp_path, changes, message):
    """With a message that names task, file and field."""
    with pytest.raises(ValueError, match=rf"toy/16000/train/\d\.wav.*{message}"):
        embed(write_event_task(tmp_path / "toy", (1, 1, 1)), returning(**changes), tmp_path / "out")


def test_a_single_timestamp_may_be_anywhere_in_the_clip(tmp_path):
    answer = {"embeddings": torch.zeros(1, 1, 2), "timestamps": torch.zeros(1, 1)}
    task = write_event_task(tmp_path / "toy", (1, 1, 1))
    assert embed(task, returning(**answer), tmp_path / "out").is_dir()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_embedding_of_another_size_is_refused(tmp_path, monkeypatch, split):
    """Within a split, and in the next one."""
    monkeypatch.setattr("pipeline.hear.embed.embed.BATCH_SAMPLES", 1)
    sizes = iter([2, 3] if split == "train" else [2, 2, 3])
    module = length_module()
    module.api.get_timestamp_embeddings = lambda audio, model: (
        torch.zeros(1, 2, next(sizes)), torch.tensor([[0.0, 500.0]]))  # fmt: skip
    message = rf"toy: an embedding of {split}/\d\.wav has 3 values, those before it 2"
    with pytest.raises(ValueError, match=message):
        embed(write_event_task(tmp_path / "toy", (2, 2, 2)), module, tmp_path / "out")


def test_the_wrong_number_of_scenes_is_refused(tmp_path):
    module = length_module()
    module.api.get_scene_embeddings = lambda audio, model: torch.zeros(5, 3)
    message = r"toy/16000/train/\d\.wav and 5 more: .*shape \[5, 3\], expected \[6, size\]"
    with pytest.raises(ValueError, match=message):
        embed(write_scene_task(tmp_path / "toy"), module, tmp_path / "out")


def test_audio_of_another_rate_than_the_models_is_refused(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    path = folder / "16000/train/0.wav"
    soundfile.write(path, wave("low", 0.5, np.random.default_rng(0), 8000), 8000)
    with pytest.raises(ValueError, match=r"0\.wav has 8000 Hz, the model takes 16000 Hz"):
        embed(folder, length_module(), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    shutil.rmtree(folder / "16000/valid")
    with pytest.raises(FileNotFoundError, match=r"16000/valid/.* is missing"):
        embed(folder, length_module(), tmp_path / "out")


def test_audio_of_an_earlier_task_is_not_embedded_again(tmp_path, task_folders):
    calls = []

    class Api(ModuleType):
        def get_scene_embeddings(self, waves, model):
            calls.append(len(waves))
            return waves.abs().mean(1, keepdim=True).repeat(1, 8)

    model = nn.Linear(1, 1)
    model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size = RATE, 8, 8
    module = HearModule(Api("toy"), model)
    task = read_task(task_folders["scene"])
    cache = EmbeddingCache(tmp_path / "cache", "toy", 1 << 30)
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_embeddings(task, module, tmp_path / name, cache=cache)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    clips = {p.read_bytes() for split in task.labels for p in task.audio(RATE, split).iterdir()}
    assert sum(calls) == len(clips)
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("task", "is_shared"),
    [("nsynth_pitch-v2.2.3-5h", True), ("speech_commands-v0.0.2-full", True),
     ("mridangam_tonic-v1.5-full", True), ("esc50-v2.0.0-full", False)],
)  # fmt: skip
def test_only_tasks_that_share_audio_are_cached(task, is_shared):
    assert shares_audio(task) == is_shared
