"""Fingerprints: their definition, what they are robust to, and which sounds have none."""

from functools import cache

import numpy as np
import pytest
import torch
from synthetic_recordings import RATE, coded, recording

from pipeline.config import load_config
from pipeline.features.front_end import LogMel
from pipeline.leaks import fingerprint, search
from pipeline.leaks.fingerprint import LAG, SMOOTH, SPAN, STRIDE, UNINFORMATIVE

CONFIG = load_config()
LOG_MEL = CONFIG.logmel
CRITERIA = search.MatchCriteria.for_front_end(
    CONFIG.leaks.max_bit_error, CONFIG.leaks.min_overlap_s, LOG_MEL
)


@cache
def front_end():
    return LogMel(LOG_MEL)


def log_mel(wave):
    return front_end()(torch.from_numpy(wave.astype(np.float32))).numpy().T.astype(np.float16)


def prints(wave):
    return fingerprint.fingerprint(log_mel(wave))


def find(tests, clip):
    """Return the match of a clip among test files, all given as waveforms."""
    index = search.build_index([prints(wave) for wave in tests])
    return search.search(index, prints(clip)[::STRIDE], CRITERIA)


def test_each_bit_is_the_sign_of_a_change_of_the_difference_of_two_bands():
    frames = log_mel(recording(0.5, seed=0))
    energy = np.exp(frames.astype(np.float64))
    band = [round(b * (64 - 4) / 32) for b in range(33)]

    def level(n, b):
        return np.log(energy[n : n + SMOOTH, band[b] : band[b] + 4].sum())

    values = fingerprint.fingerprint(frames)
    assert len(values) == len(frames) - SPAN + 1
    for n in range(len(values)):
        bits = 0
        for b in range(32):
            now = level(n, b + 1) - level(n, b)
            later = level(n + LAG, b + 1) - level(n + LAG, b)
            bits |= (now > later) << b
        assert values[n] == bits


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(2 * RATE),
        0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE),
        np.ones(2 * RATE),
    ],
    ids=["silence", "tone", "constant"],
)
def test_constant_sounds_are_uninformative(wave):
    edge = LOG_MEL.n_fft // LOG_MEL.hop_length  # frames that see the reflected ends
    assert (prints(wave)[edge:-edge] == UNINFORMATIVE).all()
    assert find([wave], wave) is None


def test_fewer_frames_than_a_span_have_no_fingerprint():
    frames = np.zeros((SPAN, 64), np.float16)
    assert len(fingerprint.fingerprint(frames)) == 1
    assert len(fingerprint.fingerprint(frames[1:])) == 0


def test_too_few_mel_bins_are_refused():
    with pytest.raises(ValueError, match="n_mels = 35: a fingerprint needs 36"):
        fingerprint.fingerprint(np.zeros((100, 35), np.float16))


@pytest.mark.parametrize(
    ("rate", "file_format", "subtype"),
    [(44_100, "OGG", "VORBIS"), (48_000, "MP3", "MPEG_LAYER_III"), (22_050, "WAV", "PCM_16")],
)
@pytest.mark.parametrize("begin_s", [1.234, -0.777])  # where the test file begins in the clip
def test_a_lossy_quieter_copy_cut_elsewhere_is_found_at_its_position(
    rate, file_format, subtype, begin_s
):
    original = recording(12, seed=1)
    first = round(2 * RATE)
    clip = coded(0.5 * original[first : first + 6 * RATE], rate, file_format, subtype)
    begin = first + round(begin_s * RATE)
    tests = [recording(4, seed=2), original[begin : begin + 4 * RATE], recording(4, seed=3)]
    match = find(tests, clip)
    assert match is not None
    assert match.file == 1
    assert match.offset * LOG_MEL.hop_length / RATE == pytest.approx(begin_s, abs=0.03)
    assert match.bit_error < 0.2


def test_a_whole_short_file_is_found_but_part_of_a_long_one_is_not():
    original = recording(8, seed=4)
    second = original[3 * RATE : 4 * RATE]
    clip = np.concatenate([recording(3, seed=5), second, recording(3, seed=6)])
    assert find([recording(4, seed=7), second], clip).file == 1
    assert find([recording(4, seed=7), original], clip) is None


def test_a_short_clip_inside_a_long_file_is_found():
    original = recording(8, seed=8)
    match = find([original], original[3 * RATE : round(4.5 * RATE)])
    assert match.offset == -300


def test_other_recordings_noise_and_repetition_do_not_match():
    rng = np.random.default_rng(9)
    tests = [recording(6, seed) for seed in range(20, 30)] + [0.1 * rng.standard_normal(6 * RATE)]
    time = np.arange(6 * RATE) / RATE
    tests.append(0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 4 * time)))
    index = search.build_index([prints(wave) for wave in tests])
    others = [recording(6, seed) for seed in range(40, 60)]
    others += [0.1 * rng.standard_normal(6 * RATE), np.zeros(6 * RATE)]
    others.append(0.3 * np.sin(2 * np.pi * 330 * time) * (1 + np.sin(2 * np.pi * 3 * time)))
    for other in others:
        assert search.search(index, prints(other)[::STRIDE], CRITERIA) is None


def test_the_search_finds_what_a_comparison_at_every_position_finds():
    original = recording(8, seed=10)
    tests = [recording(3, seed=11), original[20_000:60_000], original[:50_000]]
    files = [prints(wave) for wave in tests]
    clip = prints(coded(original[RATE:], 44_100, "OGG", "VORBIS"))[::STRIDE]
    expected = []
    for number, file in enumerate(files):
        for offset in range(-len(file) + 1, STRIDE * len(clip)):
            pairs = [
                (int(value), int(file[STRIDE * n - offset]))
                for n, value in enumerate(clip)
                if 0 <= STRIDE * n - offset < len(file)
            ]
            pairs = [pair for pair in pairs if all(pair)]
            if STRIDE * len(pairs) >= CRITERIA.min_overlap:
                error = sum((a ^ b).bit_count() for a, b in pairs) / (32 * len(pairs))
                expected.append((error, number, offset))
    match = search.search(search.build_index(files), clip, CRITERIA)
    assert (match.bit_error, match.file, match.offset) == pytest.approx(min(expected))


def test_fewer_bits_may_differ_over_a_shorter_overlap():
    full = CRITERIA.min_overlap
    allowed = CRITERIA.allowed_bit_error(np.array([4 * full, full, full / 4, full / 8, 0]))
    np.testing.assert_allclose(allowed[:3], [0.3, 0.3, 0.1])
    assert (allowed[3:] < 0).all()


def test_values_shared_by_many_frames_are_not_keys():
    rng = np.random.default_rng(0)
    common = np.full(search.MAX_REPEATS + 1, 7, np.uint32)
    rare = rng.integers(100, 2**24, 50).astype(np.uint32)
    index = search.build_index([common, rare])
    np.testing.assert_array_equal(index.keys, np.unique(rare))
    assert len(index.where) == 50
