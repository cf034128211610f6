"""The authors' wrapper: mode `reference` has each of its faults, mode `ours` has none."""

import pytest
import torch
from synthetic_hear import MEAN, RATE, SMALL, STD, write_checkpoint
from torchaudio.transforms import MelSpectrogram

from pipeline.encoders import checkpoint
from pipeline.hear.api.model import get_scene_embeddings, get_timestamp_embeddings, load_model

REFERENCE = {"mode": "reference", "normalization": "reference", "edges": "cut"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "audiontt": write_checkpoint(root / "audiontt", "audiontt", **SMALL),
        "still": write_checkpoint(root / "still", "audiontt", **SMALL, dropout=0.0),
        "vitc": write_checkpoint(root / "vitc", "vitc", size="tiny"),
    }


def models(folder):
    """Return the authors' wrapper and ours."""
    return load_model(str(folder), **REFERENCE), load_model(str(folder))


def noise(clips: int, samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    loudness = torch.logspace(-2, -0.5, clips)[:, None]
    return loudness * torch.randn(clips, samples, generator=generator)


def log_mel(audio: torch.Tensor, win_length: int) -> torch.Tensor:
    """The front end written out, with any window."""
    sizes = {"n_fft": 1024, "win_length": win_length, "hop_length": 160}
    mel = MelSpectrogram(RATE, **sizes, n_mels=64, f_min=60.0, f_max=7800.0)
    return (mel(audio) + torch.finfo(torch.float32).eps).log()


def test_fault_1_scenes_of_a_convolutional_encoder_are_made_in_training_mode(folders):
    """Dropout is on; batch norm uses the clip's statistics and updates its running ones."""
    wrapper, ours = models(folders["audiontt"])
    audio = noise(1, RATE)
    norm = wrapper.encoder.conv[0][1]
    before = norm.running_mean.clone()
    first, second = (get_scene_embeddings(audio, wrapper) for _ in range(2))
    assert (first - second).abs().max() > 0.01
    assert (norm.running_mean - before).abs().max() > 0.01
    assert torch.equal(get_scene_embeddings(audio, ours), get_scene_embeddings(audio, ours))
    first, second = (get_timestamp_embeddings(audio, wrapper)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_fault_2_the_stft_window_has_400_samples(folders):
    wrapper, ours = models(folders["still"])
    audio = noise(1, RATE)
    for model, win_length in ((wrapper, 400), (ours, 1024)):
        torch.testing.assert_close(model.front_end.clips(audio), log_mel(audio, win_length))


@torch.no_grad()
def test_faults_1_2_and_4_in_scenes_written_out(folders):
    """One clip at a time, normalized by the batch averages of the clips' means and stds."""
    wrapper, _ = models(folders["still"])
    audio = noise(3, RATE)
    mel = log_mel(audio, 400)
    mean = sum(float(clip.mean()) for clip in mel) / 3
    std = sum(float(clip.std()) for clip in mel) / 3
    embeddings = get_scene_embeddings(audio, wrapper)
    encoder = checkpoint.load(folders["still"]).encoder.train()
    expected = torch.cat([encoder(((clip - mean) / std)[None, None]) for clip in mel])
    torch.testing.assert_close(embeddings, expected)


@torch.no_grad()
def test_fault_3_timestamps_are_normalized_by_statistics_divided_by_the_number_of_windows(folders):
    wrapper, ours = models(folders["still"])
    audio = noise(2, RATE // 2)
    padded = torch.nn.functional.pad(audio, (7600, 7600))
    windows = padded.unfold(-1, 15_200, 800)  # [2, 11, 15200]
    mel = log_mel(windows, 400).flatten(0, 1)
    normalized = (mel - mel.mean() / 22) / (mel.std() / 22)
    assert normalized.std() == pytest.approx(22, rel=1e-3)
    embeddings, timestamps = get_timestamp_embeddings(audio, wrapper)
    expected = ours.encoder(normalized[:, None])
    torch.testing.assert_close(embeddings.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
    assert timestamps.tolist() == [[50.0 * i for i in range(11)]] * 2


@pytest.mark.parametrize("name", ["still", "vitc"])
def test_fault_4_the_other_clips_of_a_batch_change_an_embedding(folders, name):
    wrapper, ours = models(folders[name])
    assert (wrapper.batch_dependent, ours.batch_dependent) == (True, False)
    audio = noise(3, RATE // 4)
    for function in (get_scene_embeddings, lambda *a: get_timestamp_embeddings(*a)[0]):
        changes = [
            (function(audio, model)[0] - function(audio[:1], model)[0]).abs().max()
            for model in (wrapper, ours)
        ]
        assert changes[0] > 1e-2
        assert changes[1] < 1e-4


@pytest.mark.parametrize(("frames", "segments"), [(96, 2), (95, 1), (192, 3), (193, 3)])
@torch.no_grad()
def test_fault_5_a_vit_gets_an_extra_empty_segment_and_all_weigh_the_same(
    folders, frames, segments
):
    wrapper, _ = models(folders["vitc"])
    audio = noise(2, 160 * (frames - 1))
    mel = log_mel(audio, 400)
    mel = (mel - mel.mean()) / mel.std()
    padded = torch.zeros(2, 1, 64, 96 * segments)
    padded[:, 0, :, :frames] = mel
    expected = sum(wrapper.encoder(part) for part in padded.split(96, dim=-1)) / segments
    embeddings = get_scene_embeddings(audio, wrapper)
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_vits_window_is_averaged_with_an_empty_segment(folders):
    wrapper, _ = models(folders["vitc"])
    audio = noise(1, 800)
    mel = log_mel(torch.nn.functional.pad(audio, (7600, 7600)).unfold(-1, 15_200, 800), 400)[0]
    normalized = ((mel - mel.mean() / 2) / (mel.std() / 2))[:, None]
    empty = wrapper.encoder(torch.zeros(1, 1, 64, 96))
    expected = (wrapper.encoder(normalized) + empty) / 2
    embeddings, _ = get_timestamp_embeddings(audio, wrapper)
    torch.testing.assert_close(embeddings[0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_reference_statistics_change_nothing_else(folders):
    model = load_model(str(folders["audiontt"]), normalization="reference")
    audio = noise(2, RATE)
    mel = log_mel(audio, 1024)
    mean, std = mel.mean(dim=(1, 2)).mean(), mel.std(dim=(1, 2)).mean()
    expected = model.encoder(((mel - mean) / std)[:, None])
    torch.testing.assert_close(get_scene_embeddings(audio, model), expected)
    assert (float(mean), float(std)) != (MEAN, STD)
