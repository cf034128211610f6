"""The shard step of `resample`: every kind of bad clip is recorded and skipped."""

import hashlib
import io
from dataclasses import asdict

import numpy as np
import pytest
import soundfile

from pipeline import ledger, tarshards
from pipeline.params.data import ResampleParams
from pipeline.resample import Job, resample_shard
from pipeline.segments import Segment

PARAMS = ResampleParams(
    max_failed=0.05, min_duration_s=0.1, silence_db=-80.0, max_clipped=1.0
)
RATE = 44100


def tone(seconds, level=0.5, channels=2):
    wave = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
    return np.stack([wave] * channels, axis=1)


def flac(wave):
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


GOOD = flac(tone(1.0))
CLIPS = {
    "good": GOOD,
    "empty": b"",
    "page": b"<html>not found</html>",
    "truncated": GOOD[: len(GOOD) // 2],
    "silent": flac(tone(1.0, level=0)),
    "faint": flac(tone(1.0, level=0.9e-4)),
    "quiet": flac(tone(1.0, level=2e-4)),
    "cancelled": flac(tone(1.0) * [1, -1]),
    "ultrasonic": flac(
        (np.hanning(RATE) * np.sin(2 * np.pi * 15000 * np.arange(RATE) / RATE))[:, None]
    ),
    "short": flac(tone(0.05)),
    "shorter than fetched": flac(tone(0.5)),
    "mono": flac(tone(1.0, channels=1)),
}
DURATIONS = {"short": 0.05, "empty": None, "page": None}


def first_row(row, name, content):
    segment = Segment(row, name.replace(" ", "_"), 0.0, 1.0, "/m/1")
    described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    fields = asdict(ledger.from_segment(segment)) | described
    return ledger.Row(**fields | {"duration_s": DURATIONS.get(name, 1.0)})


@pytest.fixture
def job(tmp_path):
    """A shard with a clip of every kind and a row that did not arrive."""
    rows = [first_row(i, name, content) for i, (name, content) in enumerate(CLIPS.items())]
    contents = zip((row.clip_id for row in rows), CLIPS.values(), strict=True)
    tarshards.write(tmp_path / "in.tar", contents)
    absent = ledger.from_segment(Segment(len(rows), "absent", 0.0, 1.0, ""))
    rows.insert(3, absent.failed("download", "gone", "404"))
    return Job(tmp_path / "in.tar", tmp_path / "out.tar", rows, PARAMS, 16000)


def test_every_bad_clip_has_its_class_and_reason(job):
    found = {row.ytid: (row.status, row.stage) for row in resample_shard(job)}
    bad = dict.fromkeys(("empty", "page", "truncated", "shorter_than_fetched"), "corrupt")
    bad |= dict.fromkeys(("silent", "faint", "cancelled", "ultrasonic"), "silent")
    assert found == {
        "good": ("ok", ""), "quiet": ("ok", ""), "mono": ("ok", ""), "absent": ("gone", "download"),
        "short": ("short", "resample"),
        **{name: (status, "resample") for name, status in bad.items()},
    }  # fmt: skip


def test_reasons_give_the_value_and_the_parameter(job):
    reasons = {row.ytid: row.reason for row in resample_shard(job)}
    assert reasons["short"] == "0.050 s, under resample.min_duration_s = 0.1 s"
    assert reasons["silent"] == "peak -inf dB, under resample.silence_db = -80.0 dB"
    assert reasons["shorter_than_fetched"] == "it lasts 0.500 s, but 1.000 s were fetched"
    assert reasons["empty"] == "the file is empty"


def test_rows_keep_their_order_and_what_was_fetched(job):
    rows = resample_shard(job)
    assert [row.row for row in rows] == [row.row for row in job.rows]
    assert [row.sha256 for row in rows] == [row.sha256 for row in job.rows]
    assert [row.duration_s for row in rows] == [row.duration_s for row in job.rows]


def test_usable_clips_are_16_khz_mono_and_in_order(job):
    rows = resample_shard(job)
    usable = [row.clip_id for row in rows if row.ok]
    clips = dict(tarshards.read(job.target, usable, "resample"))
    assert list(clips) == ["good_0", "quiet_0", "mono_0"]
    wave, rate = soundfile.read(io.BytesIO(clips["good_0"]))
    assert (rate, wave.shape) == (16000, (16000,))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(wave[200:-200], expected[200:-200], atol=1e-3)
    assert soundfile.info(io.BytesIO(clips["good_0"])).subtype == "PCM_16"


def test_the_same_shard_makes_the_same_bytes(job, tmp_path):
    resample_shard(job)
    first = job.target.read_bytes()
    resample_shard(job)
    assert job.target.read_bytes() == first


@pytest.mark.parametrize("how", ["one byte", "another clip"])
def test_a_clip_that_is_not_the_one_fetched_stops_the_stage(tmp_path, how):
    row = first_row(0, "good", GOOD)
    other = bytes([*GOOD[:-1], GOOD[-1] ^ 1]) if how == "one byte" else CLIPS["quiet"]
    tarshards.write(tmp_path / "in.tar", [(row.clip_id, other)])
    with pytest.raises(ValueError, match=r"in\.tar is damaged: good_0\.flac") as error:
        resample_shard(Job(tmp_path / "in.tar", tmp_path / "o.tar", [row], PARAMS, 16000))
    for part in (row.sha256, hashlib.sha256(other).hexdigest(), "`dvc pull --force download`",
                 "`dvc repro -f download`"):  # fmt: skip
        assert part in str(error.value)


def test_a_header_that_lies_about_the_rate_does_not_fill_the_memory(job, tmp_path):
    lying = bytearray(GOOD)
    lying[18:21] = (1 << 4 | lying[20] & 0xF).to_bytes(3, "big")  # 20 bits: 1 Hz
    row = first_row(0, "lying", bytes(lying))
    tarshards.write(tmp_path / "in.tar", [(row.clip_id, bytes(lying))])
    (found,) = resample_shard(Job(tmp_path / "in.tar", tmp_path / "o.tar", [row], PARAMS, 16000))
    assert found.status == "corrupt"
    assert "44100.000 s" in found.reason
