"""params.yaml: what is refused, and how the message helps."""

import copy
import difflib
import re
import shutil
import warnings

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML
from torchaudio.functional import melscale_fbanks

from pipeline.config import FINGERPRINT_MELS, Config, load_config
from pipeline.core import params
from pipeline.core.params import check, load, load_value, read
from pipeline.corpus.params import ResampleParams
from pipeline.encoders.params import check_encoder
from pipeline.features.params import LogMelParams
from pipeline.leaks import fingerprint
from pipeline.pretrain.params import PretrainParams


def changed(key, value):
    """The committed params.yaml with one dotted key set."""
    content = copy.deepcopy(read())
    *parents, last = key.split(".")
    section = content
    for part in parents:
        section = section[part]
    section[int(last) if isinstance(section, list) else last] = value
    return content


def test_encoder_settings_without_an_encoder_are_refused():
    content = changed("hear.models", ["mel", "crepe"])
    check(content, Config)
    changes = {"layers": "concat", "mel_mean": True, "normalization": "task"}
    for key, value in changes.items():
        content = changed("hear.models", ["mel", "crepe"])
        content["hear"][key] = value
        with pytest.raises(
            ValueError, match=rf"{key} = .* applies only to the encoders, .*\(mel, crepe\)"
        ):
            check(content, Config)


def test_the_authors_wrapper_is_accepted_with_what_it_needs():
    content = changed("hear.mode", "reference")
    content["hear"] |= {"normalization": "reference", "edges": "cut"}
    assert check(content, Config).hear.mode == "reference"


def test_the_committed_file_is_valid():
    config = load_config()
    assert config.logmel.n_mels == 64
    assert config.loss.lambda_ == 0.005


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hear.models", ["pretrained", "mels"], r"hear\.models\.1 = 'mels': .*'mel', 'crepe'"),
        ("hear.models", ["mel", "mel"], r"hear\.models: mel appears more than once"),
        ("hear.models", [], r"hear\.models = \[\]: .*at least 1"),
        ("hear.window_ms", [950.0, 955.0], r"window_ms = 955\.0 ms is 95\.5 hops"),
        ("hear.window_ms", 20.0, r"window_ms = 20\.0 ms is shorter than the 513 samples.*16000 Hz"),
        ("hear.window_ms", [950.0, 30.0], r"window_ms = 30\.0 ms is shorter than the 513 samples"),
        ("hear.window_ms", [], r"hear\.window_ms = \[\]: .*at least 1"),
        ("hear.window_ms", [160.0, 160.0], r"160\.0 appears more than once"),
        ("hear.layers", "mean", r"layers = 'mean' needs layers of one size, which audiontt"),
        ("hear.layers", "all", r"hear\.layers = 'all': .*'last', 'concat' or 'mean'"),
        ("hear.mode", "reference", r"add -S hear\.normalization=reference -S hear\.edges=cut"),
        ("hear.normalization", "batch", r"'dataset', 'task' or 'reference'"),
        ("hear.edges", "reflect", r"hear\.edges = 'reflect': .*'context' or 'cut'"),
        ("hear.module.import", "a b", r"hear\.module\.import = 'a b'"),
        ("hear.wav2vec2.bundle", "__doc__", r"hear\.wav2vec2\.bundle = '__doc__'"),
        ("typo", 1, r"typo: unknown key; .*known keys: augment"),
        ("pretrain.epoch", 3, r"pretrain\.epoch: unknown key; did you mean 'epochs'"),
        ("encoders.vitc.optimizer.weight_decya", 3, r"weight_decya: unknown key; .*'weight_decay'"),
        ("pretrain.epochs", "abc", r"pretrain\.epochs = 'abc': .*integer"),
        ("pretrain.epochs", 0, r"pretrain\.epochs = 0: .*greater than or equal to 1"),
        ("pretrain.epochs", 1.5, r"pretrain\.epochs = 1\.5"),
        ("encoders.audiontt.optimizer.weight_decay", "1e-5", r"weight_decay = '1e-5': .*number"),
        ("loss.lambda", float("nan"), r"loss\.lambda = nan: .*finite"),
        ("encoder", "vit_c", r"encoder = 'vit_c': must be one of audiontt, vit, vitc"),
        ("encoder", None, r"encoder = None"),
        ("source", "youtube", r"source = 'youtube': must be one of"),
        ("encoders.vitc.patch_mels", 4, r"must be one of 16x16, 16x8, 8x8, 64x2, got 4x8"),
        ("encoders.vitc.patch_frames", 4, r"must be one of 16x16, 16x8, 8x8, 64x2, got 16x4"),
        ("encoders.vit.optimizer.name", "adagrad", r"optimizer\.name = 'adagrad': .*'sgd'"),
        ("encoders.vit.optimizer.beta1", 1.0, r"optimizer\.beta1 = 1\.0: .*less than 1"),
        ("encoders.vit.optimizer.beta2", -0.1, r"optimizer\.beta2 = -0\.1"),
        ("encoders.vit.optimizer.momentum", 1.0, r"optimizer\.momentum = 1\.0"),
        ("encoders.vit.optimizer.lr", 0.0, r"optimizer\.lr = 0\.0: .*greater than 0"),
        ("encoders.vit.optimizer.weight_decay", -1.0, r"optimizer\.weight_decay = -1\.0"),
        ("encoders.vitc.mask_ratio", 1.0, r"mask_ratio = 1\.0: .*less than 1"),
        ("encoders.vitc.mask_schedule", "cosine", r"'fixed', 'random' or 'sine'"),
        ("encoders.vitc.mask_warmup", 1.0, r"mask_warmup = 1\.0"),
        ("augment.rrc_mel_scale", [2.0, 1.5], r"rrc_mel_scale: .*must not go down, got 2\.0 to 1"),
        ("augment.rrc_frame_scale", [1.0], r"rrc_frame_scale = \[1\.0\]: .*at least 2"),
        ("augment.rrc_frame_scale", [0.0, 1.0], r"rrc_frame_scale\.0 = 0\.0: .*greater than 0"),
        ("augment.noise", True, r"augment\.noise = True: .*'none', 'additive' or 'reference'"),
        ("augment.noise_max", 1.5, r"augment\.noise_max = 1\.5"),
        ("augment.mixup_background", "clip", r"'bank' or 'batch'"),
        ("loss.target", "momentum", r"'shared', 'stop_gradient' or 'ema'"),
        ("loss.ema_decay", 1.1, r"ema_decay = 1\.1"),
        ("pretrain.crops_per_clip", 3, r"batch_size = 32 must be divisible by crops_per_clip = 3"),
        ("pretrain.snapshot_epochs", -1, r"snapshot_epochs = -1"),
        ("compute.fast", "yes", r"compute\.fast: 'yes' must be auto, true or false"),
        ("compute.fast", 1, r"compute\.fast: 1 must be auto, true or false"),
        ("compute.fast", 0, r"compute\.fast: 0 must be"),
        (
            "compute.scheduler",
            "abc",
            r"scheduler: 'abc' must be .* such as tcp://.*:8786, or empty",
        ),
        ("compute.scheduler", "http://x:1", r"compute\.scheduler: 'http://x:1' must be"),
        ("compute.scheduler", "tcp://x", r"compute\.scheduler: 'tcp://x' must be"),
        ("logmel.n_mels", 32, r"n_mels = 32 .*fingerprints? .* 36 or more"),
        ("compute.devices", 0, r"compute\.devices = 0"),
        ("compute.features", "ram", r"compute\.features = 'ram'"),
        ("compute.checkpoints", 0, r"compute\.checkpoints = 0"),
        ("logmel.f_max", 9000.0, r"f_max = 9000\.0, sample_rate = 16000"),
        ("logmel.win_length", 2048, r"win_length = 2048 must not exceed n_fft = 1024"),
        ("encoders.audiontt.embed_dim", 1024, r"must exceed the 1024 local features"),
        ("logmel.n_mels", 66, r"AudioNTT needs logmel\.n_mels divisible by 4"),
        ("hear.hop_ms", 33.0, r"hear\.hop_ms = 33\.0 ms is 3\.3 hops .* multiple of 10 ms"),
        ("hear.tasks", ["a", "a"], r"a appears more than once"),
        ("augment.mixup", 1, r"augment\.mixup = 1: .*boolean"),
        ("pretrain", 3, r"pretrain = 3"),
        ("pretrain.epochs", 0, r"^params\.yaml: 1 wrong value\n  pretrain\.epochs"),
        ("encoder", "resnet", r"^params\.yaml: 1 wrong value\n  encoder = 'resnet'"),
        (
            "sources.sample.url",
            "videos/a.ogg",
            r"url: 'videos/a\.ogg' must contain \{recording_id\}",
        ),
        ("sources.url.url", "x", r"sources\.url\.url: 'x' must contain \{recording_id\}"),
        (
            "sources.url.url",
            "{recording_id}{foo}",
            r"url: '\{recording_id\}\{foo\}': unknown placeholder \{foo\}; only \{recording_id\}",
        ),
        (
            "sources.audioset.url",
            "{recording_id}{x}",
            r"url: '\{recording_id\}\{x\}': unknown placeholder \{x\}; only \{recording_id\}",
        ),
        ("sources.audioset.lists", "{foo}", r"lists: '\{foo\}': .*only \{subset\} is supported"),
        ("sources.url.segments", "", r"sources\.url\.segments = '': .*at least 1 character"),
        ("sources.audioset.labels", "", r"sources\.audioset\.labels = ''"),
        ("sources.folder.path", "", r"sources\.folder\.path = '': .*at least 1 character"),
        ("sources.fsd50k.path", "", r"sources\.fsd50k\.path = ''"),
        ("sources.tar.path", "", r"sources\.tar\.path = ''"),
        ("sources.parquet.path", "", r"sources\.parquet\.path = ''"),
        ("sources.hdf5.path", "", r"sources\.hdf5\.path = ''"),
        ("sources.folder.max_clip_s", 0.5, r"max_clip_s: 0\.5 s must be 0 .* or 1 s or more"),
        ("sources.fsd50k.splits", ["eval"], r"splits\.0 = 'eval': .*'train' or 'val'"),
        ("sources.fsd50k.splits", [], r"splits = \[\]: .*at least 1"),
        ("sources.hdf5.sample_rate", -1, r"sample_rate = -1"),
        ("sources.tar.labels", "x", r"sources\.tar\.labels: unknown key; did you mean 'label_key'"),
        ("pretrain.seed", 2**63, r"pretrain\.seed = 9223372036854775808: .*less than"),
        ("logmel.win_length", 1, r"logmel\.win_length"),
        ("logmel.hop_length", 1025, r"hop_length = 1025 must not exceed win_length = 1024"),
        ("logmel.n_mels", 512, r"n_mels = 512: mel bin 1 \(64 to 71 Hz\) would be empty"),
        ("compute.workers", 10**6, r"compute\.workers: 1000000 must be a number of .*or dask"),
        ("compute.workers", True, r"compute\.workers: True must be"),
        ("compute.workers", "spark", r"compute\.workers: 'spark' must be"),
        ("resample.max_clipped", 1.5, r"resample\.max_clipped"),
        ("score.grid_points", 65, r"grid_points = 65: the grid 'fast' has only 64 settings"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_value(key, value, message):
    with pytest.raises(ValueError, match=message):
        check(changed(key, value), Config)


TOO_LARGE = {
    "pretrain.epochs": 10**12,
    "pretrain.batch_size": 10**9,
    "pretrain.crop_frames": 10**9,
    "pretrain.log_every": 10**12,
    "augment.mixup_bank": 10**12,
    "augment.rrc_canvas_frames": 1e6,
    "augment.rrc_frame_scale.1": 1e6,
    "projector.hidden_dim": 10**9,
    "projector.hidden_layers": 10**9,
    "projector.out_dim": 10**9,
    "encoders.audiontt.channels": 10**9,
    "encoders.audiontt.embed_dim": 10**9,
    "encoders.audiontt.optimizer.lr": 1e9,
    "loss.lambda": 1e30,
    "compute.connections": 1000,
    "network.tries": 10**6,
    "report.clips": 10**6,
}


@pytest.mark.parametrize("key", TOO_LARGE)
def test_a_number_far_beyond_every_use_is_refused(key):
    message = rf"{re.escape(f'{key} = {TOO_LARGE[key]}')}: .*less than"
    with pytest.raises(ValueError, match=message):
        check(changed(key, TOO_LARGE[key]), Config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("projector.hidden_dim", 16_384),
        ("projector.out_dim", 16_384),
        ("pretrain.batch_size", 4096),
        ("pretrain.crop_frames", 1001),
        ("pretrain.epochs", 1000),
        ("augment.mixup_bank", 65_536),
        ("download.clips_per_shard", 4096),
        ("logmel.n_mels", 128),
        ("score.grid_points", 8),
    ],
)
def test_every_size_of_the_paper_and_beyond_is_accepted(key, value):
    check(changed(key, value) | {"encoder": "audiontt"}, Config)


@pytest.mark.parametrize("n_fft", [400, 512, 1024, 1101])
def test_the_bins_that_are_refused_are_those_that_torchaudio_leaves_empty(n_fft):
    bins = n_fft // 2 + 1
    for n_mels in range(8, 200):
        banks = melscale_fbanks_without_warning(bins, 60.0, 7800.0, n_mels, 16_000)
        values = read()["logmel"] | {"n_fft": n_fft, "win_length": 400, "n_mels": n_mels}
        if (banks.amax(dim=0) > 0).all():
            check(values, LogMelParams)
        else:
            with pytest.raises(ValueError, match="would be empty"):
                check(values, LogMelParams)


def melscale_fbanks_without_warning(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return melscale_fbanks(*arguments)


@pytest.mark.parametrize(
    "name", ["x;touch pwned;-v1-full", "", "../x", "a b", "p|q", "at@x", "-x", "$x", "x\n", "é"]
)
def test_a_task_s_name_is_one_word_for_the_shell(name):
    message = rf"hear\.tasks\.1: {re.escape(repr(name))} must be the name of a folder.*esc50-v2"
    with pytest.raises(ValueError, match=message):
        check(changed("hear.tasks", ["esc50-v2.0.0-full", name]), Config)
    content = changed("probe.tasks", [name])
    with pytest.raises(ValueError, match=r"probe\.tasks\.0: "):
        check(content, Config)


def test_random_masks_need_a_range():
    content = changed("encoders.vitc.mask_schedule", "random")
    check(content, Config)  # a ratio of 0 masks nothing
    content["encoders"]["vitc"]["mask_ratio"] = 0.04
    with pytest.raises(ValueError, match=r"draws from 0\.05 up to mask_ratio.*got 0\.04"):
        check(content, Config)


def test_the_fast_path_needs_a_gpu():
    content = changed("compute.fast", True)
    assert check(content, Config).compute.fast is True
    content["compute"]["device"] = "cpu"
    with pytest.raises(ValueError, match=r"compute: fast = true needs a GPU"):
        check(content, Config)


@pytest.mark.parametrize("address", ["", "tcp://127.0.0.1:8786", "tls://[::1]:1", "node-7:8786"])
def test_every_address_of_a_scheduler_is_accepted(address):
    check(changed("compute.scheduler", address), Config)


def test_the_fewest_mel_bins_are_those_that_a_fingerprint_needs():
    assert FINGERPRINT_MELS == fingerprint.BITS + fingerprint.MELS_PER_BAND
    check(changed("logmel.n_mels", FINGERPRINT_MELS), Config)


def test_another_optimizer_needs_but_its_name_and_rate():
    content = changed("encoders.audiontt.optimizer.name", "adam")
    content["encoders"]["audiontt"]["optimizer"]["lr"] = 1e-4
    assert check(content, Config).encoders.audiontt.optimizer.name == "adam"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("encoder=vitc", "encoder: vitc "),
        ("loss.lambda=0.05", "  lambda: 0.05"),
        ("probe.tasks=[]", "  tasks: []"),
        ("hear.models=[mel]", "  - mel"),
    ],
)
def test_dvc_changes_what_an_option_names_and_nothing_else(tmp_path, option, line):
    path = tmp_path / "params.yaml"
    shutil.copy(params.PARAMS_FILE, path)
    apply_overrides(path, [option])
    before, after = params.PARAMS_FILE.read_text(), path.read_text()
    new = [text for text in difflib.ndiff(before.split("\n"), after.split("\n")) if text[0] == "+"]
    assert len(new) == 1
    assert new[0].startswith(f"+ {line}")
    apply_overrides(path, ["compute.device=cpu"])  # on what DVC has written
    key, value = option.split("=")
    assert load_value(key, path) == YAML(typ="safe").load(value)


def test_a_missing_key_is_named():
    content = copy.deepcopy(read())
    del content["loss"]["alpha"]
    with pytest.raises(ValueError, match=r"loss\.alpha: missing"):
        check(content, Config)


@pytest.mark.parametrize("key", ["loss.lambda", "hear.module.import"])
def test_the_names_that_the_code_has_for_pythons_keywords_are_unknown_keys(key):
    content = changed(f"{key}_", load_value(key))
    *parents, last = key.split(".")
    section = content
    for part in parents:
        section = section[part]
    del section[last]
    with pytest.raises(ValueError, match=rf"{key}_: unknown key; did you mean '{last}'"):
        check(content, Config)


def test_every_fault_is_named_at_once():
    content = changed("pretrain.epochs", "abc")
    content["typo"] = 1
    with pytest.raises(ValueError, match=r"2 wrong values\n"):
        check(content, Config)


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "1.0e-05", "0.00001"])
def test_every_way_of_writing_a_small_number_is_a_number(tmp_path, text):
    path = tmp_path / "params.yaml"
    values = "min_duration_s: 0.1, silence_db: -80.0, max_clipped: 1.0"
    path.write_text(f"resample: {{max_failed: {text}, {values}}}\n")
    assert load("resample", ResampleParams, path).max_failed == 1e-5


def test_yes_is_not_a_boolean(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: yes\n")
    assert load_value("a", path) == "yes"


def test_nested_aliases_are_refused_before_they_are_expanded(tmp_path):
    path = tmp_path / "params.yaml"
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"aliases expand to [0-9,]+ values, of 10,000"):
        read(path)
    path.write_text("a: &a [1, *a]\n")
    with pytest.raises(ValueError, match="nested too deeply"):
        read(path)
    path.write_text("a: &a {x: 1}\nb: *a\n")
    assert read(path) == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_missing_file_and_a_missing_key_and_broken_yaml_are_explained(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(FileNotFoundError, match="from the repository's root"):
        read(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"params\.yaml is not text in UTF-8"):
        read(path)
    path.write_text(f"a: {'[' * 3000}{']' * 3000}\n")
    with pytest.raises(ValueError, match=r"params\.yaml is nested too deeply"):
        read(path)
    path.write_text("a: 2024-13-45\n")
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML: month"):
        read(path)
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        read(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold a mapping"):
        read(path)
    path.write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"has no 'a\.b'"):
        load_value("a.b", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "b:\n  x: 1\na:\n  x: 1\n  y: {x: 2}\n  x: 3\n",
            "x appears in line 4 and again in line 6",
        ),
        ("a: 1\nb: 2\na: 3\n", "a appears in line 1 and again in line 3"),
        ("a: {b: 1, b: 2}\n", "b appears twice, the second time in line 1"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"params\.yaml: {message}\. Remove one of them\.$"):
        read(path)


def test_settings_survive_being_stored_as_plain_values():
    config = load_config()
    for name in ("audiontt", "vitc", "vit"):
        encoder = getattr(config.encoders, name)
        assert check(encoder.model_dump(by_alias=True), check_encoder(name)) == encoder


def test_sections_cannot_be_changed_after_reading():
    section = params.load("pretrain", PretrainParams)
    with pytest.raises(ValueError, match="frozen"):
        section.epochs = 3
