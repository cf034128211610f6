"""Decoding of good and bad audio, mix down, resampling, FLAC."""

import io
import math
import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from pipeline import audio
from pipeline.audio import BadAudioError


def noise(samples, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


def encoded(wave, rate=16000, **options):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **{"format": "WAV", "subtype": "PCM_16", **options})
    return file.getvalue()


def converted(content, *options):
    """What FFmpeg makes of a WAV file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "pipe:", *options, "pipe:"]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout


RECORDINGS = Path(__file__).parents[1] / "data/sample/videos"
FLAC = encoded(noise(48000), format="FLAC")
MP3 = encoded(noise(48000), 48000, format="MP3", subtype="MPEG_LAYER_III")


@pytest.mark.parametrize("file_format", ["WAV", "FLAC"])
def test_lossless_files_decode_to_their_samples(file_format):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (1000, 2)).astype(np.int16)
    wave, rate = audio.decode(encoded(samples, 44100, format=file_format))
    assert rate == 44100
    np.testing.assert_array_equal(wave, samples / np.float32(2**15))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-c:a", "aac", "-f", "adts"], id="AAC"),
        pytest.param(["-c:a", "aac", "-f", "ipod", "-movflags", "frag_keyframe"], id="m4a"),
        pytest.param(["-c:a", "libopus", "-f", "webm"], id="Opus in WebM"),
    ],
)
def test_what_libsndfile_cannot_read_is_read_by_ffmpeg(options):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)[:, None]
    content = converted(encoded(np.concatenate([tone, tone / 2], axis=1), 48000), *options)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(io.BytesIO(content))
    wave, rate = audio.decode(content)
    assert rate == 48000
    assert wave.shape[1] == 2
    assert len(wave) == pytest.approx(48000, abs=3000)
    left, right = np.sqrt((wave[10000:40000] ** 2).mean(axis=0))
    assert left == pytest.approx(0.3 / math.sqrt(2), rel=0.02)
    assert right == pytest.approx(0.15 / math.sqrt(2), rel=0.02)


def test_an_mp3_whose_length_libsndfile_can_but_guess_is_whole():
    quiet, loud = np.zeros((48000, 1), np.float32), noise(48000)
    wav = encoded(np.concatenate([quiet, loud, quiet]), 48000)
    content = converted(wav, "-q:a", "5", "-write_xing", "0", "-f", "mp3")
    assert soundfile.info(io.BytesIO(content)).frames > 150_000
    for start in (b"", b"ID3\x04\x00\x00\x00\x00\x01\x05" + bytes(133)):
        wave, _ = audio.decode(start + content)
        assert len(wave) == pytest.approx(144_000, abs=3000)


def test_an_mp3_that_is_longer_than_libsndfile_guesses_is_whole():
    wav = encoded(np.concatenate([noise(48000), np.zeros((480_000, 1), np.float32)]), 48000)
    content = converted(wav, "-q:a", "5", "-write_xing", "0", "-f", "mp3")
    assert soundfile.info(io.BytesIO(content)).frames < 400_000
    assert len(audio.decode(content)[0]) == pytest.approx(528_000, abs=3000)


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        pytest.param(b"", "corrupt", "the file is empty", id="empty"),
        pytest.param(b"<html>gone</html>", "corrupt", "not audio", id="web page"),
        pytest.param(np.random.default_rng(0).bytes(5000), "corrupt", "not audio", id="noise"),
        pytest.param(FLAC[: len(FLAC) // 2], "corrupt", "damaged or truncated", id="truncated"),
        pytest.param(MP3[: len(MP3) // 2], "corrupt", "of 48000 samples", id="truncated MP3"),
        pytest.param(FLAC[:20], "corrupt", "not audio|damaged", id="header cut"),
        pytest.param(
            encoded(np.full((100, 1), np.nan), subtype="FLOAT"), "corrupt", "not finite", id="NaN"
        ),
    ],
)
def test_bad_audio_has_a_class_and_a_reason(content, kind, reason):
    with pytest.raises(BadAudioError, match=reason) as error:
        audio.decode(content)
    assert error.value.kind == kind


HEADER_SIZES = {"WAV": (44, 40, "<I"), "AIFF": (54, 42, ">I"), "AU": (24, 8, ">I")}


@pytest.mark.parametrize("file_format", HEADER_SIZES)
def test_what_a_header_declares_and_the_file_lacks_is_noticed(file_format):
    """libsndfile itself takes what is there."""
    content = encoded(noise(16000), format=file_format)
    with pytest.raises(BadAudioError, match=r"truncated: 33\.\d% of it is there"):
        audio.decode(content[: len(content) // 3])
    assert len(audio.decode(content[:-20])[0]) == 15990  # an error of some header
    start, place, kind = HEADER_SIZES[file_format]
    streamed = bytearray(content)
    streamed[place : place + 4] = struct.pack(kind, 0xFFFFFFFF)  # not known when it was written
    assert len(audio.decode(bytes(streamed))[0]) == 16000
    assert len(content) == start + 2 * 16000


@pytest.fixture(scope="module")
def long_mp3(tmp_path_factory):
    """70 s of music, whose frames lend each other bits, and what FFmpeg decodes."""
    recordings = sorted(RECORDINGS.glob("*.ogg"))[:20]
    parts = [soundfile.read(path, always_2d=True)[0][:, :1] for path in recordings]
    music = np.concatenate(parts)[: 70 * 44100]
    path = tmp_path_factory.mktemp("mp3") / "long.mp3"
    converted(encoded(music, 44100), "-q:a", "4", str(path), "-f", "null")
    content = path.read_bytes()
    wave, _ = soundfile.read(io.BytesIO(converted(content, "-f", "wav")), dtype="float32")
    return content, wave[: 70 * 44100]


def test_a_long_mp3_is_decoded_as_if_at_once(long_mp3, monkeypatch):
    content, expected = long_mp3
    monkeypatch.setattr(audio, "BLOCK", 100_000)
    actual, _ = audio.decode(content)
    np.testing.assert_allclose(actual[:, 0].clip(-1, 1), expected, atol=2e-4)


def test_any_span_of_an_mp3_is_as_if_all_before_it_had_been_decoded(long_mp3):
    content, expected = long_mp3
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        for start in (0, 1000, *range(70_000, 3_000_000, 123_456), len(expected) - 5000):
            span = audio.read_span(sound, start, 10_000)[:, 0]
            np.testing.assert_allclose(
                span.clip(-1, 1), expected[start : start + 10_000], atol=2e-4
            )


def test_a_film_without_sound_has_no_audio():
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=d=0.2"]
    film = subprocess.run([*command, "-f", "matroska", "pipe:"], capture_output=True, check=True)
    with pytest.raises(BadAudioError, match="no audio track") as error:
        audio.decode(film.stdout)
    assert error.value.kind == "no_audio"


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "M4A"])
def test_no_damage_makes_decoding_crash(file_format):
    if file_format == "M4A":
        good = converted(encoded(noise(8000)), "-c:a", "aac", "-f", "adts")
    else:
        subtype = "VORBIS" if file_format == "OGG" else "PCM_16"
        good = encoded(noise(8000, seed=3), format=file_format, subtype=subtype)
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(good[: rng.integers(1, len(good) + 1)])
        where = rng.integers(0, min(len(damaged), rng.choice([64, len(good)])), rng.integers(0, 9))
        for i in where:
            damaged[i] = rng.integers(256)
        try:
            wave, rate = audio.decode(bytes(damaged))
        except BadAudioError as error:
            outcomes.add(error.kind)
        else:
            outcomes.add("ok")
            assert np.isfinite(wave).all()
            assert rate > 0
    assert outcomes <= {"ok", "corrupt", "no_audio"}
    assert "corrupt" in outcomes


def test_mono_is_the_mean_of_the_channels():
    wave = noise(100, channels=3)
    np.testing.assert_allclose(
        audio.to_mono(wave), (wave[:, 0] + wave[:, 1] + wave[:, 2]) / 3, rtol=0, atol=1e-7
    )


def test_channels_that_cancel_are_silent_in_mono():
    wave = noise(100)
    assert audio.peak_db(audio.to_mono(np.concatenate([wave, -wave], axis=1))) == -math.inf


def tone_gain_db(frequency, rate, target_rate):
    """Level of a tone after resampling, in dB of its level before."""
    wave = np.sin(2 * np.pi * frequency * np.arange(2 * rate) / rate).astype(np.float32)
    out = audio.resample(wave, rate, target_rate)[target_rate // 2 : 3 * target_rate // 2]
    return 10 * np.log10((out.astype(np.float64) ** 2).mean() / 0.5)


@pytest.mark.parametrize("rate", [48000, 44100])
def test_resampling_is_flat_up_to_7_khz_and_lets_no_alias_in(rate):
    for frequency in (50, 1000, 4000, 7000):
        assert tone_gain_db(frequency, rate, 16000) == pytest.approx(0, abs=0.1)
    for frequency in (8400, 9000, 12000, 15900, 20000):
        assert tone_gain_db(frequency, rate, 16000) < -90


@pytest.mark.parametrize(
    ("rate", "samples", "expected"),
    [(48000, 480000, 160000), (44100, 441000, 160000), (8000, 80000, 160000), (16000, 123, 123)],
)
def test_resampling_keeps_the_duration(rate, samples, expected):
    assert len(audio.resample(noise(samples)[:, 0], rate, 16000)) == expected


def test_resampling_does_not_delay():
    wave = noise(48000)[:, 0]
    smooth = np.convolve(wave, np.hanning(64) / 32, "same").astype(np.float32)
    np.testing.assert_allclose(
        audio.resample(smooth, 48000, 16000)[100:-100], smooth[::3][100:-100], atol=1e-3
    )


def test_peaks_are_in_db_of_full_scale():
    assert audio.peak_db(np.array([0.1, -0.5], np.float32)) == pytest.approx(-6.0206, abs=1e-3)
    assert audio.peak_db(np.zeros(3, np.float32)) == -math.inf


def test_flac_keeps_16_bit_samples_as_they_are_and_clips_the_rest():
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    content = audio.encode_flac(samples / np.float32(2**15), 16000)
    decoded, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(decoded, samples)
    loud = np.array([1.5, -1.5, 0.0], np.float32)
    assert audio.quantize(loud).tolist() == [32767, -32768, 0]


def test_flac_has_the_same_bytes_every_time():
    wave = noise(16000)[:, 0]
    assert audio.encode_flac(wave, 16000) == audio.encode_flac(wave.copy(), 16000)
