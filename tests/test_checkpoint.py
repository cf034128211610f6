"""Checkpoints: what is stored, and what is refused."""

import json

import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.encoders import build_encoder
from pipeline.params.config import load_config

CONFIG = load_config()


def make(name="vitc"):
    params = getattr(CONFIG.encoders, name)
    if name == "audiontt":
        params = params.model_copy(update={"channels": 4, "hidden_dim": 16, "embed_dim": 80})
    encoder = build_encoder(name, params, n_mels=64, crop_frames=96)
    return Checkpoint(encoder, name, params, CONFIG.logmel, mean=-3.0, std=5.0, crop_frames=96)


@pytest.mark.parametrize("name", ["audiontt", "vitc", "vit"])
def test_what_is_saved_is_loaded_in_eval_mode(tmp_path, name):
    saved = make(name)
    x = torch.randn(4, 1, 64, 96)
    saved.encoder.train()(x)  # running statistics are part of an encoder
    checkpoint.save(saved, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert not any(module.training for module in loaded.encoder.modules())
    torch.testing.assert_close(loaded.encoder(x), saved.encoder.eval()(x), rtol=0, atol=0)
    assert (loaded.encoder_params, loaded.log_mel) == (saved.encoder_params, saved.log_mel)
    assert (loaded.mean, loaded.std, loaded.crop_frames) == (-3.0, 5.0, 96)


def test_the_weights_file_names_the_checkpoint_too(tmp_path):
    checkpoint.save(make(), tmp_path)
    assert checkpoint.load(tmp_path / "encoder.safetensors").encoder_name == "vitc"


def test_the_same_encoder_gives_the_same_bytes(tmp_path):
    saved = make()
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        checkpoint.save(saved, tmp_path / name)
        contents.append([p.read_bytes() for p in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("missing", ["encoder.json", "encoder.safetensors"])
def test_a_missing_file_is_named(tmp_path, missing):
    checkpoint.save(make(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing} does not exist.*dvc repro pretrain"):
        checkpoint.load(tmp_path)


def edit(folder, **changes):
    path = folder / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_files_are_refused(tmp_path):
    checkpoint.save(make(), tmp_path)
    edit(tmp_path, crop_frames=160)  # another number of positions than the weights have
    with pytest.raises(ValueError, match=r"(?s)not a usable checkpoint.*size mismatch"):
        checkpoint.load(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a usable checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(ValueError, match="not a usable checkpoint"):
        checkpoint.load(tmp_path)


def test_an_unknown_encoder_is_refused(tmp_path):
    checkpoint.save(make(), tmp_path)
    edit(tmp_path, encoder="resnet")
    with pytest.raises(ValueError, match="encoder = 'resnet': must be one of"):
        checkpoint.load(tmp_path)
