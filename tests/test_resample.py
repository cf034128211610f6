"""The shard step of `resample`: every kind of bad clip is recorded and skipped."""

import hashlib
import io
from dataclasses import asdict

import numpy as np
import pytest
import soundfile

from pipeline.corpus.clips import ledger, tar_shards
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.params import ResampleParams
from pipeline.corpus.resample import Job, describe_levels, resample_shard

PARAMS = ResampleParams(max_failed=0.05, min_duration_s=0.1, silence_db=-80.0, max_clipped=1.0)
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
    tar_shards.write(tmp_path / "in.tar", contents)
    absent = ledger.from_segment(Segment(len(rows), "absent", 0.0, 1.0, ""))
    rows.insert(3, absent.failed("download", "gone", "404"))
    return Job(tmp_path / "in.tar", rows, PARAMS, 16000)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.tar"


def test_every_bad_clip_has_its_class_and_reason(job, target):
    found = {row.recording_id: (row.status, row.stage) for row in resample_shard(job, target)}
    bad = dict.fromkeys(("empty", "page", "truncated", "shorter_than_fetched"), "corrupt")
    bad |= dict.fromkeys(("silent", "faint", "cancelled", "ultrasonic"), "silent")
    assert found == {
        "good": ("ok", ""), "quiet": ("ok", ""), "mono": ("ok", ""), "absent": ("gone", "download"),
        "short": ("short", "resample"),
        **{name: (status, "resample") for name, status in bad.items()},
    }  # fmt: skip


def test_reasons_give_the_value_and_the_parameter(job, target):
    reasons = {row.recording_id: row.reason for row in resample_shard(job, target)}
    assert reasons["short"] == "0.050 s, under resample.min_duration_s = 0.1 s"
    assert reasons["silent"] == "peak -1000.0 dB, under resample.silence_db = -80.0 dB"
    assert reasons["shorter_than_fetched"] == "it lasts 0.500 s, but 1.000 s were fetched"
    assert reasons["empty"] == "the file is empty"


def test_rows_keep_their_order_and_what_was_fetched(job, target):
    rows = resample_shard(job, target)
    assert [row.row for row in rows] == [row.row for row in job.rows]
    assert [row.sha256 for row in rows] == [row.sha256 for row in job.rows]
    assert [row.duration_s for row in rows] == [row.duration_s for row in job.rows]


def test_usable_clips_are_16_khz_mono_and_in_order(job, target):
    rows = resample_shard(job, target)
    usable = [row.clip_id for row in rows if row.ok]
    clips = dict(tar_shards.read(target, usable, "resample"))
    assert list(clips) == ["good_0", "quiet_0", "mono_0"]
    wave, rate = soundfile.read(io.BytesIO(clips["good_0"]))
    assert (rate, wave.shape) == (16000, (16000,))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(wave[200:-200], expected[200:-200], atol=1e-3)
    assert soundfile.info(io.BytesIO(clips["good_0"])).subtype == "PCM_16"


def test_the_same_shard_makes_the_same_bytes(job, target):
    resample_shard(job, target)
    first = target.read_bytes()
    resample_shard(job, target)
    assert target.read_bytes() == first


@pytest.mark.parametrize("how", ["one byte", "another clip"])
def test_a_clip_that_is_not_the_one_fetched_stops_the_stage(tmp_path, how):
    row = first_row(0, "good", GOOD)
    other = bytes([*GOOD[:-1], GOOD[-1] ^ 1]) if how == "one byte" else CLIPS["quiet"]
    tar_shards.write(tmp_path / "in.tar", [(row.clip_id, other)])
    with pytest.raises(ValueError, match=r"in\.tar is damaged: good_0\.flac") as error:
        resample_shard(Job(tmp_path / "in.tar", [row], PARAMS, 16000), tmp_path / "o.tar")
    for part in (row.sha256, hashlib.sha256(other).hexdigest(), "`dvc pull --force download`",
                 "`dvc repro -f download`"):  # fmt: skip
        assert part in str(error.value)


def test_a_header_that_lies_about_the_rate_does_not_fill_the_memory(job, tmp_path):
    lying = bytearray(GOOD)
    lying[18:21] = (1 << 4 | lying[20] & 0xF).to_bytes(3, "big")  # 20 bits: 1 Hz
    row = first_row(0, "lying", bytes(lying))
    tar_shards.write(tmp_path / "in.tar", [(row.clip_id, bytes(lying))])
    (found,) = resample_shard(Job(tmp_path / "in.tar", [row], PARAMS, 16000), tmp_path / "o.tar")
    assert found.status == "corrupt"
    assert "44100.000 s" in found.reason


def clipped_tone(share):
    """A tone whose first samples, a share of all, are at full scale in one of two channels."""
    wave = tone(1.0, level=0.9)
    wave[: round(share * RATE), 1] = 1.0
    return flac(wave)


def resampled(tmp_path, contents, **changes):
    """Rows by recording of a shard of these clips."""
    rows = [first_row(i, name, content) for i, (name, content) in enumerate(contents.items())]
    clips = zip((row.clip_id for row in rows), contents.values(), strict=True)
    tar_shards.write(tmp_path / "in.tar", clips)
    job = Job(tmp_path / "in.tar", rows, PARAMS.model_copy(update=changes), 16000)
    return {row.recording_id: row for row in resample_shard(job, tmp_path / "o.tar")}


def test_levels_are_those_of_the_definition_for_every_clip_that_can_be_decoded(tmp_path):
    contents = {name: CLIPS[name] for name in ("good", "faint", "silent", "short", "truncated")}
    rows = resampled(tmp_path, contents | {"loud": clipped_tone(0.25)})
    assert rows["good"].peak_db == pytest.approx(20 * np.log10(0.5), abs=0.02)
    assert rows["faint"].peak_db == pytest.approx(20 * np.log10(0.9e-4), abs=2.0)  # 3 of 32768
    assert rows["silent"].peak_db == -1000.0
    assert rows["short"].peak_db == pytest.approx(20 * np.log10(0.5), abs=0.3)
    assert rows["loud"].clipped == pytest.approx(0.125, abs=1e-6)
    assert {rows[name].clipped for name in ("good", "faint", "silent", "short")} == {0.0}
    assert rows["truncated"].peak_db is rows["truncated"].clipped is None
    assert rows["loud"].ok


def test_clips_with_more_clipped_samples_than_the_limit_are_excluded(tmp_path):
    contents = {"good": GOOD, "some": clipped_tone(0.1), "many": clipped_tone(0.5)}
    rows = resampled(tmp_path, contents, max_clipped=0.1)
    assert {name: row.status for name, row in rows.items()} == {
        "good": "ok", "some": "ok", "many": "clipped",
    }  # fmt: skip
    assert rows["many"].reason == ("25.000% of the samples, over resample.max_clipped = 10.000%")


def test_exclusion_of_silence_can_be_turned_off_and_it_is_counted_all_the_same(tmp_path):
    contents = {name: CLIPS[name] for name in ("good", "faint", "silent", "short")}
    rows = resampled(tmp_path, contents | {"loud": clipped_tone(0.1)}, silence_db=-1000.0)
    assert [row.recording_id for row in rows.values() if not row.ok] == ["short"]
    params = PARAMS.model_copy(update={"silence_db": -1000.0})
    assert describe_levels(list(rows.values()), params) == (
        "clips with a peak under -60 dB: 2, with samples at full scale: 1; excluded: 0 under "
        "resample.silence_db = -1000.0 dB, 0 over resample.max_clipped = 100.000%, 1 under "
        "resample.min_duration_s = 0.1 s"
    )
    rows = resampled(tmp_path, contents)
    described = describe_levels(list(rows.values()), PARAMS)
    assert (
        "under -60 dB: 2, with samples at full scale: 0; excluded: 2 under resample.silence_db"
        in described
    )
