"""The log-mel front end against librosa and against its own definition."""

import librosa
import numpy as np
import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from pipeline.features.front_end import EPSILON, SILENCE, LogMel
from pipeline.features.params import LogMelParams

PARAMS = LogMelParams(
    sample_rate=16000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=60.0,
    f_max=7800.0,
)  # fmt: skip


@pytest.fixture
def log_mel():
    return LogMel(PARAMS)


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


SIGNALS = {
    "noise": noise(16000),
    "sine": 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32),
    "click": np.eye(1, 16000, 8000, dtype=np.float32)[0],
}


def test_log_mels_equal_librosa_with_htk_mels_without_area_normalization(log_mel):
    for name, wave in SIGNALS.items():
        expected = librosa.feature.melspectrogram(
            y=wave, sr=16000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, fmin=60,
            fmax=7800, power=2.0, htk=True, norm=None, center=True, pad_mode="reflect",
        )  # fmt: skip
        actual = log_mel(torch.from_numpy(wave)).double().numpy()
        difference = np.exp(actual) - EPSILON - expected
        assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(expected), name
        audible = expected > 1e-7 * expected.max()  # the rest is the rounding of float32 FFTs
        np.testing.assert_allclose(
            actual[audible], np.log(expected + EPSILON)[audible], rtol=1e-5, atol=2e-5, err_msg=name
        )


def test_log_mels_equal_torchaudio_for_any_number_of_dimensions(log_mel):
    transform = MelSpectrogram(
        16000, n_fft=1024, hop_length=160, f_min=60.0, f_max=7800.0, n_mels=64
    )
    waves = torch.from_numpy(np.stack([noise(4000, seed) for seed in range(6)])).reshape(2, 3, -1)
    for wave in (waves, waves[0], waves[0, 0]):
        actual = log_mel(wave)
        torch.testing.assert_close(actual, (transform(wave) + EPSILON).log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("samples", "frames"), [(160000, 1001), (15200, 96), (16000, 101)])
def test_frames_are_one_more_than_hops(log_mel, samples, frames):
    assert log_mel(torch.from_numpy(noise(samples))).shape == (64, frames)


def test_silence_is_the_log_of_the_floor(log_mel):
    assert pytest.approx(-15.9424, abs=5e-5) == SILENCE
    silence = log_mel(torch.zeros(16000))
    torch.testing.assert_close(silence, torch.full_like(silence, SILENCE))


def test_the_shortest_waveform_has_its_frames_and_a_shorter_one_is_an_error(log_mel):
    assert log_mel.min_samples == 513
    assert log_mel(torch.from_numpy(noise(513))).shape == (64, 4)
    with pytest.raises(ValueError, match=r"at least 513 samples .*n_fft = 1024\), got 512"):
        log_mel(torch.from_numpy(noise(512)))


def test_a_batch_has_the_log_mels_of_its_items(log_mel):
    waves = torch.from_numpy(np.stack([noise(4000, seed) for seed in range(3)]))
    torch.testing.assert_close(
        log_mel(waves), torch.stack([log_mel(wave) for wave in waves]), rtol=1e-5, atol=1e-5
    )
