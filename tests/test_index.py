"""The content of a folder of shards, and the crops that an epoch takes of it."""

import json
import math

import h5py
import pytest
import torch
from synthetic_features import LOG_MEL, write_folder

from pipeline.core import shard_folder
from pipeline.core.shard_folder import Manifest
from pipeline.pretrain.index import Features, load_features, locate_crops, sample_epoch

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path, [[5, 7], [], [3]])


def test_shards_are_one_list_of_clips_and_of_frames(folder):
    features = load_features(folder)
    assert features.clip_id == ["s0c0", "s0c1", "s2c0"]
    assert features.start.tolist() == [0, 5, 12, 15]
    assert (len(features), features.nbytes) == (3, 15 * 64 * 2)
    assert (features.mean, features.std, features.log_mel) == (1.5, 2.5, LOG_MEL)
    frames = features.read_frames(CPU)
    expected = [0, 1, 2, 3, 4, *range(10, 17), 200, 201, 202]
    assert torch.equal(frames, torch.tensor(expected)[:, None].expand(-1, 64).half())


def test_loading_reads_no_frames(folder, monkeypatch):
    read = h5py.Dataset.__getitem__

    def refuse_frames(dataset, *key):
        assert dataset.name != "/log_mel"
        return read(dataset, *key)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse_frames)
    load_features(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("manifest.json", r"no .*manifest\.json.*Run `dvc "),
        ("stats.json", r"stats\.json is missing.*Run `dvc "),
        ("00001.h5", r"lacks 1 of 3 shards, first 00001\.h5.*Run `dvc "),
    ],
)
def test_missing_features_are_refused_with_the_command_that_makes_them(folder, missing, message):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_features(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"mean": 0}',
        '{"mean": 0, "std": null}',
        '{"mean": 0, "std": 0}',
        '{"mean": 0, "std": -1}',
        '{"mean": NaN, "std": 1}',
        '{"mean": 0, "std": Infinity}',
    ],
)
def test_statistics_that_cannot_normalize_are_refused(folder, content):
    (folder / "stats.json").write_text(content)
    with pytest.raises(ValueError, match=r"stats\.json is broken.*Run `dvc repro -f logmel`"):
        load_features(folder)


@pytest.mark.parametrize("counts", [(2, 20, 3, 10), (3, 30, 2, 10), (3, 30, 4, 10)])
def test_a_manifest_of_other_shards_is_refused(folder, counts):
    """Fewer shards than files, fewer clips than the shards have, more clips."""
    shard_folder.write(folder, Manifest(*counts))
    with pytest.raises(ValueError, match=r"manifest\.json has .* of different runs.*dvc repro -f"):
        load_features(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def make_text(path):
    path.write_text("not HDF5")


def empty(path):
    h5py.File(path, "w").close()


def lose_a_clip_id(path):
    with h5py.File(path, "a") as file:
        ids = file["clip_id"][:1]
        del file["clip_id"]
        file["clip_id"] = ids


def lose_a_frame(path):
    with h5py.File(path, "a") as file:
        file["start"][-1] = 11


def go_back(path):
    with h5py.File(path, "a") as file:
        file["start"][1] = 13


def break_front_end(path):
    with h5py.File(path, "a") as file:
        file.attrs["logmel"] = "{"


@pytest.mark.parametrize(
    "damage", [cut, make_text, empty, lose_a_clip_id, lose_a_frame, go_back, break_front_end]
)
def test_a_damaged_shard_is_refused_by_name(folder, damage):
    damage(folder / "00000.h5")
    with pytest.raises(ValueError, match=r"00000\.h5.* damaged .*Run `dvc |00000\.h5 is damaged: "):
        load_features(folder)


@pytest.mark.parametrize("how", [{"chunks": (5, 64)}, {"compression": "gzip"}, {"dtype": "f4"}])
def test_frames_that_are_not_plain_bytes_are_refused(folder, how):
    with h5py.File(folder / "00000.h5", "a") as file:
        frames = file["log_mel"][:]
        del file["log_mel"]
        file.create_dataset("log_mel", data=frames, **how)
    with pytest.raises(ValueError, match=r"00000\.h5 holds its frames as .*contiguous"):
        load_features(folder)


def test_shards_of_different_front_ends_are_refused(folder):
    with h5py.File(folder / "00002.h5", "a") as shard:
        shard.attrs["logmel"] = json.dumps({**LOG_MEL.model_dump(), "win_length": 400})
    with pytest.raises(ValueError, match=r"2 different front ends.*00002\.h5.*win_length=400"):
        load_features(folder)


def test_a_shard_that_shrinks_after_its_metadata_were_read_is_refused(folder):
    features = load_features(folder)
    with (folder / "00002.h5").open("r+b") as file:
        file.truncate(features.frames[2].offset + 100)
    with pytest.raises(ValueError, match=r"00002\.h5 is damaged: its SHA-256"):
        features.read_frames(CPU)


def test_a_flipped_bit_in_a_shard_is_noticed_when_all_frames_are_read(folder):
    content = bytearray((folder / "00002.h5").read_bytes())
    content[load_features(folder).frames[2].offset + 1] ^= 1
    (folder / "00002.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"00002\.h5 is damaged: .*dvc repro -f logmel"):
        load_features(folder).read_frames(CPU)


def test_frames_may_be_in_memory_already():
    frames = torch.arange(30.0)[:, None].expand(-1, 64).half()
    features = Features(frames, torch.tensor([0, 10, 30]), ["a", "b"], LOG_MEL, 0.0, 1.0)
    assert torch.equal(features.read_frames(CPU), frames)
    assert (len(features), features.nbytes) == (2, 30 * 64 * 2)


def test_an_epoch_takes_every_clip_at_most_once_in_a_new_order():
    first, second = sample_epoch(103, 10, 0, 0), sample_epoch(103, 10, 0, 1)
    assert first.clip.shape == first.draw.shape == (10, 10)
    assert len(first.clip.unique()) == len(second.clip.unique()) == 100
    assert not torch.equal(first.clip.sort()[0], second.clip.sort()[0])
    assert not torch.equal(first.draw, second.draw)


def test_the_crops_of_an_epoch_depend_on_the_arguments_alone():
    expected = sample_epoch(103, 10, 3, 7)
    torch.rand(5)
    again, other_seed = sample_epoch(103, 10, 3, 7), sample_epoch(103, 10, 4, 7)
    assert torch.equal(expected.clip, again.clip) and torch.equal(expected.draw, again.draw)
    assert not torch.equal(expected.clip, other_seed.clip)
    assert not torch.equal(expected.clip, sample_epoch(103, 10, 7, 3).clip)


def test_all_clips_come_first_equally_often():
    first = torch.stack([sample_epoch(8, 4, 0, epoch).clip[0, 0] for epoch in range(2000)])
    share = torch.bincount(first, minlength=8) / 2000
    assert (share - 1 / 8).abs().max() < 4 * math.sqrt(1 / 8 * 7 / 8 / 2000)


def test_several_crops_of_a_clip_are_in_the_same_batch_with_draws_of_their_own():
    sampler = sample_epoch(20, 12, 0, 0, crops_per_clip=3)
    assert sampler.clip.shape == (5, 12)  # 4 clips each, 3 times as many steps as with one crop
    assert len(sampler.clip.unique()) == 20
    assert all((row.unique(return_counts=True)[1] == 3).all() for row in sampler.clip)
    assert len(sampler.draw.unique()) == 60
    assert sampler.draw.min() >= 0 and sampler.draw.max() < 1


def test_the_shares_of_the_processes_are_together_the_whole_batch():
    sampler = sample_epoch(40, 12, 0, 0)
    shares = [sampler.share(rank, 3) for rank in range(3)]
    assert [share.clip.shape for share in shares] == [(3, 4)] * 3
    assert torch.equal(torch.cat([share.clip for share in shares], dim=1), sampler.clip)
    assert torch.equal(torch.cat([share.draw for share in shares], dim=1), sampler.draw)


def test_batches_that_cannot_be_filled_or_shared_are_refused():
    with pytest.raises(ValueError, match=r"7 clips, fewer than pretrain\.batch_size = 8"):
        sample_epoch(7, 8, 0, 0)
    with pytest.raises(ValueError, match=r"batch_size = 8 is not a multiple of .* = 3"):
        sample_epoch(7, 8, 0, 0, crops_per_clip=3)
    with pytest.raises(ValueError, match="batch_size = 8 cannot be shared equally by 3 processes"):
        sample_epoch(8, 8, 0, 0).share(0, 3)


def test_every_start_is_equally_likely_the_last_included():
    start, clip = torch.tensor([0, 50, 149]), torch.ones(4000, dtype=torch.long)
    draw = torch.cat([sample_epoch(400, 400, 0, epoch).draw[0] for epoch in range(10)])
    first, real = locate_crops(start, clip, draw, 96)
    assert (real == 96).all()
    share = torch.bincount(first - 50, minlength=4) / 4000
    assert share.shape == (4,)
    assert (share - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("draw", [1 - 2**-24, 1.0])
def test_the_largest_draw_gives_the_last_start_of_any_clip(draw):
    lengths = torch.arange(96, 2000)
    start = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    first, _ = locate_crops(start, torch.arange(1904), torch.full((1904,), draw), 96)
    assert torch.equal(first + 96, start[1:])


def test_a_clip_of_the_crops_length_or_shorter_is_taken_whole():
    start, clip = torch.tensor([0, 96, 106]), torch.tensor([0, 1])
    first, real = locate_crops(start, clip, torch.tensor([0.99, 0.99]), 96)
    assert (first.tolist(), real.tolist()) == ([0, 96], [96, 10])
