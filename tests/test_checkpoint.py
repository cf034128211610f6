"""Checkpoints: what is stored, and what is refused."""

import json

import pytest
import torch
from safetensors import SafetensorError

from pipeline.config import load_config
from pipeline.encoders import checkpoint
from pipeline.encoders.build import build_encoder
from pipeline.encoders.checkpoint import Checkpoint

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


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path):
    checkpoint.save(make(), tmp_path)
    path = tmp_path / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"encoder\.safetensors is not .*: its SHA-256 is"):
        checkpoint.load(tmp_path)
    edit(tmp_path, weights_sha256="")  # of a checkpoint that does not list it
    checkpoint.load(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    checkpoint.save(make(), tmp_path)
    edit(tmp_path, crop_frames=160)  # another number of positions than the weights have
    with pytest.raises(ValueError, match=r"(?s)safetensors is not a usable .*size mismatch"):
        checkpoint.load(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"encoder\.safetensors is not a usable checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "3", "[" * 100_000, "\udcff"])
def test_settings_that_are_not_a_json_object_are_refused(tmp_path, content):
    checkpoint.save(make(), tmp_path)
    (tmp_path / "encoder.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"encoder\.json is not a usable checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", "x", r"mean = 'x'"),
        ("std", 0.0, r"std = 0\.0: .*greater than 0"),
        ("std", None, r"std = None"),
        ("crop_frames", "96", r"crop_frames = '96'"),
        ("encoder", ["vitc"], r"encoder = \['vitc'\]"),
        ("params", [], r"params = \[\]"),
        ("params", {}, r"params\.size: missing; add it\."),
        ("logmel", None, r"logmel = None"),
        ("logmel", {"n_mels": 64}, r"logmel\.sample_rate: missing; add it\."),
        ("crop_frames", 100, r"do not tile"),
        ("typo", 1, r"typo: unknown key"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, key, value, message):
    checkpoint.save(make(), tmp_path)
    edit(tmp_path, **{key: value})
    with pytest.raises(ValueError, match=rf"(?s)encoder\.json is not a usable .*{message}"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("key", ["encoder", "params", "logmel", "mean", "std", "crop_frames"])
def test_a_missing_setting_is_named_with_its_file(tmp_path, key):
    checkpoint.save(make(), tmp_path)
    path = tmp_path / "encoder.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"(?s)encoder\.json is not a usable .*{key}: missing"):
        checkpoint.load(tmp_path)


def test_weights_that_cannot_be_written_are_an_os_error(tmp_path, monkeypatch):
    def save_file(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(OSError, match=r"encoder\.safetensors cannot .*No space left on device"):
        checkpoint.save(make(), tmp_path)


def test_an_unknown_encoder_is_refused(tmp_path):
    checkpoint.save(make(), tmp_path)
    edit(tmp_path, encoder="resnet")
    with pytest.raises(ValueError, match="encoder = 'resnet': must be one of"):
        checkpoint.load(tmp_path)
