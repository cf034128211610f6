"""Published audio of HEAR tasks: its sample rate, and errors that name the file."""

import os
import shutil

import numpy as np
import pytest
import soundfile
from synthetic_hear import RATE, wave, write_event_task, write_fold_task, write_scene_task

from pipeline.hear.tasks.audio import publish_task, read_clip
from pipeline.hear.tasks.task import read_task


def published(folder, tmp_path, sample_rate=RATE):
    target = tmp_path / "published"
    target.mkdir()
    publish_task(read_task(folder), target, sample_rate, 1e9)
    return target


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("write", [write_scene_task, write_fold_task, write_event_task])
def test_a_task_of_the_right_rate_is_copied_byte_by_byte(tmp_path, write):
    folder = write(tmp_path / "toy")
    assert contents(published(folder, tmp_path)) == contents(folder)


def test_unlisted_files_are_skipped(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    shutil.copy(folder / "16000/train/0.wav", folder / "16000/train/extra.wav")
    (folder / "notes.txt").write_text("")
    names = {name.rsplit("/", 1)[-1] for name in contents(published(folder, tmp_path))}
    assert not names & {"extra.wav", "notes.txt"}


def at_48_khz(folder):
    """Replace a task's audio by audio at 48 kHz and, as a distractor, at 22.05 kHz."""
    rng = np.random.default_rng(0)
    for path in sorted((folder / "16000").rglob("*.wav")):
        for rate in (48_000, 22_050):
            other = folder / str(rate) / path.parent.name / path.name
            other.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(other, wave("low", 0.5, rng, rate), rate)
    shutil.rmtree(folder / "16000")
    return folder


def test_a_task_of_another_rate_is_resampled_from_the_highest(tmp_path):
    folder = at_48_khz(write_scene_task(tmp_path / "toy"))
    target = published(folder, tmp_path)
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == ["16000"]
    original, _ = soundfile.read(folder / "48000/test/0.wav")
    resampled, rate = soundfile.read(target / "16000/test/0.wav")
    assert rate == RATE
    assert len(resampled) == RATE // 2
    inner = slice(500, -500)  # resampling keeps a tone far below both Nyquist frequencies
    np.testing.assert_allclose(resampled[inner], original[::3][inner], atol=1e-3)


def test_the_same_task_gives_the_same_bytes(tmp_path):
    folder = at_48_khz(write_scene_task(tmp_path / "toy"))
    first = contents(published(folder, tmp_path))
    shutil.rmtree(tmp_path / "published")
    assert contents(published(folder, tmp_path)) == first


def test_the_rate_in_the_file_counts_not_that_of_its_folder(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    path = folder / "16000/train/0.wav"
    soundfile.write(path, wave("low", 0.5, np.random.default_rng(0), 44_100), 44_100)
    assert soundfile.info(published(folder, tmp_path) / "16000/train/0.wav").samplerate == RATE


def write_invalid(path, fault):
    tone = wave("low", 0.5, np.random.default_rng(0))
    if fault == "stereo":
        soundfile.write(path, np.stack([tone, tone], axis=1), RATE)
    elif fault == "no samples":
        soundfile.write(path, tone[:0], RATE)
    elif fault == "not finite":
        soundfile.write(path, np.where(tone > 0, np.nan, tone), RATE, subtype="FLOAT")
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "no audio":
        path.write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stereo", "has 2 channels, expected 1"),
        ("no samples", "no samples"),
        ("not finite", "samples that are not finite"),
        ("truncated", "it is truncated"),
        ("empty", "the file is empty"),
        ("no audio", "not audio"),
    ],
)
def test_invalid_audio_is_named(tmp_path, fault, message):
    folder = write_scene_task(tmp_path / "toy")
    write_invalid(folder / "16000/valid/3.wav", fault)
    with pytest.raises(ValueError, match=f"toy/16000/valid/3.wav.*{message}"):
        published(folder, tmp_path)


def test_a_truncated_flac_is_named(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, wave("noise", 0.5, np.random.default_rng(0)), RATE)
    write_invalid(path, "truncated")
    with pytest.raises(ValueError, match=r"a\.flac: .*Replace the file"):
        read_clip(path)


def test_a_missing_file_is_named(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    (folder / "16000/test/1.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy/16000/test/1.wav is missing"):
        published(folder, tmp_path)


def test_a_task_without_audio_is_named(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    shutil.rmtree(folder / "16000")
    with pytest.raises(FileNotFoundError, match=r"toy has no folder of audio, such as 16000/train"):
        published(folder, tmp_path)


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"ID3")
    with pytest.raises(ValueError, match=r"a\.mp3: .* must be \.wav or \.flac"):
        read_clip(tmp_path / "a.mp3")


def test_a_huge_file_of_a_task_is_named_and_not_read(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    os.truncate(folder / "16000/train/0.wav", 10**12)
    with pytest.raises(
        ValueError, match=r"train/0.wav has 1,000,000,000,000 bytes, more than 1000"
    ):
        published(folder, tmp_path)
