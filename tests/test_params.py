"""params.yaml: what is refused, and how the message helps."""

import copy

import pytest

from pipeline import params
from pipeline.params import check, load, load_value, read
from pipeline.params.config import Config, load_config
from pipeline.params.method import LossParams, PretrainParams, parse_encoder


def changed(key, value):
    """The committed params.yaml with one dotted key set."""
    content = copy.deepcopy(read())
    *parents, last = key.split(".")
    section = content
    for part in parents:
        section = section[part]
    section[last] = value
    return content


def test_the_committed_file_is_valid():
    config = load_config()
    assert config.logmel.n_mels == 64
    assert config.loss.lambda_ == 0.005


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("typo", 1, r"typo: unknown key; .*known keys: augment"),
        ("pretrain.epoch", 3, r"pretrain\.epoch: unknown key; did you mean 'epochs'"),
        ("encoders.vitc.optimizer.weight_decya", 3, r"weight_decya: unknown key; .*'weight_decay'"),
        ("pretrain.epochs", "abc", r"pretrain\.epochs = 'abc': .*integer"),
        ("pretrain.epochs", 0, r"pretrain\.epochs = 0: .*greater than 0"),
        ("pretrain.epochs", 1.5, r"pretrain\.epochs = 1\.5"),
        ("encoders.audiontt.optimizer.weight_decay", "1e-5", r"weight_decay = '1e-5': .*number"),
        ("loss.lambda", float("nan"), r"loss\.lambda = nan: .*finite"),
        ("encoder", "vit_c", r"encoder = 'vit_c': must be one of audiontt, vit, vitc"),
        ("encoder", None, r"encoder = None"),
        ("source", "youtube", r"source = 'youtube': must be one of"),
        ("encoders.vitc.patch_mels", 4, r"must be one of 16x16, 16x8, 8x8, 64x2, got 4x8"),
        ("encoders.vitc.patch_frames", 4, r"must be one of 16x16, 16x8, 8x8, 64x2, got 16x4"),
        ("encoders.audiontt.optimizer.name", "adam", r"optimizer"),
        (
            "augment.rrc_scale_min",
            2.0,
            r"rrc_scale_min = 2\.0 must not exceed rrc_scale_max = 1\.5",
        ),
        ("logmel.f_max", 9000.0, r"f_max = 9000\.0, sample_rate = 16000"),
        ("logmel.win_length", 2048, r"win_length = 2048 must not exceed n_fft = 1024"),
        ("encoders.audiontt.embed_dim", 1024, r"must exceed the 1024 local features"),
        ("logmel.n_mels", 66, r"AudioNTT needs logmel\.n_mels divisible by 4"),
        ("hear.hop_ms", 33.0, r"hear\.hop_ms = 33\.0 ms is 3\.3 hops .* multiple of 10 ms"),
        ("hear.tasks", ["a", "a"], r"a stands more than once"),
        ("augment.mixup", 1, r"augment\.mixup = 1: .*boolean"),
        ("pretrain", 3, r"pretrain = 3"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_value(key, value, message):
    with pytest.raises(ValueError, match=message):
        check(changed(key, value), Config)


def test_a_missing_key_is_named():
    content = copy.deepcopy(read())
    del content["loss"]["alpha"]
    with pytest.raises(ValueError, match=r"loss\.alpha: missing"):
        check(content, Config)


def test_every_fault_is_named_at_once():
    content = changed("pretrain.epochs", "abc")
    content["typo"] = 1
    with pytest.raises(ValueError, match=r"2 wrong value\(s\)"):
        check(content, Config)


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "1.0e-05", "0.00001"])
def test_every_way_of_writing_a_small_number_is_a_number(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(f"loss: {{alpha: 1.0, lambda: {text}}}\n")
    assert load("loss", LossParams, path).lambda_ == 1e-5


def test_yes_is_not_a_boolean(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: yes\n")
    assert load_value("a", path) == "yes"


def test_a_missing_file_and_a_missing_key_and_broken_yaml_are_explained(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(FileNotFoundError, match="from the repository's root"):
        read(path)
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        read(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold a mapping"):
        read(path)
    path.write_text("a: 1\n")
    with pytest.raises(KeyError, match=r"has no 'a\.b'"):
        load_value("a.b", path)


def test_settings_survive_being_stored_as_plain_values():
    config = load_config()
    for name in ("audiontt", "vitc", "vit"):
        encoder = getattr(config.encoders, name)
        assert parse_encoder(name, encoder.model_dump(by_alias=True)) == encoder


def test_sections_cannot_be_changed_after_reading():
    section = params.load("pretrain", PretrainParams)
    with pytest.raises(ValueError, match="frozen"):
        section.epochs = 3
