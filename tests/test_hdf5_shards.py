"""HDF5 shards: layout, round trip, same bytes."""

import json

import h5py
import numpy as np
import pytest

from pipeline.features import hdf5_shards, stats
from pipeline.features.hdf5_shards import Clip
from pipeline.features.params import LogMelParams
from pipeline.features.stats import Totals

PARAMS = LogMelParams(
    sample_rate=16000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=60.0,
    f_max=7800.0,
)  # fmt: skip


@pytest.fixture
def clips():
    """Three clips of different lengths."""
    rng = np.random.default_rng(0)
    values = [rng.normal(-5, 4, (frames, 64)).astype(np.float32) for frames in (4, 96, 11)]
    names = [("-_a_0", "/m/1,/m/2"), ("b_30000", ""), ("ä_5", "/t/dd1")]
    return [
        Clip(clip_id, labels, value.astype(np.float16), Totals.from_array(value))
        for (clip_id, labels), value in zip(names, values, strict=True)
    ]


def test_what_is_written_is_read_back(tmp_path, clips):
    totals = hdf5_shards.write(tmp_path / "0.h5", clips, PARAMS)
    shard = hdf5_shards.read(tmp_path / "0.h5")
    assert shard.clip_id == ["-_a_0", "b_30000", "ä_5"]
    assert shard.labels == ["/m/1,/m/2", "", "/t/dd1"]
    assert shard.log_mel == PARAMS
    assert shard.totals == totals == stats.merge(clip.totals for clip in clips)
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(
            shard.frames[shard.start[i] : shard.start[i + 1]], clip.frames
        )


def test_the_layout_is_the_documented_one(tmp_path, clips):
    hdf5_shards.write(tmp_path / "0.h5", clips, PARAMS)
    with h5py.File(tmp_path / "0.h5") as file:
        assert set(file) == {"log_mel", "start", "clip_id", "labels"}
        log_mel = file["log_mel"]
        assert (log_mel.shape, log_mel.dtype) == ((111, 64), np.float16)
        assert log_mel.chunks is None
        assert log_mel.compression is None
        assert file["start"].dtype == np.int64
        assert file["start"][:].tolist() == [0, 4, 100, 111]
        assert json.loads(file.attrs["logmel"]) == PARAMS.model_dump()
        assert file.attrs["count"] == 111 * 64


def test_a_crop_is_one_run_of_bytes_in_the_file(tmp_path, clips):
    hdf5_shards.write(tmp_path / "0.h5", clips, PARAMS)
    with h5py.File(tmp_path / "0.h5") as file:
        offset = file["log_mel"].id.get_offset()
    raw = (tmp_path / "0.h5").read_bytes()[offset + 20 * 128 : offset + 52 * 128]
    np.testing.assert_array_equal(
        np.frombuffer(raw, np.float16).reshape(32, 64), clips[1].frames[16:48]
    )


def test_the_same_clips_make_the_same_bytes(tmp_path, clips):
    for name in ("0.h5", "1.h5"):
        hdf5_shards.write(tmp_path / name, clips, PARAMS)
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "1.h5").read_bytes()


def test_a_shard_may_be_empty(tmp_path):
    hdf5_shards.write(tmp_path / "0.h5", [], PARAMS)
    shard = hdf5_shards.read(tmp_path / "0.h5")
    assert shard.frames.shape == (0, 64)
    assert shard.start.tolist() == [0]
    assert shard.clip_id == shard.labels == []
    assert shard.totals.count == 0


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_shard_is_an_error_that_says_what_to_run(tmp_path, clips, size):
    path = tmp_path / "0.h5"
    hdf5_shards.write(path, clips, PARAMS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"0\.h5 is not a shard.*or is damaged.*`dvc repro -f logmel"
    ):
        hdf5_shards.read(path)


def test_another_hdf5_file_is_an_error(tmp_path):
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file["log_mel"] = np.zeros((3, 64))
    with pytest.raises(ValueError, match="is not a shard"):
        hdf5_shards.read(tmp_path / "0.h5")
