"""The shard step of `logmel`: values, statistics, clips that are too short."""

import hashlib
import json

import numpy as np
import pytest
import torch

from pipeline import audio
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.logmel import Job, logmel_shard, summarize
from pipeline.features import hdf5_shards, stats
from pipeline.features.front_end import LogMel
from pipeline.features.params import LogMelParams

PARAMS = LogMelParams(
    sample_rate=16000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=60.0,
    f_max=7800.0,
)  # fmt: skip
SAMPLES = {"long": 160000, "odd": 12345, "least": 513, "too_short": 512, "one": 15200}


def waveform(name):
    seed = list(SAMPLES).index(name)
    return np.random.default_rng(seed).uniform(-0.1, 0.1, SAMPLES[name]).astype(np.float32)


def make_job(folder, rate=16000):
    rows = [ledger.from_segment(Segment(i, n, 0.0, 10.0, "/m/1")) for i, n in enumerate(SAMPLES)]
    clips = [(row.clip_id, audio.encode_flac(waveform(row.recording_id), rate)) for row in rows]
    tar_shards.write(folder / "0.tar", clips)
    rows.append(
        ledger.from_segment(Segment(9, "absent", 0.0, 10.0, "")).failed("resample", "silent", "x")
    )
    sha256 = hashlib.sha256((folder / "0.tar").read_bytes()).hexdigest()
    return Job(folder / "0.tar", sha256, rows, PARAMS)


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "0.h5"


def expected_log_mel(name):
    """The front end on the samples as 16-bit FLAC keeps them, float32, time first."""
    wave = audio.quantize(waveform(name)) / np.float32(2**15)
    return LogMel(PARAMS)(torch.from_numpy(wave)).numpy().T


def test_shards_hold_the_log_mels_rounded_to_float16(job, target):
    logmel_shard(job, target)
    shard = hdf5_shards.read(target)
    assert shard.clip_id == ["long_0", "odd_0", "least_0", "one_0"]
    assert np.diff(shard.start).tolist() == [1001, 78, 4, 96]
    for i, name in enumerate(["long", "odd", "least", "one"]):
        stored = shard.frames[shard.start[i] : shard.start[i + 1]]
        np.testing.assert_array_equal(stored, expected_log_mel(name).astype(np.float16))
        np.testing.assert_allclose(stored, expected_log_mel(name), atol=0.004)


def test_a_clip_without_a_frame_is_recorded(job, target):
    rows = logmel_shard(job, target)
    by_name = {row.recording_id: row for row in rows}
    assert by_name["too_short"].status == "short"
    assert by_name["too_short"].stage == "logmel"
    assert by_name["too_short"].reason == "512 samples, one frame needs 513"
    assert by_name["too_short"].frames is None
    assert by_name["long"].frames == 1001
    assert by_name["absent"].stage == "resample"
    assert [row.row for row in rows] == [row.row for row in job.rows]


def test_statistics_equal_numpy_over_all_frames_before_rounding(job, target):
    rows = logmel_shard(job, target)
    totals = hdf5_shards.read_totals(target)
    names = [row.recording_id for row in rows if row.ok]
    together = np.concatenate([expected_log_mel(n) for n in names]).astype(np.float64)
    found = summarize(stats.merge([totals]), rows)
    assert found["mean"] == pytest.approx(together.mean(), rel=1e-10)
    assert found["std"] == pytest.approx(together.std(), rel=1e-10)
    assert found["count"] == together.size
    assert found["clips"] == 4
    assert hdf5_shards.read(target).totals == totals
    assert json.loads(json.dumps(found)) == found


def test_another_rate_than_the_front_end_s_is_refused(tmp_path, target):
    with pytest.raises(ValueError, match=r"long_0 has 8000 Hz, expected logmel\.sample_rate = 160"):
        logmel_shard(make_job(tmp_path, rate=8000), target)
