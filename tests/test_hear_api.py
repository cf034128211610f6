"""The HEAR API: embeddings are as declared, and each depends on its clip alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic_hear import MEAN, RATE, SMALL, STD, old_tool_environment, write_checkpoint
from torch import nn

from pipeline.config import load_config
from pipeline.encoders import checkpoint
from pipeline.features.front_end import SILENCE, LogMel
from pipeline.hear import api
from pipeline.hear.api.model import get_scene_embeddings, get_timestamp_embeddings, load_model
from pipeline.hear.api.timestamps import BATCH_FRAMES

WINDOW, HOP = 15_200, 800  # samples of a timestamp's window and between timestamps
ENCODERS = ("audiontt", "vitc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of a small AudioNTT and of ViT_C tiny."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "audiontt": write_checkpoint(root / "audiontt", "audiontt", **SMALL),
        "vitc": write_checkpoint(root / "vitc", "vitc", size="tiny"),
    }


@pytest.fixture(params=ENCODERS)
def model(request, folders):
    return load_model(str(folders[request.param]))


@pytest.fixture
def audiontt(folders):
    return load_model(str(folders["audiontt"]))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise clips of different loudness."""
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.logspace(-3, 0, shape[0])[:, None]
    return (loudness * torch.randn(*shape, generator=generator)).clamp(-1, 1)


def samples(seconds: float) -> int:
    return round(seconds * RATE)


def check_independence_of_clips(model) -> None:
    """Check that a clip has the same embeddings alone, in any batch, and every time."""
    audio = noise(5, samples(0.7))
    model.train()
    scenes = get_scene_embeddings(audio, model)
    events, _ = get_timestamp_embeddings(audio[:3], model)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(get_scene_embeddings(audio, model), scenes, rtol=0, atol=0)
    for i in (0, 2):
        alone = audio[i : i + 1]
        pairs = [(scenes, get_scene_embeddings(alone, model))]
        pairs += [(scenes, get_scene_embeddings(audio[i : i + 2], model))]
        pairs += [(events, get_timestamp_embeddings(alone, model)[0])]
        for batched, single in pairs:
            error = (batched[i] - single[0]).abs().max() / batched[i].abs().max()
            assert error < 1e-5


def test_an_embedding_depends_on_its_clip_alone_in_any_batch_and_mode(model):
    check_independence_of_clips(model)


def test_running_statistics_do_not_drift(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    get_scene_embeddings(noise(4, RATE), model.train())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def train_mode(self):
    return self.train(True)


def batch_statistics(self, log_mel):
    return float(log_mel.mean()), float(log_mel.std())


@pytest.mark.parametrize(
    ("method", "fault"), [("eval", train_mode), ("scene_statistics", batch_statistics)]
)
def test_the_check_finds_train_mode_and_batch_statistics(audiontt, monkeypatch, method, fault):
    monkeypatch.setattr(api.HearModel, method, fault)
    with pytest.raises(AssertionError):
        check_independence_of_clips(audiontt)


@pytest.mark.parametrize("seconds", [0.1, 0.96, 4.0])
def test_shapes_types_and_declared_sizes(model, seconds):
    audio = noise(2, samples(seconds)).double()
    scenes = get_scene_embeddings(audio, model)
    events, timestamps = get_timestamp_embeddings(audio, model)
    count = samples(seconds) // HOP + 1
    assert scenes.shape == (2, model.scene_embedding_size)
    assert events.shape == (2, count, model.timestamp_embedding_size)
    assert timestamps.shape == (2, count)
    assert scenes.dtype == events.dtype == torch.float32
    assert scenes.isfinite().all()
    assert events.isfinite().all()


def test_sizes_of_the_paper(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path / "full", "audiontt")))
    assert (model.scene_embedding_size, model.timestamp_embedding_size) == (3072, 3072)
    assert get_scene_embeddings(noise(1, RATE), model).shape == (1, 3072)
    assert get_timestamp_embeddings(noise(1, HOP), model)[0].shape == (1, 2, 3072)


@pytest.mark.parametrize(("seconds", "count"), [(4.0, 81), (0.049, 1), (0.05, 2), (1.07, 22)])
def test_timestamps_are_in_ms_from_0_in_steps_of_the_hop(audiontt, seconds, count):
    _, timestamps = get_timestamp_embeddings(noise(3, samples(seconds)), audiontt)
    assert timestamps.tolist() == [[50.0 * i for i in range(count)]] * 3


@pytest.mark.parametrize(("edges", "seconds"), [("context", 120), ("cut", 15)])
def test_two_minutes_give_2401_timestamps_in_batches_of_bounded_size(folders, edges, seconds):
    model = load_model(str(folders["audiontt"]), edges=edges)
    count = 20 * seconds + 1
    sizes = []
    hook = model.encoder.mlp.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape))
    embeddings, timestamps = get_timestamp_embeddings(noise(1, samples(seconds)), model)
    hook.remove()
    assert embeddings.shape == (1, count, 80)
    assert timestamps[0, -1] == 1000 * seconds
    assert max(shape[0] * shape[1] for shape in sizes) * 4 <= BATCH_FRAMES["cpu"] + 96
    frames = sum(shape[0] * shape[1] for shape in sizes)
    if edges == "cut":
        assert frames == count * 24
    else:  # first and last frame of each window, and all frames of the clip for each grouping
        assert frames < count * 2 + 1.05 * 4 * 25 * seconds


def test_two_minutes_have_a_scene_embedding(model):
    assert get_scene_embeddings(noise(1, samples(120)), model).isfinite().all()


@pytest.mark.parametrize("length", [1, 160, 512])
def test_a_clip_too_short_for_a_frame_is_padded_with_zeros(model, length):
    clip = noise(1, length)
    padded = torch.nn.functional.pad(clip, (0, 513 - length))
    expected = get_scene_embeddings(padded, model)
    torch.testing.assert_close(get_scene_embeddings(clip, model), expected, rtol=0, atol=0)
    assert get_timestamp_embeddings(clip, model)[1].tolist() == [[0.0]]


def normalized(audio: torch.Tensor) -> torch.Tensor:
    """Return input [B, 1, F, T] as in the encoder's training."""
    return ((LogMel(load_config().logmel)(audio) - MEAN) / STD)[:, None]


@torch.no_grad()
def test_a_scene_of_audiontt_is_one_forward_pass_over_the_whole_clip(audiontt):
    audio = noise(2, samples(3.21))
    expected = audiontt.encoder.eval()(normalized(audio))
    torch.testing.assert_close(get_scene_embeddings(audio, audiontt), expected)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_folding_batch_norms_into_convolutions_changes_nothing(folders, name):
    ours, original = load_model(str(folders[name])).encoder, checkpoint.load(folders[name]).encoder
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in original.modules())
    log_mel = normalized(noise(2, 160 * 95))
    torch.testing.assert_close(ours(log_mel), original(log_mel), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [50, 96, 192, 193, 300])
@torch.no_grad()
def test_a_scene_of_vitc_is_the_mean_of_its_segments_weighted_by_real_frames(folders, frames):
    model = load_model(str(folders["vitc"]))
    audio = noise(2, 160 * (frames - 1))
    log_mel = normalized(audio)
    assert log_mel.shape[-1] == frames
    expected = torch.zeros(2, 192)
    for start in range(0, frames, 96):
        segment = torch.full((2, 1, 64, 96), (SILENCE - MEAN) / STD)
        real = min(96, frames - start)
        segment[..., :real] = log_mel[..., start : start + real]
        expected += model.encoder(segment) * real / frames
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    torch.testing.assert_close(get_scene_embeddings(audio, model), expected, atol=1e-5, rtol=1e-5)
    assert sum(seen) == 2 * len(range(0, frames, 96))  # no empty segment


def reference_windows(audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows around each timestamp: slices of the padded clip's STFT, and with an STFT each."""
    padded = torch.nn.functional.pad(audio, (WINDOW // 2, WINDOW // 2))
    dense = normalized(padded)[0]
    cut, own = [], []
    for k in range(audio.shape[-1] // HOP + 1):
        cut.append(dense[..., 5 * k : 5 * k + 96])
        own.append(normalized(padded[:, k * HOP : k * HOP + WINDOW])[0])
    return torch.stack(cut), torch.stack(own)


@torch.no_grad()
def test_a_timestamp_embedding_is_that_of_the_window_centered_on_it(model):
    audio = noise(1, samples(0.83))
    cut, own = reference_windows(audio)
    embeddings, _ = get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(embeddings[0], model.encoder(cut), atol=1e-5, rtol=1e-5)
    inner = slice(4, 92)  # frames whose 1024 samples lie within the window
    torch.testing.assert_close(cut[..., inner], own[..., inner], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_edges_cut_transforms_the_audio_of_each_window_alone(folders):
    audio = noise(1, samples(0.83))
    _, own = reference_windows(audio)
    for folder in folders.values():
        model = load_model(str(folder), edges="cut")
        embeddings, _ = get_timestamp_embeddings(audio, model)
        torch.testing.assert_close(embeddings[0], model.encoder(own), atol=1e-5, rtol=1e-5)
        other, _ = get_timestamp_embeddings(audio, load_model(str(folder)))
        assert (other - embeddings).abs().max() > 1e-4


@pytest.mark.parametrize("edges", ["context", "cut"])
def test_embeddings_of_several_windows_are_concatenated(model, folders, edges):
    audio = noise(2, samples(0.2))
    folder = next(f for n, f in folders.items() if (n == "vitc") == bool(model.segment_frames))
    windows = [160.0, 950.0]
    both = load_model(str(folder), window_ms=windows, edges=edges)
    embeddings, timestamps = get_timestamp_embeddings(audio, both)
    single = [load_model(str(folder), window_ms=window, edges=edges) for window in windows]
    expected = [get_timestamp_embeddings(audio, one) for one in single]
    torch.testing.assert_close(embeddings, torch.cat([e for e, _ in expected], dim=-1))
    torch.testing.assert_close(timestamps, expected[0][1])
    assert both.timestamp_embedding_size == embeddings.shape[-1] == 2 * both.scene_embedding_size
    assert get_scene_embeddings(audio, both).shape[-1] == both.scene_embedding_size


@pytest.mark.parametrize("window_ms", [950.0, 150.0])  # with and without shared work
def test_the_mean_of_the_log_mel_is_appended(folders, window_ms):
    audio = noise(2, samples(0.3))
    for folder in folders.values():
        plain = load_model(str(folder), window_ms=window_ms)
        model = load_model(str(folder), window_ms=window_ms, mel_mean=True)
        scenes = get_scene_embeddings(audio, model)
        embeddings, _ = get_timestamp_embeddings(audio, model)
        assert scenes.shape[-1] == embeddings.shape[-1] == model.timestamp_embedding_size
        torch.testing.assert_close(scenes[:, -64:], normalized(audio)[:, 0].mean(dim=-1))
        torch.testing.assert_close(scenes[:, :-64], get_scene_embeddings(audio, plain))
        torch.testing.assert_close(embeddings[..., :-64], get_timestamp_embeddings(audio, plain)[0])
        half = round(window_ms * RATE / 2000)
        dense = normalized(torch.nn.functional.pad(audio, (half, half)))[:, 0]
        fourth = dense[..., 15 : 15 + round(window_ms / 10) + 1].mean(dim=-1)
        torch.testing.assert_close(embeddings[:, 3, -64:], fourth, atol=1e-5, rtol=1e-5)


def test_statistics_of_a_task_replace_those_of_pre_training(folders, audiontt):
    audio = noise(2, samples(1.2))
    options = {"normalization": "task", "statistics": (-3.0, 2.0)}
    model = load_model(str(folders["audiontt"]), **options)
    log_mel = LogMel(load_config().logmel)(audio)
    with torch.no_grad():
        expected = audiontt.encoder(((log_mel + 3.0) / 2.0)[:, None])
    torch.testing.assert_close(get_scene_embeddings(audio, model), expected)
    assert (get_scene_embeddings(audio, audiontt) - expected).abs().max() > 1e-2
    check_independence_of_clips(model)


@torch.no_grad()
def test_a_click_affects_only_the_windows_that_contain_it(audiontt):
    silent, click = torch.zeros(1, 2 * RATE), torch.zeros(1, 2 * RATE)
    click[0, RATE] = 1.0
    without, _ = get_timestamp_embeddings(silent, audiontt)
    differs = get_timestamp_embeddings(click, audiontt)[0] != without
    affected_ms = 50.0 * differs[0].any(dim=1).nonzero().flatten()
    reach = 475 + 32  # half a window and half an STFT window, ms
    assert affected_ms.min() >= 1000 - reach
    assert affected_ms.max() <= 1000 + reach
    assert (affected_ms.min() + affected_ms.max()) / 2 == 1000


def test_window_and_hop_can_be_chosen_and_vitc_takes_windows_of_any_length(folders):
    model = load_model(str(folders["vitc"]), window_ms=1500.0, hop_ms=100.0)
    embeddings, timestamps = get_timestamp_embeddings(noise(2, samples(0.5)), model)
    assert timestamps[0].tolist() == [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]
    assert embeddings.shape == (2, 6, 192)


def test_the_callers_autocast_does_not_reduce_precision(audiontt):
    audio = noise(2, RATE)
    expected = get_scene_embeddings(audio, audiontt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = get_scene_embeddings(audio, audiontt)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(RATE), r"shape \[clips, samples\].*got \[16000\]"),
        (torch.zeros(1, 1, RATE), r"got \[1, 1, 16000\]"),
        (torch.zeros(1, 0), r"got \[1, 0\]"),
        (torch.zeros(0, RATE), r"got \[0, 16000\]"),
        (torch.zeros(1, RATE, dtype=torch.int16), "floating point.*torch.int16"),
        (torch.tensor([[0.0, 0.1], [0.0, torch.nan]]), r"not finite in clips \[1\]"),
        (torch.tensor([[0.0, torch.inf]]), r"not finite in clips \[0\]"),
    ],
)
@pytest.mark.parametrize("function", [get_scene_embeddings, get_timestamp_embeddings])
def test_invalid_audio_is_refused(audiontt, function, audio, message):
    with pytest.raises(ValueError, match=message):
        function(audio, audiontt)


def test_a_checkpoint_is_given_by_its_folder_or_its_weights(folders):
    folder = folders["audiontt"]
    for path in (folder, folder / "encoder.safetensors"):
        model = load_model(str(path))
        assert isinstance(model, nn.Module)
        assert model.sample_rate == 16_000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model_file_path": ""}, ValueError, "needs the path of a checkpoint.*data/pretrained"),
        ({"model_file_path": "nowhere"}, FileNotFoundError, r"encoder\.safetensors"),
        ({"normalization": "batch"}, ValueError, "hear.normalization = 'batch'.*'dataset'"),
        ({"normalization": "task"}, ValueError, "needs `statistics`.*normalization = 'task'"),
        ({"statistics": (0.0, 1.0)}, ValueError, "only then; got normalization = 'dataset'"),
        ({"layers": "mean"}, ValueError, "'mean' needs layers of one size.*last or concat"),
        (
            {"mode": "reference"},
            ValueError,
            "add -S hear.normalization=reference -S hear.edges=cut",
        ),
        (
            {"mode": "reference", "normalization": "reference", "edges": "cut", "mel_mean": True},
            ValueError,
            "add -S hear.mel_mean=false",
        ),
        ({"window_ms": 955.0}, ValueError, r"window_ms = 955.0 ms is 95.5 hops.*multiple of 10 ms"),
        ({"hop_ms": 5.0}, ValueError, r"hear.hop_ms = 5.0 ms is 0.5 hops"),
        ({"window_ms": 30.0}, ValueError, "window_ms = 30.0 ms is shorter than the 513 samples"),
    ],
)
def test_wrong_options_are_refused(folders, options, error, message):
    with pytest.raises(error, match=message):
        load_model(**{"model_file_path": str(folders["audiontt"]), **options})


def test_the_official_validator_accepts_the_module(folders, tmp_path):
    command = [Path(sys.executable).with_name("hear-validator"), "pipeline.hear.api.model"]
    command += ["--model", folders["audiontt"], "--device", "cpu"]
    done = subprocess.run(
        command, env=old_tool_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Looks good!" in done.stdout
    assert "You won't have embeddings for events" not in done.stderr
