"""Features in memory: what a crop is, how it is padded, and the order of an epoch."""

import json

import h5py
import numpy as np
import pytest
import torch
from torch import Generator

from pipeline.dataset import Features, epoch_batches, load_features
from pipeline.params.config import load_config

LOG_MEL = load_config().logmel


def features(lengths, mean=0.0, std=1.0):
    """Clips whose value is 1000 * clip + frame in every mel bin."""
    frames = torch.cat([1000.0 * i + torch.arange(n) for i, n in enumerate(lengths)])
    start = torch.tensor([0, *lengths]).cumsum(0)
    clip_id = [f"clip{i}" for i in range(len(lengths))]
    array = frames[:, None].expand(-1, 64).half().contiguous()
    return Features(array, start, clip_id, LOG_MEL, mean, std)


def generator(seed=0):
    return Generator().manual_seed(seed)


def test_a_crop_is_consecutive_frames_of_its_own_clip():
    crops = features([200, 300]).crop(torch.tensor([1, 0, 1]), 96, generator())
    assert crops.shape == (3, 64, 96)
    assert torch.equal(crops, crops[:, :1].expand(-1, 64, -1))
    for crop, clip, length in zip(crops[:, 0], (1, 0, 1), (300, 200, 300), strict=True):
        assert torch.equal(crop.diff(), torch.ones(95))
        assert 1000 * clip <= crop[0] <= 1000 * clip + length - 96


def test_every_start_is_equally_likely_the_last_included():
    crops = features([99]).crop(torch.zeros(4000, dtype=torch.long), 96, generator())
    share = torch.bincount(crops[:, 0, 0].long(), minlength=4) / 4000
    assert share.shape == (4,)
    assert (share - 0.25).abs().max() < 0.03


def test_a_clip_of_the_crops_length_is_taken_whole():
    crop = features([96]).crop(torch.zeros(1, dtype=torch.long), 96, generator())
    assert torch.equal(crop[0, 0], torch.arange(96.0))


def test_a_short_clip_is_followed_by_digital_silence_not_by_its_neighbour():
    crop = features([10, 200], mean=3.0, std=2.0).crop(torch.tensor([0]), 96, generator())[0]
    torch.testing.assert_close(crop[0, :10], (torch.arange(10.0) - 3) / 2)
    torch.testing.assert_close(crop[0, 10:], torch.full((86,), (-15.942385 - 3) / 2))


def test_crops_are_normalized_by_the_statistics_of_the_dataset():
    plain = features([96]).crop(torch.tensor([0]), 96, generator())
    normalized = features([96], mean=5.0, std=4.0).crop(torch.tensor([0]), 96, generator())
    torch.testing.assert_close(normalized, (plain - 5) / 4)


def test_an_epoch_takes_every_clip_at_most_once_in_a_new_order():
    g = generator()
    first, second = epoch_batches(103, 10, g), epoch_batches(103, 10, g)
    assert first.shape == (10, 10)
    assert len(first.unique()) == 100
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch_batches(103, 10, generator()))


def test_fewer_clips_than_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"7 clips, fewer than pretrain\.batch_size = 8"):
        epoch_batches(7, 8, generator())


def write_folder(folder, shards):
    """Shards as lists of clip lengths, in the documented layout."""
    for i, lengths in enumerate(shards):
        data = features(lengths)
        with h5py.File(folder / f"{i:05d}.h5", "w") as shard:
            shard["log_mel"] = data.frames.numpy() + i
            shard["start"] = data.start.numpy()
            shard["clip_id"] = [f"s{i}c{j}" for j in range(len(lengths))]
            shard.attrs["logmel"] = json.dumps(LOG_MEL.model_dump())
    (folder / "manifest.json").write_text(json.dumps({"shards": len(shards)}))
    (folder / "stats.json").write_text(json.dumps({"mean": 1.5, "std": 2.5}))


def test_shards_are_read_end_to_end(tmp_path):
    write_folder(tmp_path, [[5, 7], [3]])
    loaded = load_features(tmp_path)
    assert loaded.clip_id == ["s0c0", "s0c1", "s1c0"]
    assert loaded.start.tolist() == [0, 5, 12, 15]
    np.testing.assert_array_equal(loaded.frames[12:, 0], [1, 2, 3])
    assert (loaded.mean, loaded.std, loaded.log_mel) == (1.5, 2.5, LOG_MEL)


@pytest.mark.parametrize("missing", ["manifest.json", "stats.json", "00001.h5"])
def test_missing_features_are_refused_with_the_command_that_makes_them(tmp_path, missing):
    write_folder(tmp_path, [[5], [3]])
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing} is missing.*dvc repro logmel"):
        load_features(tmp_path)


def test_shards_of_different_front_ends_are_refused(tmp_path):
    write_folder(tmp_path, [[5], [3]])
    with h5py.File(tmp_path / "00001.h5", "a") as shard:
        shard.attrs["logmel"] = json.dumps({**LOG_MEL.model_dump(), "win_length": 400})
    with pytest.raises(ValueError, match="2 different front ends"):
        load_features(tmp_path)
