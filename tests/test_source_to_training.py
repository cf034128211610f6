"""Every source, from its published layout through the data stages to pre-training."""

import contextlib
import io
import json
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
from media_server import serve
from safetensors import safe_open
from safetensors.numpy import load_file
from stage_runs import ROOT, change_params, make, run_stages, use
from synthetic_sources import RATE, audio, tone

import stages.pretrain
from pipeline.core import shard_folder
from pipeline.core.stage import run
from pipeline.corpus.clips import ledger
from pipeline.features import hdf5_shards

PER_SHARD = 2
EPOCHS = 3
TINY = {
    "download": {"clips_per_shard": PER_SHARD, "max_failed": 1.0},
    "network": {"clips_per_hour": 0.0, "backoff_s": 0.01},
    "encoders.audiontt": {"channels": 4, "hidden_dim": 16, "embed_dim": 80},
    "projector": {"hidden_dim": 16, "out_dim": 8},
    "augment": {"mixup_bank": 8},
    "pretrain": {"epochs": EPOCHS, "warmup_epochs": 0.0, "rank_clips": 2},
    "compute": {"workers": 1, "connections": 2, "device": "cpu"},
}
CLIPS = ["ca5f03682ce_10000", "ca5f03682ce_20000", "09658372759_0"]


@pytest.fixture(autouse=True)
def _small(repository):
    change_params(TINY, ROOT / "params.yaml")


@contextlib.contextmanager
def sample():
    """Three clips of the recordings that ship with the repository."""
    Path("data").mkdir()
    Path("data/sample").symlink_to(ROOT / "data/sample")
    Path("list.txt").write_text("\n".join(CLIPS))
    use("sample", clips="list.txt")
    rows = pd.read_csv("data/sample/segments.csv", comment="#", skipinitialspace=True, header=None)
    labels = {
        f"{recording_id}_{start * 1000:.0f}": label
        for recording_id, start, _, label in rows.to_numpy()
    }
    yield {clip: labels[clip] for clip in labels if clip in CLIPS}


@contextlib.contextmanager
def site(source, folder, **names):
    """A source whose recordings, and lists if it is AudioSet, are on the web."""
    labels = make(source)
    with serve(Path(folder)) as web:
        address = web.template.rsplit("/", 1)[0]
        use(source, **{key: f"{address}/{name}" for key, name in names.items()})
        yield labels
        assert web.requests.total() >= 2 * len(labels)  # yt-dlp's and FFmpeg's


@contextlib.contextmanager
def local(source):
    """A source of local files."""
    yield make(source)


def piece(path, start_s, end_s):
    """Seconds of a recording, and its rate."""
    rate = soundfile.info(path).samplerate
    return soundfile.read(path, start=round(start_s * rate), stop=round(end_s * rate))


def scaled(samples, rate=RATE):
    """16-bit samples as numbers, and their rate."""
    return samples / 2**15, rate


# Source -> how to set it up, and one of its clips with a function that returns its waveform once
# the data exist.
CASES = {
    "sample": (
        sample,
        "ca5f03682ce_20000",
        lambda: piece("data/sample/videos/ca5f03682ce.ogg", 20.0, 30.0),
    ),
    "url": (
        lambda: site("url", "data/url/recordings", url="{recording_id}.ogg"),
        "-a_2500",
        lambda: piece("data/url/recordings/-a.ogg", 2.5, 4.0),
    ),
    "audioset": (
        lambda: site(
            "audioset",
            "data/audioset",
            lists="{subset}_segments.csv",
            labels="class_labels_indices.csv",
            url="{recording_id}.wav",
        ),
        "-_bcdefghij_1000",
        lambda: scaled(tone(400, 4.0)[RATE : 3 * RATE]),
    ),
    "folder": (
        lambda: local("folder"),
        "long_2000",
        lambda: scaled(tone(500, 5.0, channels=2)[2 * RATE : 4 * RATE]),
    ),
    "fsd50k": (lambda: local("fsd50k"), "16399_0", lambda: scaled(tone(301, rate=44100), 44100)),
    "tar": (lambda: local("tar"), "-ab_1_0", lambda: scaled(tone(300))),
    "parquet": (lambda: local("parquet"), "2-_abcdefgh_0", lambda: scaled(tone(400))),
    "hdf5": (
        lambda: local("hdf5"),
        "-1nilez17Dg_0",
        lambda: scaled(tone(300, rate=32000), 32000),
    ),
    "hdf5-mp3": (
        lambda: local("hdf5"),
        "zbcdefghijk_0",
        lambda: soundfile.read(io.BytesIO(audio(500, "mp3", rate=32000))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_source_can_be_used_for_pre_training(name):
    source, clip_id, waveform = CASES[name]
    with source() as labels:
        run_stages("download", "resample", "logmel")
    frames = features_of(labels)
    rows = check_ledger(labels, frames)
    # As amplitudes: where it is quiet, a logarithm is of the noise of 16-bit samples.
    actual, expected = (
        np.exp(x / 2) for x in (frames[clip_id].astype(float), log_mel(*waveform()))
    )
    np.testing.assert_allclose(actual, expected, rtol=0.005, atol=0.002)
    lost = [(row.clip_id, row.status) for row in rows if not row.ok]
    assert lost == ([("panns-row-1_0", "gone")] if name.startswith("hdf5") else [])
    change_params({"pretrain": {"batch_size": len(labels)}})
    Path("data/excluded.csv").write_text("clip_id\n")  # no clip is in a test split
    run("pretrain", stages.pretrain.main)
    check_training(frames)


def features_of(labels):
    """The frames of every clip, which are those expected, with their labels and in their order."""
    stored = [hdf5_shards.read(path) for path in sorted(Path("data/logmel").glob("*.h5"))]
    ids = [clip_id for shard in stored for clip_id in shard.clip_id]
    stored_labels = [label for shard in stored for label in shard.labels]
    assert list(zip(ids, stored_labels, strict=True)) == list(labels.items())
    parts = [part for shard in stored for part in np.split(shard.frames, shard.start[1:-1])]
    return dict(zip(ids, parts, strict=True))


def check_ledger(labels, frames):
    """Every clip is in the ledger, and its sums are those of the features."""
    rows = ledger.read(Path("data/ledger.csv"))
    usable = [row for row in rows if row.ok]
    assert {row.clip_id: row.labels for row in usable} == labels
    assert [row.frames for row in usable] == [len(part) for part in frames.values()]
    assert len(list(Path("data/logmel").glob("*.h5"))) == shard_folder.shard_count(
        len(rows), PER_SHARD
    )
    for row in usable:
        assert row.end_s >= row.start_s + row.duration_s - 1e-3 > 0.9 + row.start_s
        assert row.frames == pytest.approx(1 + 100 * row.duration_s, abs=11)  # MP3 adds some ms
    return rows


def log_mel(wave, rate):
    """The front end of the paper, by librosa."""
    mono = wave if wave.ndim == 1 else wave.mean(axis=1)
    mono = librosa.resample(mono, orig_sr=rate, target_sr=16000, res_type="soxr_hq")
    mel = librosa.feature.melspectrogram(
        y=mono, sr=16000, n_fft=1024, hop_length=160, pad_mode="reflect", n_mels=64, fmin=60.0,
        fmax=7800.0, htk=True, norm=None,
    )  # fmt: skip
    return np.log(mel + np.finfo(np.float32).eps).T


def check_training(frames):
    """A step for each epoch was made, on crops of these frames, and the encoder has learned."""
    history = pd.read_csv("data/pretrained/history.csv")
    assert history["step"].tolist() == list(range(EPOCHS))
    assert np.isfinite(history.to_numpy(float)).all()
    encoders = [load_file(f"data/{name}/encoder.safetensors") for name in ("random", "pretrained")]
    moved = [key for key in encoders[0] if (encoders[0][key] != encoders[1][key]).any()]
    assert any(key.endswith("weight") for key in moved)
    values = np.concatenate([part.ravel() for part in frames.values()]).astype(float)
    known = json.loads(Path("data/pretrained/encoder.json").read_text())
    assert (known["mean"], known["std"]) == pytest.approx((values.mean(), values.std()), abs=2e-3)
    with safe_open("data/pretrained/views.safetensors", "np") as pictures:
        ids, crops = pictures.metadata()["clip_id"].split("\n"), pictures.get_tensor("crop")
    assert sorted(ids) == sorted(frames)
    for clip_id, crop in zip(ids, crops, strict=True):
        normalized = (frames[clip_id].astype(float) - known["mean"]) / known["std"]
        windows = np.lib.stride_tricks.sliding_window_view(normalized, crop.shape[1], axis=0)
        assert np.abs(windows - crop).max(axis=(1, 2)).min() < 0.01
